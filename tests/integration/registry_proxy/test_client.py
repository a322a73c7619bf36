"""The client against a registry that misbehaves, under asyncio and trio."""

import base64
import json
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import anyio
import pytest

from registry_proxy.client import RegistryClient, open_client
from registry_proxy.credentials import Credential, DockerConfig, GivenCredentials
from registry_proxy.errors import (
    AbsentError,
    BadAnswerError,
    DeniedError,
    DigestMismatchError,
    ManifestError,
    ProxyError,
    RateLimitedError,
    UnreachableError,
    UnsupportedManifestError,
)
from registry_proxy.oci.digest import Digest
from registry_proxy.oci.manifest import Descriptor, ImageManifest
from registry_proxy.oci.reference import Reference
from tests.integration.registry_proxy.conftest import HURRY
from tests.support.bad_registry import INDEX, BadRegistry, Fault, digest_of

pytestmark = pytest.mark.parametrize("backend", ["asyncio", "trio"])
DATA = os.urandom(400_000)


T = TypeVar("T")


def ask(
    bad: BadRegistry,
    backend: str,
    call: Callable[[RegistryClient, Reference], Awaitable[T]],
    credentials: GivenCredentials | DockerConfig | None = None,
) -> T:
    async def run() -> T:
        async with open_client(credentials=credentials or GivenCredentials(), patience=HURRY) as client:
            return await call(client, Reference.parse(f"{bad.host}/t/a:1"))

    return anyio.run(run, backend=backend)


async def read_layer(client: RegistryClient, reference: Reference) -> bytes:
    """The blob DATA, in pieces."""
    descriptor = Descriptor(media_type="x", digest=Digest.of(DATA), size_bytes=len(DATA))
    async with client.blob(reference, descriptor) as parts:
        return b"".join([part async for part in parts])


def test_a_whole_image_is_read(bad: BadRegistry, backend: str) -> None:
    digest = bad.add_image("t/a", "1", [DATA])

    async def call(client: RegistryClient, reference: Reference) -> None:
        resolved = await client.resolve(reference)
        fetched = await client.manifest(reference)
        assert str(resolved.digest) == str(fetched.digest) == digest
        assert resolved.size_bytes == len(fetched.body)
        assert isinstance(fetched.document, ImageManifest)
        assert b"rootfs" in await client.blob_bytes(reference, fetched.document.config)
        assert await read_layer(client, reference) == DATA
        assert await client.catalog(reference.registry) == ("t/a",)

    ask(bad, backend, call)
    assert not any("Range" in one.headers for one in bad.seen)
    assert {one.headers["Accept-Encoding"] for one in bad.seen} == {"identity"}


def test_tags_come_page_by_page(bad: BadRegistry, backend: str) -> None:
    bad.tags["t/a"] = [f"v{number}" for number in range(25)]
    bad.page = 10

    assert ask(bad, backend, lambda client, reference: client.tags(reference)) == tuple(sorted(bad.tags["t/a"]))


def test_an_empty_list_of_tags_is_empty(bad: BadRegistry, backend: str) -> None:
    bad.tags["t/a"] = []

    assert ask(bad, backend, lambda client, reference: client.tags(reference)) == ()


def test_pages_never_lead_to_another_host_or_in_circles(bad: BadRegistry, backend: str) -> None:
    bad.tags["t/a"] = ["1"]
    for link in ("<http://169.254.169.254/v2/t/a/tags/list>", "</v2/t/a/tags/list?n=1000>"):
        bad.faults = [Fault("tags", "headers", headers={"Link": f'{link}; rel="next"'})]
        with pytest.raises(BadAnswerError):
            ask(bad, backend, lambda client, reference: client.tags(reference))


@pytest.mark.parametrize(
    "fault",
    [
        Fault("blobs", "cut", 100_000, times=1),
        Fault("blobs", "cut", 100_000),  # each attempt gets something
        Fault("blobs", "status", 503, times=2),
        Fault("blobs", "status", 429, headers={"Retry-After": "0"}, times=2),
        Fault("blobs", "reset", times=1),
    ],
    ids=lambda fault: f"{fault.action}-{fault.value:g}-{fault.times}",
)
def test_blobs_survive_what_passes(bad: BadRegistry, backend: str, fault: Fault) -> None:
    bad.add_blob("t/a", DATA)
    bad.faults = [fault]

    assert ask(bad, backend, read_layer) == DATA


def test_a_broken_blob_is_resumed_where_it_broke(bad: BadRegistry, backend: str) -> None:
    bad.add_blob("t/a", DATA)
    bad.faults = [Fault("blobs", "cut", 100_000, times=1)]

    ask(bad, backend, read_layer)

    assert [one.headers.get("Range") for one in bad.seen] == [None, "bytes=100000-"]


