"""HTTP origin of a directory store, as an ASGI application.

Only names of the format are served, nothing else that lies in the storage. Objects never change under their name, so
they may be cached for ever; ``.cvmfs*`` files for about a minute, as with the reference server
(Source: CernVM-FS 2.12, cvmfs_server_apache.sh). ``GET /cvmfs/<name>/events`` announces each new revision at once.
"""

import json
import os
import platform
import re
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from fs.errors import FsError, MalformedError
from fs.format.bundle import (
    MOST_BYTES,
    MOST_OBJECT_BYTES,
    PREFIX,
    encode_bundle,
    object_path,
    parse_bundle_path,
)
from fs.publish.published import MANIFEST, read_manifest
from fs.store.local import LocalStore

_OBJECT = re.compile(r"data/[0-9a-f]{2}/[0-9a-f]{38}(?:-rmd160|-shake128)?[CHLMPX]?")
_NAMED = re.compile(
    r"\.cvmfs(?:published|whitelist|whitelist\.pkcs7|reflog|_master_replica|_last_snapshot|_is_snapshotting|_status\.json)"
)
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")

_FOR_EVER = "public, max-age=31536000, immutable"
_ONE_MINUTE = "public, max-age=61"
_NOT_AT_ALL = "no-store"

_AT_ONCE_BYTES = 1 << 18
_POLL_S = 0.2
_KEEP_ALIVE_S = 15.0


def origin_app(storage: Path, name: str) -> Starlette:
    """The application that serves the repository *name* from directory *storage* below ``/cvmfs/<name>/``."""
    origin = _Origin(storage, name)
    base = f"/cvmfs/{name}"
    return Starlette(
        routes=[
            Route("/cvmfs/info/v1/repositories.json", origin.repositories, methods=["GET"]),
            Route(f"{base}/events", origin.events, methods=["GET"]),
            Route(base + "/{path:path}", origin.file, methods=["GET"]),  # and HEAD
        ]
    )


@dataclass(frozen=True, slots=True)
class _Span:
    """Which bytes of a file are answered, and with which status."""

    status: int
    start: int
    size: int


