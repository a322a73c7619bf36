"""``unpackd convert`` from real registries, layouts and archives: what is published, what is said, how it ends."""

import gzip
import json
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import docker
import httpx
import pytest
import zstandard
from docker.errors import DockerException
from typer.testing import CliRunner, Result

import unpackd
from converter.changeset import decode
from converter.conversion import ConversionRequest, ConversionResult
from converter.pipeline import convert_image
from converter.placement import CHANGE_SET_LIMIT_BYTES, chain_ids, chain_path, change_set_path, layerfs_path
from converter.sources import ImageSource, OpenSource, parse_source
from fs.publish.operations import PutFile
from fs.publish.repository import Repository
from registry_proxy.oci.manifest import Descriptor
from tests.support.images import Layout, Member, digest, directory, hardlink, make_layout, symlink
from tests.support.registry import Registry

NAME = "images.test"
BASE = [directory("etc"), Member("etc/os-release", b"ID=test\n"), symlink("lib", "usr/lib"), directory("usr/lib")]
APP = [Member("app", b"#!/bin/sh\n", mode=0o4755), Member("etc/.wh.os-release"), Member("lib/x.so", b"so")]


@dataclass(frozen=True, slots=True)
class Target:
    """A repository, and the command pointed at it."""

    repository: Repository
    options: tuple[str, ...]

    def convert(self, *arguments: str, **environment: str) -> Result:
        return CliRunner().invoke(unpackd.app, ["convert", *arguments, *self.options], env=environment)

    def image(self, *arguments: str) -> dict[str, object]:
        ended = self.convert(*arguments, "--json")
        assert ended.exit_code == 0, ended.output
        images: list[dict[str, object]] = json.loads(ended.stdout)["images"]
        return images[0]

    def names(self, path: str) -> list[str]:
        return [entry.name.decode() for entry in self.repository.view().list(path.encode())]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture
def target(tmp_path: Path, keys: Path) -> Target:
    storage = str(tmp_path / "storage")
    repository = Repository.create(NAME, storage, keys, durable=False)
    return Target(repository, ("--repo", NAME, "--storage", storage, "--keys", str(keys)))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_layout(tmp_path / "layout", [BASE, APP])


def test_image_of_a_registry_is_listed_under_the_path_that_is_printed(
    target: Target, registry: Registry, layout: Layout
) -> None:
    reference = registry.push(layout.source, "lib/app:1.0")

    ended = target.convert(reference)

    assert ended.exit_code == 0, ended.output
    assert ended.stdout == f"/{registry.host}/lib/app:1.0\n"
    view = target.repository.view()
    config = digest(layout.config).removeprefix("sha256:")
    public = f"../../.flat/{config[:2]}/{config}"
    assert view.readlink(ended.stdout.strip().encode()) == public.encode()
    assert target.names(f"/.flat/{config[:2]}/{config}") == ["app", "etc", "lib", "usr"]
    assert target.names(f"/.flat/{config[:2]}/{config}/usr/lib") == ["x.so"]
    assert target.names(f"/.flat/{config[:2]}/{config}/etc") == []


def test_nothing_new_costs_one_question_and_no_revision(target: Target, registry: Registry, layout: Layout) -> None:
    reference = registry.push(layout.source, "lib/again:1.0")
    first = target.image(reference)
    asked = len(registry.requests())

    again = target.image(reference)

    asked_again = registry.requests()[asked:]
    assert [request["http.request.method"] for request in asked_again] == ["HEAD"]
    assert (again["changed"], again["revision"]) == (False, first["revision"])
    assert again["config_digest"] == first["config_digest"]


def test_moved_tag_moves_the_link_and_fetches_only_new_layers(
    target: Target, registry: Registry, tmp_path: Path
) -> None:
    registry.push(make_layout(tmp_path / "old", [BASE]).source, "lib/moving:1")
    reference = registry.push(make_layout(tmp_path / "new", [BASE, APP]).source, "lib/moving:2")
    first = target.image(f"{registry.host}/lib/moving:1")
    sent = registry.bytes_sent()

    second = target.image(reference)

    assert (second["layers_total"], second["layers_converted"]) == (2, 1)
    assert registry.bytes_sent() - sent < 5000
    assert second["flat_path"] != first["flat_path"]