def test_a_registry_that_ignores_ranges_is_read_from_the_start(bad: BadRegistry, backend: str) -> None:
    bad.add_blob("t/a", DATA)
    bad.faults = [Fault("blobs", "cut", 100_000, times=1), Fault("blobs", "whole")]

    assert ask(bad, backend, read_layer) == DATA


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("blobs", "status", 404), AbsentError),
        (Fault("blobs", "status", 403), DeniedError),
        (Fault("blobs", "status", 503), UnreachableError),
        (Fault("blobs", "status", 429, headers={"Retry-After": "3600"}), RateLimitedError),
        (Fault("blobs", "status", 418), BadAnswerError),
        (Fault("blobs", "reset"), UnreachableError),
        (Fault("blobs", "drip", 500), UnreachableError),
        (Fault("blobs", "length", 5), DigestMismatchError),
        (Fault("blobs", "empty"), DigestMismatchError),
        (Fault("blobs", "other", text="x" * 500_000), DigestMismatchError),
        (Fault("blobs", "encoding", text="gzip"), BadAnswerError),
    ],
    ids=lambda value: f"{value.action}-{value.value:g}" if isinstance(value, Fault) else "",
)
def test_blobs_fail_with_a_name(bad: BadRegistry, backend: str, fault: Fault, error: type[ProxyError]) -> None:
    bad.add_blob("t/a", DATA)
    bad.faults = [fault]

    with pytest.raises(error, match=bad.host) as caught:
        ask(bad, backend, read_layer)

    assert type(caught.value) is error


@pytest.mark.parametrize("offset", [0, len(DATA) // 2, -1])
def test_no_reader_gets_a_whole_blob_with_a_wrong_byte(bad: BadRegistry, backend: str, offset: int) -> None:
    bad.add_blob("t/a", DATA)
    bad.faults = [Fault("blobs", "flip", offset)]
    given = bytearray()

    async def call(client: RegistryClient, reference: Reference) -> None:
        descriptor = Descriptor(media_type="x", digest=Digest.of(DATA), size_bytes=len(DATA))
        async with client.blob(reference, descriptor) as parts:
            async for part in parts:
                given.extend(part)

    with pytest.raises(DigestMismatchError):
        ask(bad, backend, call)
    assert len(given) < len(DATA)


def test_a_manifest_with_one_wrong_byte_is_asked_for_once_more(bad: BadRegistry, backend: str) -> None:
    digest = bad.add_image("t/a", "1", [b"x"])
    bad.faults = [Fault("manifests", "flip", 20, times=1)]

    assert str(ask(bad, backend, lambda client, reference: client.manifest(reference)).digest) == digest


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("manifests", "flip", 20), DigestMismatchError),
        (Fault("manifests", "type", text=INDEX), ManifestError),
        (Fault("manifests", "type", text="text/html"), ManifestError),
        (
            Fault("manifests", "type", text="application/vnd.docker.distribution.manifest.v1+prettyjws"),
            UnsupportedManifestError,
        ),
        (Fault("manifests", "other", text=" " * (5 << 20)), BadAnswerError),
        (Fault("manifests", "status", 404), AbsentError),
        (Fault("manifests", "status", 500), UnreachableError),
        (Fault("manifests", "wait", 1.1), UnreachableError),
        (Fault("manifests", "location", text="/v2/t/a/manifests/1"), BadAnswerError),
        (Fault("manifests", "location", text="ftp://example.org/"), BadAnswerError),
    ],
    ids=lambda value: f"{value.action}-{value.text[:20]}" if isinstance(value, Fault) else "",
)
def test_manifests_fail_with_a_name(bad: BadRegistry, backend: str, fault: Fault, error: type[ProxyError]) -> None:
    bad.add_image("t/a", "1", [b"x"])
    bad.faults = [fault]

    with pytest.raises(error) as caught:
        ask(bad, backend, lambda client, reference: client.manifest(reference))

    assert type(caught.value) is error
    assert len(bad.seen) <= 6


def test_a_registry_without_head_is_asked_with_get(bad: BadRegistry, backend: str) -> None:
    digest = bad.add_image("t/a", "1", [b"x"])
    bad.faults = [Fault("manifests", "status", 405, method="HEAD")]

    assert str(ask(bad, backend, lambda client, reference: client.resolve(reference)).digest) == digest