class _Origin:
    def __init__(self, storage: Path, name: str) -> None:
        self._storage = storage
        self._name = name
        self._announcer = _Announcer(storage, name)

    async def file(self, request: Request) -> Response:
        """An object or one of the named files."""
        path: str = request.path_params["path"]
        if path.startswith(PREFIX) and request.scope["path"].endswith(path):
            return await anyio.to_thread.run_sync(self._bundle, path)
        is_object = _OBJECT.fullmatch(path) is not None
        is_known = is_object or _NAMED.fullmatch(path) is not None
        # the router matches up to a line break at the end, and drops it
        if not is_known or not request.scope["path"].endswith(path):
            return _absent()
        return await anyio.to_thread.run_sync(self._answer, path, request.method, request.headers, is_object)

    def _answer(self, path: str, method: str, headers: Headers, is_object: bool) -> Response:  # noqa: FBT001
        try:
            descriptor = os.open(self._storage / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return _absent()
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            return _absent()
        tag = (
            f'"{path[5:].replace("/", "")}"'
            if is_object
            else f'"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"'
        )
        answer_headers = {
            "Accept-Ranges": "bytes",
            "Cache-Control": _FOR_EVER if is_object else _ONE_MINUTE,
            "Content-Type": "application/octet-stream" if is_object else "application/x-cvmfs",
            "ETag": tag,
        }
        if tag in [known.strip().removeprefix("W/") for known in headers.get("If-None-Match", "").split(",")]:
            os.close(descriptor)
            return Response(status_code=304, headers=answer_headers)
        return _send(descriptor, _span(headers, tag, status.st_size), status.st_size, method, answer_headers)

    def _bundle(self, path: str) -> Response:
        """Many small objects in one answer."""
        try:
            names = parse_bundle_path(path)
        except MalformedError:
            return _absent()
        left = MOST_BYTES
        parts: list[bytes | None] = []
        is_whole = True
        for name in names:
            part = self._small_object(name, min(left, MOST_OBJECT_BYTES))
            parts.append(part)
            left -= len(part or b"")
            is_whole = is_whole and part is not None
        headers = {"Cache-Control": _FOR_EVER if is_whole else _NOT_AT_ALL}
        return Response(encode_bundle(parts), media_type="application/x-unpackd-bundle", headers=headers)

    def _small_object(self, name: str, most_bytes: int) -> bytes | None:
        """The stored form of an object, if it is there and not longer than *most_bytes*."""
        try:
            place = self._storage / object_path(name)
            descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            content = os.read(descriptor, most_bytes + 1)
        except OSError:  # a directory, or a disk that fails
            return None
        finally:
            os.close(descriptor)
        return content if len(content) <= most_bytes else None

    async def repositories(self, _request: Request) -> Response:
        """What this server has, in the form that the reference's servers give."""
        system = platform.freedesktop_os_release()
        document = {
            "schema": 1,
            "cvmfs_version": "unpackd",
            "os_id": system.get("ID", ""),
            "os_version_id": system.get("VERSION_ID", ""),
            "os_pretty_name": system.get("PRETTY_NAME", ""),
            "repositories": [{"name": self._name, "url": f"/cvmfs/{self._name}"}],
            "replicas": [],
        }
        return Response(json.dumps(document), media_type="application/json", headers={"Cache-Control": _ONE_MINUTE})

    async def events(self, _request: Request) -> Response:
        """A stream of server-sent events, one for each revision, the current one first."""
        headers = {"Cache-Control": _NOT_AT_ALL, "X-Accel-Buffering": "no"}
        return StreamingResponse(self._announcer.stream(), media_type="text/event-stream", headers=headers)


def _absent() -> Response:
    # a proxy must not remember that: the object may be there a moment later
    return Response("not found\n", status_code=404, media_type="text/plain", headers={"Cache-Control": _NOT_AT_ALL})


def _span(headers: Headers, tag: str, size: int) -> _Span:
    """What a Range header asks for; one that is malformed, multiple or of another version means the whole."""
    match = _RANGE.fullmatch(headers.get("Range", "").strip())
    if match is None or headers.get("If-Range", tag) != tag or not (match[1] or match[2]):
        return _Span(200, 0, size)
    if match[1]:
        start = int(match[1])
        stop = min(int(match[2]) + 1, size) if match[2] else size
        if match[2] and int(match[2]) < start:
            return _Span(200, 0, size)
    else:
        start, stop = max(size - int(match[2]), 0), size
    if start >= size or stop <= start:
        return _Span(416, 0, 0)
    return _Span(206, start, stop - start)


def _send(descriptor: int, span: _Span, size: int, method: str, headers: dict[str, str]) -> Response:
    """The answer with the bytes of *span*; takes over *descriptor*."""
    if span.status == 206:  # noqa: PLR2004
        headers["Content-Range"] = f"bytes {span.start}-{span.start + span.size - 1}/{size}"
    elif span.status == 416:  # noqa: PLR2004
        headers["Content-Range"] = f"bytes */{size}"
    if method == "HEAD" or span.size <= _AT_ONCE_BYTES:
        content = b"" if method == "HEAD" else os.pread(descriptor, span.size, span.start)
        os.close(descriptor)
        headers["Content-Length"] = str(span.size)
        return Response(content, status_code=span.status, headers=headers)
    headers["Content-Length"] = str(span.size)
    return StreamingResponse(_parts(descriptor, span), status_code=span.status, headers=headers)


async def _parts(descriptor: int, span: _Span) -> AsyncIterator[bytes]:
    try:
        position, end = span.start, span.start + span.size
        while position < end:
            count = min(_AT_ONCE_BYTES, end - position)
            part = await anyio.to_thread.run_sync(os.pread, descriptor, count, position)
            if not part:
                return  # cut behind our back: the length that was promised shows it to the client
            position += len(part)
            yield part
    finally:
        os.close(descriptor)


class _Announcer:
    """Notices new revisions by watching the manifest, whoever publishes."""

    def __init__(self, storage: Path, name: str) -> None:
        self._store = LocalStore(storage)
        self._name = name
        self._known: tuple[int, int, int] | None = None
        self._event = ""

    async def stream(self) -> AsyncIterator[str]:
        """Events and, while nothing happens, comments that keep the connection open."""
        sent = ""
        silent_s = 0.0
        while True:
            event = self._current()
            if event != sent:
                yield event
                sent, silent_s = event, 0.0
            elif silent_s >= _KEEP_ALIVE_S:
                yield ": still here\n\n"
                silent_s = 0.0
            await anyio.sleep(_POLL_S)
            silent_s += _POLL_S

    def _current(self) -> str:
        """The event of the newest revision; the manifest is read again only if its file is another one."""
        try:
            status = (self._store.root / MANIFEST).stat()
            version = (status.st_mtime_ns, status.st_size, status.st_ino)
            if version != self._known:
                manifest = read_manifest(self._store)
                facts = {"repository": self._name, "revision": manifest.revision, "root": str(manifest.root_catalog)}
                self._event = f"event: revision\ndata: {json.dumps(facts)}\n\n"
                self._known = version
        except (OSError, FsError):
            self._known = None  # not there yet, or not readable; looked at again soon
        return self._event
