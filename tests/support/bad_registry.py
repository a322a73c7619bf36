"""A registry that misbehaves when it is told to, and writes down every request."""

import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, urlsplit

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
Kind = Literal["manifests", "blobs", "tags", "token"]


def digest_of(data: bytes) -> str:
    """``sha256:<hex>``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(slots=True)
class Fault:
    """Something that goes wrong with requests of one kind.

    Actions: ``status`` (value: number), ``cut`` (value: bytes of the body before the connection is closed), ``reset``,
    ``flip`` (value: offset of the byte), ``length`` (value: how many bytes too many are announced), ``drip`` (value:
    bytes a second), ``wait`` (value: seconds before the answer), ``whole`` (ranges are ignored), ``type``,
    ``encoding``, ``location`` (text), ``other`` (text: the body), ``no-digest``, ``empty``, ``headers``.
    """

    kind: Kind
    action: str
    value: float = 0
    text: str = ""
    times: int | None = None  # how often; None: always
    method: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seen:
    """One request."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]


class BadRegistry:
    """Content and faults; may be changed while it runs."""

    def __init__(self) -> None:
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}  # (repository, tag or digest)
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.tags: dict[str, list[str]] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.host = ""
        self.token: str | None = None  # wanted as Bearer if set
        self.basic: str | None = None  # wanted as Basic if set
        self.realm = ""
        self.page = 1000
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def add_blob(self, repository: str, data: bytes) -> str:
        self.blobs[repository, digest_of(data)] = data
        return digest_of(data)

    def add_manifest(self, repository: str, tag: str, body: bytes, media_type: str = MANIFEST) -> str:
        for name in (tag, digest_of(body)):
            self.manifests[repository, name] = (media_type, body)
        self.tags.setdefault(repository, []).append(tag)
        return digest_of(body)

    def add_image(self, repository: str, tag: str, layers: list[bytes]) -> str:
        """An image of *layers*, uncompressed blobs of any bytes; gives the manifest's digest."""
        config = json.dumps(
            {
                "os": "linux",
                "architecture": "amd64",
                "rootfs": {"type": "layers", "diff_ids": [digest_of(one) for one in layers]},
            }
        ).encode()
        described = [
            {"mediaType": kind, "digest": self.add_blob(repository, data), "size": len(data)}
            for kind, data in [(CONFIG, config), *((LAYER, one) for one in layers)]
        ]
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described[0], "layers": described[1:]}
        return self.add_manifest(repository, tag, json.dumps(document).encode())

    def count(self, method: str, part: str) -> int:
        """How many requests of *method* had *part* in their path."""
        return sum(one.method == method and part in one.path for one in self.seen)

    def take_fault(self, kind: str, method: str) -> list[Fault]:
        with self.lock:
            found = [one for one in self.faults if one.kind == kind and one.method in (None, method) and one.times != 0]
            for one in found:
                if one.times is not None:
                    one.times -= 1
            return found