def test_artifacts_are_refused_as_images_only(bad: BadRegistry, backend: str) -> None:
    config = {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": digest_of(b"{}"), "size": 2}
    bad.add_manifest("t/a", "1", json.dumps({"config": config, "layers": []}).encode())

    with pytest.raises(UnsupportedManifestError, match="Helm chart"):
        ask(bad, backend, lambda client, reference: client.manifest(reference))
    assert ask(bad, backend, lambda client, reference: client.manifest(reference, images_only=False)).body


def test_one_token_serves_many_requests(bad: BadRegistry, backend: str) -> None:
    bad.add_blob("t/a", DATA)
    bad.token = "secret-token"

    async def call(client: RegistryClient, reference: Reference) -> None:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(read_layer, client, reference)

    ask(bad, backend, call)
    asked = [one for one in bad.seen if one.path == "/token"]
    assert len(asked) == 1
    assert asked[0].query == {"service": ["test"], "scope": ["repository:t/a:pull"]}
    assert "Authorization" not in asked[0].headers


def test_a_token_that_ended_is_replaced_once(bad: BadRegistry, backend: str) -> None:
    bad.add_image("t/a", "1", [b"x"])
    bad.token = "first"

    async def call(client: RegistryClient, reference: Reference) -> None:
        await client.manifest(reference)
        bad.token = "second"
        await client.manifest(reference)

    ask(bad, backend, call)
    assert bad.count("GET", "/token") == 2


def test_passwords_go_to_the_token_server_and_identity_tokens_by_post(bad: BadRegistry, backend: str) -> None:
    bad.add_image("t/a", "1", [b"x"])
    bad.token = "t"
    password = Credential("me", "pass")
    identity = Credential("", "ident", is_identity_token=True)

    for credential in (password, identity):
        given = GivenCredentials({bad.host: credential})
        ask(bad, backend, lambda client, reference: client.manifest(reference), given)

    get, post = [one for one in bad.seen if one.path == "/token"]
    assert (get.method, get.headers["Authorization"]) == ("GET", password.basic())
    assert (post.method, "Authorization" in post.headers) == ("POST", False)
    assert "pass" not in repr(password)


def test_basic_credentials_come_from_dockers_file(bad: BadRegistry, backend: str, tmp_path: Path) -> None:
    bad.add_image("t/a", "1", [b"x"])
    bad.basic = "Basic " + base64.b64encode(b"me:pass").decode()
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"auths": {bad.host: {"auth": base64.b64encode(b"me:pass").decode()}}}))

    assert ask(bad, backend, lambda client, reference: client.manifest(reference), DockerConfig(path)).body
    with pytest.raises(DeniedError, match="no credential"):
        ask(bad, backend, lambda client, reference: client.manifest(reference))
    path.write_text(json.dumps({"auths": {bad.host: {"auth": base64.b64encode(b"me:other").decode()}}}))
    with pytest.raises(DeniedError):
        ask(bad, backend, lambda client, reference: client.manifest(reference), DockerConfig(path))


def test_credential_helpers_are_asked(
    bad: BadRegistry, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad.add_image("t/a", "1", [b"x"])
    bad.basic = "Basic " + base64.b64encode(b"me:pass").decode()
    helper = tmp_path / "docker-credential-test"
    helper.write_text('#!/bin/sh\nread host\necho "{\\"Username\\":\\"me\\",\\"Secret\\":\\"pass\\"}"\n')
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"credHelpers": {bad.host: "test"}}))

    assert ask(bad, backend, lambda client, reference: client.manifest(reference), DockerConfig(path)).body


def test_authorization_does_not_follow_a_redirect_to_another_port(bad: BadRegistry, backend: str) -> None:
    from tests.support.bad_registry import bad_registry

    bad.token = "secret"
    with bad_registry() as other:
        other.add_blob("t/a", DATA)
        bad.add_blob("t/a", DATA)
        bad.faults = [Fault("blobs", "location", text=f"{other.url}/v2/t/a/blobs/{digest_of(DATA)}")]

        assert ask(bad, backend, read_layer) == DATA
        assert "Authorization" in bad.seen[-1].headers
        assert [("Authorization" in one.headers) for one in other.seen] == [False]


def test_credentials_do_not_go_to_a_strange_token_server(bad: BadRegistry, backend: str) -> None:
    bad.add_image("t/a", "1", [b"x"])
    bad.token = "t"
    for realm in ("http://10.1.2.3/token", "http://token.example.org/token", "file:///etc/passwd"):
        bad.realm = realm
        given = GivenCredentials({bad.host: Credential("me", "pass")})
        with pytest.raises(BadAnswerError, match="token server"):
            ask(bad, backend, lambda client, reference: client.manifest(reference), given)


def test_an_unreachable_registry_is_named_with_the_reason(bad: BadRegistry, backend: str) -> None:
    async def call(client: RegistryClient, reference: Reference) -> None:
        del reference
        await client.manifest(Reference.parse("127.0.0.1:1/a/b"))

    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1 cannot be reached: Connection refused"):
        ask(bad, backend, call)


def test_tls_that_is_not_there_is_explained(bad: BadRegistry, backend: str) -> None:
    async def call(client: RegistryClient, reference: Reference) -> None:
        await client.manifest(Reference.parse(f"https://{reference.registry}/a/b"))

    with pytest.raises(UnreachableError, match="does not speak TLS"):
        ask(bad, backend, call)