def test_records_are_byte_for_byte_and_in_ducc_form(target: Target, layout: Layout) -> None:
    result = target.image(layout.source)

    view = target.repository.view()
    manifest = str(result["manifest_digest"]).removeprefix("sha256:")
    image = f"/.unpackd/images/{manifest[:2]}/{manifest}"
    assert view.read(f"{image}/manifest.json".encode(), 1 << 20) == layout.manifest
    assert view.read(f"{image}/config.json".encode(), 1 << 20) == layout.config
    assert json.loads(view.read(f"{image}/provenance.json".encode(), 1 << 20))["config"] == digest(layout.config)
    ducc = json.loads(view.read(f"/.metadata{result['public_path']}/manifest.json".encode(), 1 << 20))
    assert ducc["SchemaVersion"] == 2
    assert ducc["Config"]["Digest"] == digest(layout.config)
    assert [layer["Digest"] for layer in ducc["Layers"]] == [digest(layer) for layer in layout.layers]


def test_layers_are_in_overlay_form_and_chains_lead_to_them(target: Target, layout: Layout) -> None:
    target.image(layout.source)

    view = target.repository.view()
    diff_ids = json.loads(layout.config)["rootfs"]["diff_ids"]
    bottom, top = (chain_path(chain) for chain in chain_ids(diff_ids))
    upper = layerfs_path(digest(layout.layers[1]))
    removed = view.lookup(upper + b"/etc/os-release")
    assert removed is not None
    assert (removed.mode, removed.rdev) == (0o020000, 0)
    record = json.loads(view.read(upper.removesuffix(b"layerfs") + b".metadata/layers.json", 1 << 20))
    assert record[0]["diff-digest"] == diff_ids[1]
    assert view.readlink(bottom + b"/layer").endswith(layerfs_path(digest(layout.layers[0])))
    assert view.readlink(top + b"/parent").endswith(bottom.rpartition(b"/")[2])
    assert view.lookup(bottom + b"/parent") is None
    assert view.lookup(bottom + b"/flat") is None
    assert view.readlink(top + b"/flat").endswith(digest(layout.config).removeprefix("sha256:").encode())


def test_chain_has_its_own_form_of_a_layer_that_depends_on_what_lies_below(target: Target, layout: Layout) -> None:
    target.image(layout.source)

    view = target.repository.view()
    top = chain_path(chain_ids(json.loads(layout.config)["rootfs"]["diff_ids"])[1])
    assert view.readlink(top + b"/layer") == b"layerfs"
    # lib is a symlink of the lower layer: the file has to lie where it leads, and lib must not become a directory
    assert view.lookup(top + b"/layerfs/lib") is None
    assert view.lookup(top + b"/layerfs/usr/lib/x.so") is not None


def test_hard_link_into_a_lower_layer(target: Target, tmp_path: Path) -> None:
    layout = make_layout(tmp_path / "links", [[Member("a", b"shared")], [hardlink("b", "a")]])

    result = target.image(layout.source)

    view = target.repository.view()
    flat = str(result["flat_path"]).encode()
    first, second = view.lookup(flat + b"/a"), view.lookup(flat + b"/b")
    assert first is not None
    assert second is not None
    assert first.linkcount == second.linkcount == 2
    assert first.link_group == second.link_group != 0


def test_stored_change_set_is_what_later_conversions_use(target: Target, layout: Layout) -> None:
    target.image(layout.source)

    stored = target.repository.view().read(change_set_path(digest(layout.layers[1])), CHANGE_SET_LIMIT_BYTES)

    changes = decode(stored)
    assert [change.path for change in changes.entries] == [b"/app", b"/lib/x.so"]
    assert changes.whiteouts == (b"/etc/os-release",)


def test_second_image_with_the_same_layers_reads_none(target: Target, tmp_path: Path) -> None:
    target.image(make_layout(tmp_path / "one", [BASE, APP]).source)

    second = target.image(make_layout(tmp_path / "two", [BASE, APP], settings={"Cmd": ["/app"]}).source)

    assert (second["layers_total"], second["layers_converted"], second["changed"]) == (2, 0, True)
    assert target.names(str(second["flat_path"])) == ["app", "etc", "lib", "usr"]