@contextmanager
def bad_registry() -> Iterator[BadRegistry]:
    """A registry on a free port of loopback, ended with the block."""
    registry = BadRegistry()

    class Handler(_Handler):
        content = registry

    server = _Server(("127.0.0.1", 0), Handler)
    registry.host = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    content: BadRegistry
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Requests are in ``seen``."""

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._handle()

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        with self.content.lock:
            self.content.seen.append(Seen(self.command, parts.path, query, dict(self.headers.items())))
        if parts.path == "/token":
            self._answer("token", 200, {"Content-Type": "application/json"}, self._token())
            return
        if self._is_unauthorised():
            return
        name = parts.path.removeprefix("/v2/")
        if name in ("", "_catalog"):
            names = sorted({repository for repository, _ in self.content.manifests})
            self._answer("tags", 200, {}, json.dumps({"repositories": names}).encode())
        elif name.endswith("/tags/list"):
            self._tags(name.removesuffix("/tags/list"), query)
        elif "/manifests/" in name:
            repository, _, item = name.rpartition("/manifests/")
            found = self.content.manifests.get((repository, item))
            if found is None:
                self._error("manifests", 404, "MANIFEST_UNKNOWN")
            else:
                headers = {"Content-Type": found[0], "Docker-Content-Digest": digest_of(found[1])}
                self._answer("manifests", 200, headers, found[1])
        else:
            repository, _, item = name.rpartition("/blobs/")
            data = self.content.blobs.get((repository, item))
            if data is None:
                self._error("blobs", 404, "BLOB_UNKNOWN")
            else:
                headers = {
                    "Docker-Content-Digest": item,
                    "ETag": f'"{item}"',
                    "Content-Type": "application/octet-stream",
                }
                self._answer("blobs", 200, headers, data)

    def _token(self) -> bytes:
        return json.dumps({"token": self.content.token, "expires_in": 300}).encode()

    def _is_unauthorised(self) -> bool:
        given = self.headers.get("Authorization")
        if self.content.token is not None and given != f"Bearer {self.content.token}":
            realm = self.content.realm or f"{self.content.url}/token"
            challenge = f'Bearer realm="{realm}",service="test",scope="repository:x:pull"'
        elif self.content.basic is not None and given != self.content.basic:
            challenge = 'Basic realm="test"'
        else:
            return False
        self._error("auth", 401, "UNAUTHORIZED", {"WWW-Authenticate": challenge})
        return True

    def _tags(self, repository: str, query: dict[str, list[str]]) -> None:
        tags = self.content.tags.get(repository)
        if tags is None:
            self._error("tags", 404, "NAME_UNKNOWN")
            return
        after = query.get("last", [""])[0]
        left = [tag for tag in sorted(tags) if tag > after]
        page, headers = left[: self.content.page], {"Content-Type": "application/json"}
        if len(left) > len(page):
            headers["Link"] = f'</v2/{repository}/tags/list?last={page[-1]}>; rel="next"'
        self._answer("tags", 200, headers, json.dumps({"name": repository, "tags": page or None}).encode())

    def _error(self, kind: str, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        body = json.dumps({"errors": [{"code": code, "message": "as the test wants it"}]}).encode()
        self._answer(kind, status, {"Content-Type": "application/json", **(headers or {})}, body)

    def _answer(self, kind: str, status: int, headers: dict[str, str], body: bytes) -> None:
        faults = {one.action: one for one in self.content.take_fault(kind, self.command)}
        if "wait" in faults:
            time.sleep(faults["wait"].value)
        if "reset" in faults:
            self._reset()
            return
        status, body = self._altered(faults, status, headers, body)
        is_blob = status == 200 and kind == "blobs" and "whole" not in faults
        first = self._asked_part(len(body)) if is_blob else None
        if first is not None and first[0] >= len(body):
            status, headers["Content-Range"], body = 416, f"bytes */{len(body)}", b""
        elif first is not None:
            status = 206
            headers["Content-Range"] = f"bytes {first[0]}-{first[1]}/{len(body)}"
            body = body[first[0] : first[1] + 1]
        self._send(status, headers, body, faults)

    def _altered(
        self, faults: dict[str, Fault], status: int, headers: dict[str, str], body: bytes
    ) -> tuple[int, bytes]:
        if "status" in faults:
            status = int(faults["status"].value)
            body = json.dumps({"errors": [{"code": "X", "message": "fault"}]}).encode()
            headers.update(faults["status"].headers)
        if "location" in faults:
            status, body = 307, b""
            headers["Location"] = faults["location"].text
        if "headers" in faults:
            headers.update(faults["headers"].headers)
        if "type" in faults:
            headers["Content-Type"] = faults["type"].text
        if "encoding" in faults:
            headers["Content-Encoding"] = faults["encoding"].text
        if "no-digest" in faults:
            headers.pop("Docker-Content-Digest", None)
        if "other" in faults:
            body = faults["other"].text.encode()
        if "flip" in faults and body:
            at = int(faults["flip"].value) % len(body)
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        return status, b"" if "empty" in faults else body

    def _asked_part(self, size: int) -> tuple[int, int] | None:
        asked = self.headers.get("Range")
        if asked is None:
            return None
        begin, _, end = asked.removeprefix("bytes=").partition("-")
        return int(begin), min(int(end) if end else size - 1, size - 1)

    def _send(self, status: int, headers: dict[str, str], body: bytes, faults: dict[str, Fault]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        extra = int(faults["length"].value) if "length" in faults else 0
        self.send_header("Content-Length", str(len(body) + extra))
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            if "drip" in faults:
                self._drip(body, faults["drip"].value)
            elif "cut" in faults and int(faults["cut"].value) < len(body):
                self.wfile.write(body[: int(faults["cut"].value)])
                self.close_connection = True
            else:
                self.wfile.write(body)
                self.close_connection = extra > 0
        except OSError:
            self.close_connection = True

    def _drip(self, body: bytes, bytes_s: float) -> None:
        step = max(1, int(bytes_s / 20))
        for at in range(0, len(body), step):
            self.wfile.write(body[at : at + step])
            time.sleep(step / bytes_s)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
