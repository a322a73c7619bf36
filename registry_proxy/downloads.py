"""Blobs on their way into the cache: fetched once each, followed by any number of readers.

A download belongs to no client. Its task writes to the partial file; readers read from that file what is there and
wait for more. Of a blob that is not yet verified they never get the last bytes, of a small one nothing at all.

All state here changes only on the event loop, between awaits; files are touched in worker threads.
"""

import os
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

import anyio
import anyio.abc
import structlog
from anyio import to_thread

from registry_proxy.cache import Cache
from registry_proxy.errors import (
    AbandonedError,
    DigestMismatchError,
    NoRoomError,
    ProxyError,
    RangeError,
    UnreachableError,
)
from registry_proxy.metrics import Metrics
from registry_proxy.oci.digest import Digest, Hasher
from registry_proxy.upstream import Upstream

PIECE_BYTES = 1 << 18
HELD_BYTES = 1 << 16
"""How much of the end of a blob is kept back until its digest is right."""
_WRITE_INTERVAL_S = 0.05
_POISONED_S = 10.0

_log = structlog.get_logger()


class State(Enum):
    """Where a download is."""

    RUNNING = auto()
    DONE = auto()
    FAILED = auto()


class Download:
    """One blob on its way."""

    def __init__(self, digest: Digest, *, verify_first_bytes: int) -> None:
        self.digest = digest
        self.size_bytes: int | None = None
        self.stored_bytes = 0
        self.state = State.RUNNING
        self.error: ProxyError | None = None
        self.readers = 0
        self._verify_first_bytes = verify_first_bytes
        self._changed = anyio.Event()

    @property
    def readable_bytes(self) -> int:
        """How many bytes from the beginning readers may have now."""
        if self.state is State.DONE:
            return self.stored_bytes
        if self.size_bytes is None or self.size_bytes <= self._verify_first_bytes:
            return 0
        return max(0, min(self.stored_bytes, self.size_bytes - HELD_BYTES))

    def notify(self) -> None:
        """Wake all who wait for a change."""
        self._changed.set()
        self._changed = anyio.Event()

    async def changed(self) -> None:
        """Wait for the next change; raises the error that ended the download."""
        if self.error is not None:
            raise self.error
        await self._changed.wait()

    async def size(self) -> int:
        """The blob's size, as soon as it is known; raises the error that ended the download."""
        while self.size_bytes is None:
            await self.changed()
        return self.size_bytes

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around the use by a reader."""
        self.readers += 1
        try:
            yield
        finally:
            self.readers -= 1


@dataclass(slots=True)
class _Partial:
    """The file of a download, with the hash of what it holds."""

    descriptor: int
    hasher: Hasher
    size_bytes: int

    def append(self, data: bytes) -> None:
        self.hasher.update(data)
        view = memoryview(data)
        while view:
            written = os.pwrite(self.descriptor, view, self.size_bytes)
            self.size_bytes += written
            view = view[written:]

    def restart(self, hasher: Hasher) -> None:
        os.ftruncate(self.descriptor, 0)
        self.hasher, self.size_bytes = hasher, 0


class Downloads:
    """All downloads of a process. Its task group ends them with the process; partial files stay and are resumed."""

    def __init__(
        self,
        cache: Cache,
        metrics: Metrics,
        group: anyio.abc.TaskGroup,
        *,
        verify_first_bytes: int,
        unread_limit_bytes: int,
    ) -> None:
        self._cache = cache
        self._metrics = metrics
        self._group = group
        self._verify_first_bytes = verify_first_bytes
        self._unread_limit_bytes = unread_limit_bytes
        self._running: dict[Digest, Download] = {}
        self._poisoned: dict[Digest, float] = {}

    def __len__(self) -> int:
        return len(self._running)

    def find(self, digest: Digest) -> Download | None:
        """The running download of *digest*."""
        return self._running.get(digest)

    def join(self, upstream: Upstream, repository: str, digest: Digest) -> Download:
        """The running download of *digest*, begun now if there is none."""
        download = self._running.get(digest)
        if download is None:
            download = Download(digest, verify_first_bytes=self._verify_first_bytes)
            self._running[digest] = download
            self._group.start_soon(self._run, download, upstream, repository)
        return download

    def is_poisoned(self, digest: Digest) -> bool:
        """True for some seconds after wrong bytes: nobody may put good ones behind those he got."""
        until_s = self._poisoned.get(digest)
        if until_s is not None and time.monotonic() >= until_s:
            del self._poisoned[digest]
            return False
        return until_s is not None

    async def read(self, download: Download, part: range) -> AsyncGenerator[bytes, None]:
        """The bytes *part* of a download, as far as and as soon as they may be read.

        Raises:
            ProxyError: what ended the download before.
        """
        descriptor: int | None = None
        position = part.start
        try:
            with download.reading():
                while position < part.stop:
                    readable = min(download.readable_bytes, part.stop)
                    if readable <= position:
                        await download.changed()
                        continue
                    if descriptor is None:
                        descriptor = await to_thread.run_sync(self._open, download.digest)
                    length = min(PIECE_BYTES, readable - position)
                    data = await to_thread.run_sync(os.pread, descriptor, length, position)
                    if download.error is not None or not data:
                        raise download.error or UnreachableError(f"blob {download.digest} vanished from the cache")
                    position += len(data)
                    yield data
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _open(self, digest: Digest) -> int:
        try:
            return os.open(self._cache.partial_path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # it has become complete in the meantime
            descriptor = self._cache.open(digest)
        if descriptor is None:
            raise UnreachableError(f"blob {digest} vanished from the cache")
        return descriptor

    async def _run(self, download: Download, upstream: Upstream, repository: str) -> None:
        error: ProxyError | None = None
        try:
            async with upstream.slots:
                with upstream.breaker.watch(upstream.registry):
                    await self._fetch(download, upstream, repository)
        except ProxyError as caught:
            error = caught
        except OSError as caught:
            error = NoRoomError(f"the cache cannot store blob {download.digest}: {caught.strerror}")
        except Exception:  # noqa: BLE001  # the edge of a task: a bug must end this download, not all of them
            _log.exception("download_failed", digest=str(download.digest))
            error = UnreachableError(f"the proxy failed to fetch blob {download.digest}")
        finally:
            del self._running[download.digest]
        if error is None:
            download.state = State.DONE
        else:
            download.state, download.error = State.FAILED, error
            _log.warning("download_ended", digest=str(download.digest), upstream=upstream.name, reason=str(error))
        download.notify()

    async def _fetch(self, download: Download, upstream: Upstream, repository: str) -> None:
        digest = download.digest
        path = self._cache.partial_path(digest)
        partial = await to_thread.run_sync(_open_partial, path, digest)
        try:
            try:
                await self._transfer(download, upstream, repository, partial)
            except RangeError:
                # whatever the file holds cannot be continued: once more, from the beginning
                if download.readable_bytes:
                    raise
                await to_thread.run_sync(partial.restart, digest.hasher())
                await self._transfer(download, upstream, repository, partial)
            _verify(download, partial, upstream.registry)
            await to_thread.run_sync(os.fsync, partial.descriptor)
            await to_thread.run_sync(self._cache.adopt, digest, partial.size_bytes)
        except DigestMismatchError:
            self._metrics.count("corrupt_total", upstream=upstream.name)
            if download.readable_bytes:
                self._poisoned[digest] = time.monotonic() + _POISONED_S
            path.unlink(missing_ok=True)
            raise
        except BaseException:
            if not partial.size_bytes:
                path.unlink(missing_ok=True)
            raise
        finally:
            os.close(partial.descriptor)
        download.stored_bytes = download.size_bytes = partial.size_bytes
        await to_thread.run_sync(self._cache.link, upstream.place(repository), [digest])
        evicted = await to_thread.run_sync(self._cache.evict)
        self._metrics.count("evicted_total", evicted)

    async def _transfer(self, download: Download, upstream: Upstream, repository: str, partial: _Partial) -> None:
        """Fetch what *partial* lacks."""
        self._metrics.count("upstream_requests_total", kind="blob", upstream=upstream.name)
        transfer = upstream.client.transfer(upstream.reference(repository), download.digest, offset=partial.size_bytes)
        waiting = bytearray()
        written_s = time.monotonic()
        async with aclosing(transfer.parts()) as parts:
            async for piece in parts:
                if download.size_bytes is None and transfer.size_bytes is not None:
                    self._begin(download, transfer.size_bytes, partial)
                waiting += piece
                if len(waiting) >= PIECE_BYTES or time.monotonic() - written_s > _WRITE_INTERVAL_S:
                    await self._store(download, upstream, partial, waiting)
                    written_s = time.monotonic()
        await self._store(download, upstream, partial, waiting)

    def _begin(self, download: Download, size_bytes: int, partial: _Partial) -> None:
        if not self._cache.has_room(size_bytes - partial.size_bytes):
            raise NoRoomError(f"the cache has no room for blob {download.digest} of {size_bytes} bytes")
        download.size_bytes = size_bytes
        download.stored_bytes = partial.size_bytes
        download.notify()

    async def _store(self, download: Download, upstream: Upstream, partial: _Partial, waiting: bytearray) -> None:
        if not waiting:
            return
        await to_thread.run_sync(partial.append, bytes(waiting))
        self._metrics.count("fetched_bytes_total", len(waiting), upstream=upstream.name)
        waiting.clear()
        download.stored_bytes = partial.size_bytes
        download.notify()
        left = (download.size_bytes or 0) - partial.size_bytes
        if not download.readers and left > self._unread_limit_bytes:
            raise AbandonedError(f"nobody reads blob {download.digest} any more; what is there is kept")


def _verify(download: Download, partial: _Partial, registry: str) -> None:
    is_whole = download.size_bytes in (None, partial.size_bytes)
    if not is_whole or partial.hasher.hexdigest() != download.digest.hex:
        raise DigestMismatchError(f"the bytes that {registry} gives for blob {download.digest} are others")


def _open_partial(path: Path, digest: Digest) -> _Partial:
    """Open or make a partial file; what it holds is hashed, so that it can be continued."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    partial = _Partial(descriptor, digest.hasher(), 0)
    while data := os.pread(descriptor, PIECE_BYTES, partial.size_bytes):
        partial.hasher.update(data)
        partial.size_bytes += len(data)
    return partial