def test_layer_is_read_again_if_its_change_set_is_of_another_version(
    target: Target, layout: Layout, tmp_path: Path
) -> None:
    target.image(layout.source)
    path = change_set_path(digest(layout.layers[0]))
    content = target.repository.ingester().add_bytes(b'{"version":99}')
    target.repository.commit([PutFile(path, content)])

    again = target.image(make_layout(tmp_path / "again", [BASE, APP], settings={"Cmd": ["/app"]}).source)

    assert (again["layers_total"], again["layers_converted"]) == (2, 1)
    assert decode(target.repository.view().read(path, CHANGE_SET_LIMIT_BYTES)).entries


def test_one_commit_an_image(target: Target, layout: Layout) -> None:
    before = target.repository.revision

    target.image(layout.source)

    assert target.repository.revision == before + 1


def test_image_of_an_index_is_chosen_by_platform(target: Target, registry: Registry, tmp_path: Path) -> None:
    amd = make_layout(tmp_path / "amd", [[Member("amd64", b"")]], architecture="amd64")
    arm = make_layout(tmp_path / "arm", [[Member("arm64", b"")]], architecture="arm64")
    index = push_index(registry, "lib/multi", [(amd, "amd64"), (arm, "arm64")])

    first = target.image(f"{registry.host}/lib/multi:both", "--platform", "linux/arm64", "--name", "localhost/arm:1")
    second = target.image(f"{registry.host}/lib/multi:both", "--platform", "linux/amd64")
    absent = target.convert(f"{registry.host}/lib/multi:both", "--platform", "linux/s390x")

    assert target.names(str(first["flat_path"])) == ["arm64"]
    assert target.names(str(second["flat_path"])) == ["amd64"]
    manifest = str(second["manifest_digest"]).removeprefix("sha256:")
    stored = target.repository.view().read(f"/.unpackd/images/{manifest[:2]}/{manifest}/index.json".encode(), 1 << 20)
    assert stored == index
    assert absent.exit_code == 10
    assert "linux/s390x" in absent.stderr


