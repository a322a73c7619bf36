"""The origin over a real socket: what it serves, what it never serves, how it announces revisions."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from fs.format.bundle import bundle_path, decode_bundle
from fs.format.compression import Compression
from fs.format.hashes import Suffix
from fs.origin import origin_app
from fs.publish.ingest import Ingester
from fs.publish.operations import PutFile
from fs.publish.packing import Codec, DedupIndex, Packer
from fs.publish.repository import Repository
from fs.runtime.serving import listening_socket
from fs.store.local import LocalStore

NAME = "published.test"
PLAIN = bytes(range(256)) * 3000


@pytest.fixture(scope="module")
def storage(made_keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("origin") / "storage"
    Repository.create(NAME, str(folder), made_keys, durable=False)
    return folder


@pytest.fixture
def repository(storage: Path, made_keys: Path) -> Repository:
    return Repository.open(NAME, str(storage), made_keys, durable=False)


@pytest.fixture(scope="module")
def url(storage: Path) -> Iterator[str]:
    with listening_socket("127.0.0.1", 0) as listener:
        config = uvicorn.Config(origin_app(storage, NAME), log_level="error", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/cvmfs/{NAME}"
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def big(storage: Path) -> str:
    """Path of an object that is larger than what is answered in one piece."""
    store = LocalStore(storage)
    packer = Packer(store, DedupIndex(None), Codec(compression=Compression.NONE))
    content = Ingester(store, packer).add_bytes(PLAIN)
    assert content.hash is not None
    return content.hash.object_path()


def test_objects_are_served_for_ever_and_named_files_for_a_minute(url: str, repository: Repository) -> None:
    root = httpx.get(f"{url}/{repository.manifest.root_catalog.object_path(Suffix.CATALOG)}")
    manifest = httpx.get(f"{url}/.cvmfspublished")

    assert root.status_code == manifest.status_code == 200
    assert "immutable" in root.headers["Cache-Control"]
    assert manifest.headers["Cache-Control"] == "public, max-age=61"
    assert manifest.headers["Content-Type"] == "application/x-cvmfs"
    assert manifest.content.startswith(b"C")


def test_bundles_hold_what_is_there_and_small(url: str, repository: Repository, big: str) -> None:
    root = f"{repository.manifest.root_catalog}{Suffix.CATALOG.value}"
    names = [root, "0" * 40, big.removeprefix("data/").replace("/", ""), root]

    reply = httpx.get(f"{url}/{bundle_path(names)}")

    stored = httpx.get(f"{url}/{repository.manifest.root_catalog.object_path(Suffix.CATALOG)}").content
    assert decode_bundle(reply.content, 4) == [stored, None, None, stored]
    assert (reply.status_code, reply.headers["Cache-Control"]) == (200, "no-store")
    assert "immutable" in httpx.get(f"{url}/{bundle_path([root])}").headers["Cache-Control"]


@pytest.mark.parametrize("path", ["bundle/", "bundle/x", f"bundle/{'0' * 40},", "bundle/.cvmfspublished"])
def test_a_bundle_of_what_is_no_object_is_not_there(url: str, path: str) -> None:
    assert httpx.get(f"{url}/{path}").status_code == 404


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("bytes=0-9", 0, 10), ("bytes=500000-", 500_000, None), ("bytes=-7", -7, None), ("bytes=10-99999999", 10, None)],
)
def test_ranges(url: str, big: str, asked: str, start: int, stop: int | None) -> None:
    reply = httpx.get(f"{url}/{big}", headers={"Range": asked})

    assert reply.status_code == 206
    assert reply.content == PLAIN[start:stop]
    assert reply.headers["Content-Range"].endswith(f"/{len(PLAIN)}")


@pytest.mark.parametrize("asked", ["bytes=a-b", "bytes=5-3", "bytes=0-1,4-5", "lines=1-2", "bytes=-"])
def test_a_range_that_is_none_means_the_whole(url: str, big: str, asked: str) -> None:
    reply = httpx.get(f"{url}/{big}", headers={"Range": asked})

    assert (reply.status_code, reply.content) == (200, PLAIN)


def test_a_range_behind_the_end_cannot_be_satisfied(url: str, big: str) -> None:
    reply = httpx.get(f"{url}/{big}", headers={"Range": f"bytes={len(PLAIN)}-"})

    assert (reply.status_code, reply.headers["Content-Range"]) == (416, f"bytes */{len(PLAIN)}")


def test_head_and_conditional_requests(url: str, big: str, repository: Repository) -> None:
    head = httpx.head(f"{url}/{big}")
    manifest = httpx.get(f"{url}/.cvmfspublished")

    assert (head.status_code, head.content, head.headers["Content-Length"]) == (200, b"", str(len(PLAIN)))
    same = httpx.get(f"{url}/.cvmfspublished", headers={"If-None-Match": manifest.headers["ETag"]})
    assert (same.status_code, same.content) == (304, b"")
    repository.commit([PutFile(b"/f", repository.ingester().add_bytes(b"x"))])
    changed = httpx.get(f"{url}/.cvmfspublished", headers={"If-None-Match": manifest.headers["ETag"]})
    assert changed.status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "",
        "data",
        "data/",
        "data/txn/4711",
        ".publisher/lock",
        ".publisher/contents.db",
        "data/../.publisher/lock",
        "data/%2e%2e/.publisher/lock",
        "..%2fkeys%2fpublished.test.key",
        "data/00/link",
        "data/00/" + "a" * 38,
        "data/00/" + "b" * 38,
        ".cvmfsother",
        ".cvmfspublished/",
        ".cvmfspublished%00",
        ".cvmfspublished%0a",
    ],
)
def test_nothing_else_is_served(url: str, storage: Path, made_keys: Path, path: str) -> None:
    host, port = httpx.URL(url).host, httpx.URL(url).port
    link = storage / "data/00" / ("b" * 38)
    if not link.is_symlink():
        link.symlink_to(made_keys / f"{NAME}.key")

    with socket.create_connection((host, port), timeout=10) as connection:  # a client that does not tidy the path
        connection.sendall(f"GET /cvmfs/{NAME}/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))

    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"no-store" in answer.lower()


def test_other_methods_are_refused(url: str) -> None:
    assert httpx.post(f"{url}/.cvmfspublished").status_code == 405
    assert httpx.delete(f"{url}/.cvmfspublished").status_code == 405


def test_the_list_of_repositories(url: str) -> None:
    document = httpx.get(url.removesuffix(NAME) + "info/v1/repositories.json").json()

    assert document["schema"] == 1
    assert document["repositories"] == [{"name": NAME, "url": f"/cvmfs/{NAME}"}]


def test_each_revision_is_announced_at_once(url: str, repository: Repository) -> None:
    content = repository.ingester().add_bytes(b"x")
    before = repository.manifest.root_catalog
    with httpx.stream("GET", f"{url}/events", timeout=10) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        lines = stream.iter_lines()
        first = next_event(lines)
        started = time.monotonic()
        commit = repository.commit([PutFile(b"/announced", content)])
        second = next_event(lines)
        seconds = time.monotonic() - started

    assert first == {"repository": NAME, "revision": commit.revision - 1, "root": str(before)}
    assert second == {"repository": NAME, "revision": commit.revision, "root": str(commit.root_hash)}
    assert seconds < 2


def next_event(lines: Iterator[str]) -> dict[str, object]:
    assert next(line for line in lines if line) == "event: revision"
    document: dict[str, object] = json.loads(next(lines).removeprefix("data: "))
    return document
