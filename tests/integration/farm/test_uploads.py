"""Blobs that users send: what is taken, what is refused, what goes away."""

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from converter.errors import UploadError, UploadTooLargeError
from converter.farm_config import FarmSettings, sqlite_url
from converter.farm_database import FarmDatabase
from converter.uploads import UploadLimits, UploadSpool, uploaded_layout
from converter.web.app import web_app
from converter.web.services import Services
from converter.wishes import apply_text
from registry_proxy.oci.digest import Digest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it would rather have another HTTP library than the one this project uses
    from starlette.testclient import TestClient

REPOSITORY = "unpacked.test.local"
CONFIG, LAYER = b'{"rootfs":{"type":"layers","diff_ids":[]}}', b"layer"
NAME = "users.example/me/tool:1"


def described(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data)}


def manifest(layer: bytes = LAYER, size: int | None = None) -> bytes:
    layers = [described("application/vnd.oci.image.layer.v1.tar", layer)]
    if size is not None:
        layers[0]["size"] = size
    config = described("application/vnd.oci.image.config.v1+json", CONFIG)
    kind = "application/vnd.oci.image.manifest.v1+json"
    return json.dumps({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers}).encode()


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    database = FarmDatabase(sqlite_url(tmp_path / "farm.sqlite"))
    settings = FarmSettings(upload_directory=tmp_path / "uploads", upload_blob_bytes=1000, upload_total_bytes=2000)
    yield Services.of(REPOSITORY, database, settings)
    database.close()


@pytest.fixture
def web(services: Services) -> TestClient:
    return TestClient(web_app(services), base_url="http://127.0.0.1:8480", client=("127.0.0.1", 50000))


def put(web: TestClient, data: bytes) -> int:
    status: int = web.put(f"/api/v1/uploads/{Digest.of(data)}", content=data).status_code
    return status


def ask(web: TestClient, body: bytes, name: str = NAME) -> tuple[int, dict[str, object]]:
    answer = web.post("/api/v1/conversions", json={"reference": name, "manifest": str(Digest.of(body))})
    return answer.status_code, answer.json()


def test_an_image_is_sent_once_and_becomes_a_job(web: TestClient, services: Services, tmp_path: Path) -> None:
    body = manifest()
    assert web.head(f"/api/v1/uploads/{Digest.of(LAYER)}").status_code == 404
    assert ask(web, body) == (409, {"error": f"not sent yet: {Digest.of(body)}", "missing": [str(Digest.of(body))]})
    assert (put(web, body), put(web, LAYER), put(web, LAYER)) == (201, 201, 200)
    assert ask(web, body)[1]["missing"] == [str(Digest.of(CONFIG))]
    put(web, CONFIG)

    assert ask(web, body)[0] == 202

    image = services.views.image(NAME)
    assert (image.state, image.digest, image.requested) == ("queued", str(Digest.of(body)), False)
    layout = uploaded_layout(tmp_path / "uploads", str(Digest.of(body)))
    assert layout is not None
    assert (layout / "blobs" / "sha256" / Digest.of(LAYER).hex).read_bytes() == LAYER


def test_bytes_that_are_not_what_the_digest_says_leave_nothing(web: TestClient, tmp_path: Path) -> None:
    path = f"/api/v1/uploads/{Digest.of(LAYER)}"

    assert "do not have the digest" in web.put(path, content=b"other").json()["error"]
    assert web.put(path, content=b"x" * 1001).status_code == 413
    assert web.put(path, content=iter([LAYER])).status_code == 411  # chunked, so that nobody knows how much it is
    assert web.put("/api/v1/uploads/sha256:short", content=LAYER).status_code == 400
    assert web.put("/api/v1/uploads/md5:" + "a" * 32, content=LAYER).status_code == 400
    assert web.head(path).status_code == 404
    assert [file for file in (tmp_path / "uploads").rglob("*") if file.is_file()] == []


def test_what_is_no_image_is_refused(web: TestClient, services: Services) -> None:
    for data in (LAYER, CONFIG, manifest(size=99)):
        put(web, data)

    assert ask(web, LAYER)[0] == 400
    assert "which is not so" in str(ask(web, manifest(size=99))[1]["error"])
    assert ask(web, LAYER, f"users.example/x@{Digest.of(LAYER)}")[0] == 400
    apply_text(
        services.wishes, REPOSITORY, "w", f"cvmfs_repo: {REPOSITORY}\ninput: ['users.example/me/tool:*']".encode()
    )
    assert "is wished" in str(ask(web, LAYER)[1]["error"])


def test_only_with_the_token(services: Services) -> None:
    guarded = replace(services, api_token=SecretStr("secret"))
    web = TestClient(web_app(guarded), base_url="http://farm.example", client=("10.0.0.9", 50000))
    assert (put(web, LAYER), web.head(f"/api/v1/uploads/{Digest.of(LAYER)}").status_code) == (401, 401)
    web.headers["Authorization"] = "Bearer secret"
    assert put(web, LAYER) == 201
    closed = TestClient(web_app(replace(guarded, uploads=None)), headers=web.headers)
    assert put(closed, LAYER) == 403


def test_the_spool_is_bounded_and_forgets(tmp_path: Path) -> None:
    now = [1000.0]
    spool = UploadSpool(tmp_path, UploadLimits(blob_bytes=100, total_bytes=150, keep_s=60), clock=lambda: now[0])

    def send(data: bytes) -> None:
        with spool.begin(Digest.of(data), len(data)) as incoming:
            incoming.write(data)
            incoming.finish()
        assert spool.has(Digest.of(data))

    send(b"a" * 100)
    with pytest.raises(UploadTooLargeError):
        send(b"b" * 100)
    now[0] += 61
    send(b"b" * 100)
    assert not spool.has(Digest.of(b"a" * 100))
    with spool.begin(Digest.of(b"cc"), 2) as incoming:
        incoming.write(b"c")
        with pytest.raises(UploadError, match="1 bytes of"):
            incoming.finish()
        with pytest.raises(UploadError, match="more bytes than announced"):
            incoming.write(b"cc")


def test_a_name_that_was_pushed_can_be_pushed_again(services: Services, web: TestClient) -> None:
    jobs = services.jobs
    for data in (manifest(), CONFIG, LAYER):
        put(web, data)
    ask(web, manifest())
    claim = jobs.claim(1, "me", lambda _: False)
    assert claim is not None
    jobs.fail(claim, "no", transient=False)

    assert ask(web, manifest())[0] == 202

    assert services.views.image(NAME).state == "queued"