def push_index(registry: Registry, name: str, images: list[tuple[Layout, str]]) -> bytes:
    """Push images and an index of them, tagged ``both``; gives the index."""
    described = []
    for layout, architecture in images:
        registry.push(layout.source, f"{name}:{architecture}")
        described.append(
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest(layout.manifest),
                "size": len(layout.manifest),
                "platform": {"os": "linux", "architecture": architecture},
            }
        )
    media_type = "application/vnd.oci.image.index.v1+json"
    index = json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": described}).encode()
    url = f"{registry.url}/v2/{name}/manifests/both"
    httpx.put(url, content=index, headers={"Content-Type": media_type}, timeout=30).raise_for_status()
    return index


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_archives(target: Target, layout: Layout, tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "image.tar"
    destination = f"{kind}:{archive}:docker.io/library/saved:1"
    subprocess.run(["skopeo", "copy", "--quiet", layout.source, destination], check=True, timeout=60)

    result = target.image(f"{kind}:{archive}")

    assert result["public_path"] == "/docker.io/library/saved:1"
    assert target.names(str(result["flat_path"])) == ["app", "etc", "lib", "usr"]
    assert target.image(f"{kind}:{archive}")["changed"] is False


def test_zstd_layers_of_several_frames(target: Target, layout: Layout) -> None:
    packer = zstandard.ZstdCompressor()
    manifest = layout.manifest.replace(b".v1.tar+gzip", b".v1.tar+zstd")
    for layer in layout.layers:
        tar = gzip.decompress(layer)
        skippable = struct.pack("<II", 0x184D2A50, 4) + b"note"
        packed = packer.compress(tar[:700]) + skippable + packer.compress(tar[700:])
        put_blob(layout, packed)
        before = f'"digest": "{digest(layer)}", "size": {len(layer)}'
        manifest = manifest.replace(before.encode(), f'"digest": "{digest(packed)}", "size": {len(packed)}'.encode())
    replace_manifest(layout, manifest)

    result = target.image(layout.source)

    assert target.names(str(result["flat_path"])) == ["app", "etc", "lib", "usr"]


def put_blob(layout: Layout, data: bytes) -> None:
    (layout.path / "blobs" / "sha256" / digest(data).removeprefix("sha256:")).write_bytes(data)


def replace_manifest(layout: Layout, manifest: bytes) -> None:
    """Give the layout another manifest under its tag."""
    put_blob(layout, manifest)
    index = json.loads((layout.path / "index.json").read_text())
    index["manifests"][0] |= {"digest": digest(manifest), "size": len(manifest)}
    (layout.path / "index.json").write_text(json.dumps(index))


# --- how it ends when it does not work


def damaged(layout: Layout, number: int) -> Layout:
    """The same layout with a byte of layer *number* changed."""
    path = layout.path / "blobs" / "sha256" / digest(layout.layers[number]).removeprefix("sha256:")
    path.write_bytes(layout.layers[number][:-1] + bytes([layout.layers[number][-1] ^ 1]))
    return layout


def test_wrong_digest_is_corrupt_and_changes_nothing(target: Target, layout: Layout) -> None:
    ended = target.convert(damaged(layout, 0).source)

    assert ended.exit_code == 12
    assert digest(layout.layers[0]) in ended.stderr
    assert target.repository.revision == 1


def test_wrong_diff_id_is_corrupt_and_says_both(target: Target, tmp_path: Path) -> None:
    layout = make_layout(tmp_path / "layout", [BASE])
    diff_id = json.loads(layout.config)["rootfs"]["diff_ids"][0]
    wrong = "sha256:" + "0" * 64
    config = layout.config.replace(diff_id.encode(), wrong.encode())
    put_blob(layout, config)
    replace_manifest(layout, layout.manifest.replace(digest(layout.config).encode(), digest(config).encode()))

    ended = target.convert(layout.source)

    assert ended.exit_code == 12
    assert diff_id in ended.stderr
    assert wrong in ended.stderr
    assert target.repository.view().list(b"") == []


@pytest.mark.parametrize(
    ("image", "status"),
    [
        ("Upper/Case", 2),
        ("oci:", 2),
        ("oci:/nonexistent:1", 10),
        ("{registry}/no/such:image", 10),
        ("127.0.0.1:1/nobody/listens:1", 13),
    ],
)
def test_exit_codes(target: Target, registry: Registry, image: str, status: int) -> None:
    ended = target.convert(image.format(registry=registry.host))

    assert ended.exit_code == status, ended.output
    assert ended.stderr.startswith("error: ")
    assert ended.stdout == ""
    assert target.repository.revision == 1


def test_one_of_two_is_part(target: Target, layout: Layout) -> None:
    ended = target.convert("oci:/nonexistent:1", layout.source)

    assert ended.exit_code == 3
    assert ended.stdout == "/localhost/layout:1\n"


def test_error_is_one_json_object(target: Target) -> None:
    ended = target.convert("oci:/nonexistent:1", "--json")

    assert json.loads(ended.stderr)["exit"] == 10
    assert json.loads(ended.stdout)["images"] == []


def test_missing_repository_is_usage() -> None:
    ended = CliRunner().invoke(unpackd.app, ["convert", "debian:12"])

    assert ended.exit_code == 2
    assert "UNPACKD_REPO" in ended.stderr


def test_repository_comes_from_the_environment(target: Target, layout: Layout) -> None:
    _, name, _, storage, _, keys = target.options
    settings = {"UNPACKD_REPO": name, "UNPACKD_STORAGE": storage, "UNPACKD_KEYS": keys}

    ended = CliRunner().invoke(unpackd.app, ["convert", layout.source], env=settings)

    assert ended.exit_code == 0


def test_limit_of_the_environment_counts(target: Target, layout: Layout) -> None:
    ended = target.convert(layout.source, UNPACKD_CONVERTER_LIMITS_MAX_ENTRIES="2")

    assert ended.exit_code == 1
    assert "UNPACKD_CONVERTER_LIMITS_MAX_ENTRIES" in ended.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((b"application/vnd.oci.image.config.v1+json", b"application/vnd.cncf.helm.config.v1+json"), "Helm chart"),
        ((b".v1.tar+gzip", b".v1.tar+gzip+encrypted"), "encrypted"),
        ((b".layer.v1.tar", b".layer.nondistributable.v1.tar"), "foreign"),
        ((b".v1.tar+gzip", b".v1.tar+zstd"), "media type"),
    ],
)
def test_what_is_no_image_is_refused_by_name(
    target: Target, tmp_path: Path, change: tuple[bytes, bytes], said: str
) -> None:
    layout = make_layout(tmp_path / "layout", [BASE])
    replace_manifest(layout, layout.manifest.replace(*change))

    ended = target.convert(layout.source)

    assert ended.exit_code in {1, 12}
    assert said in ended.stderr
    assert target.repository.revision == 1


def test_strict_refuses_an_image_of_which_something_is_left_out(target: Target, tmp_path: Path) -> None:
    layout = make_layout(tmp_path / "lossy", [[Member("x", b"", pax={"SCHILY.xattr.user.long": "v" * 300})]])

    refused = target.convert(layout.source, "--strict")
    revision = target.repository.revision
    taken = target.convert(layout.source)

    assert (refused.exit_code, revision) == (1, 1)
    assert "user.long" in refused.stderr
    assert taken.exit_code == 0
    assert "user.long" in taken.stderr


def test_image_of_a_docker_engine(target: Target, layout: Layout) -> None:
    name = "unpackd.test/engine:1"
    try:
        client = docker.from_env()
    except DockerException as error:
        pytest.skip(f"no Docker engine answers: {error}")
    subprocess.run(["skopeo", "copy", "--quiet", layout.source, f"docker-daemon:{name}"], check=True, timeout=60)
    try:
        result = target.image(f"docker-daemon:{name}")
    finally:
        client.images.remove(name)
        client.close()

    assert result["public_path"] == f"/{name}"
    assert target.names(str(result["flat_path"])) == ["app", "etc", "lib", "usr"]


def test_no_docker_engine_is_unreachable(target: Target, tmp_path: Path) -> None:
    ended = target.convert("docker-daemon:debian:12", DOCKER_HOST=f"unix://{tmp_path}/none.sock")

    assert ended.exit_code == 13
    assert "debian:12" in ended.stderr


def test_progress_is_told_in_order(target: Target, layout: Layout) -> None:
    told: list[Any] = []

    async def convert() -> ConversionResult:
        request = ConversionRequest(source=parse_source(layout.source))
        return await convert_image(request, target.repository, told.append)

    result = anyio.run(convert)

    stages = list(dict.fromkeys(progress.stage for progress in told))
    assert stages == ["resolving", "layers", "flattening", "publishing", "done"]
    assert told[-1].bytes_fetched == told[-1].bytes_total == sum(map(len, layout.layers)) == result.bytes_fetched


class StalledSource:
    """A source like another, whose layers stop in their middle and never go on."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self.stalled = anyio.Event()

    def __str__(self) -> str:
        return str(self._source)

    @asynccontextmanager
    async def open(self, _client: object = None) -> AsyncIterator[OpenSource]:
        async with self._source.open() as opened:
            opened.blob = self._blob  # type: ignore[method-assign]
            yield opened

    @asynccontextmanager
    async def _blob(self, _descriptor: Descriptor) -> AsyncIterator[AsyncIterator[bytes]]:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"\x1f\x8b"
            self.stalled.set()
            await anyio.sleep_forever()

        yield pieces()


def test_cancelled_conversion_ends_and_changes_nothing(target: Target, layout: Layout) -> None:
    async def convert() -> bool:
        source = StalledSource(parse_source(layout.source))
        request = ConversionRequest(source=source)  # type: ignore[arg-type]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(convert_image, request, target.repository)
            with anyio.fail_after(20):
                await source.stalled.wait()
            tasks.cancel_scope.cancel()
        return tasks.cancel_scope.cancelled_caught

    assert anyio.run(convert)
    assert target.repository.view().list(b"") == []
