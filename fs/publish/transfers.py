"""Bringing objects of another server into a store: verified, many at once, in bounded memory."""

import mmap
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import IO

import anyio

from fs.errors import CorruptError, RefusedError
from fs.format.hashes import Hash, Suffix
from fs.store.base import Buffer

Job = Callable[[], Awaitable[None]]

_IN_MEMORY_BYTES = 16 << 20
_SLACK_BYTES = 4096


class SpoolReceiver:
    """A Receiver that keeps one object as it is stored: in memory while it is small, else in a temporary file."""

    def __init__(self, name: Hash, suffix: Suffix, plain_size: int) -> None:
        self._name = name
        self._shown = f"{name}{suffix.value}"
        self._limit_bytes = plain_size + plain_size // 64 + _SLACK_BYTES  # what zlib adds to hopeless data at most
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self.stored_bytes = 0
        self.begin()

    def begin(self) -> None:
        """See Receiver.begin."""
        self.close()
        self._memory.clear()
        self._hasher = self._name.algorithm.hasher()
        self.stored_bytes = 0

    async def feed(self, piece: bytes) -> None:
        """See Receiver.feed."""
        self.stored_bytes += len(piece)
        if self.stored_bytes > self._limit_bytes:
            raise CorruptError(self._shown, f"it goes on after {self._limit_bytes} bytes")
        self._hasher.update(piece)
        if self._file is None and self.stored_bytes > _IN_MEMORY_BYTES:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
            self._file.write(self._memory)
            self._memory.clear()
        if self._file is None:
            self._memory += piece
        else:
            self._file.write(piece)

    async def finish(self) -> None:
        """See Receiver.finish."""
        if Hash.finish(self._hasher, self._name.algorithm) != self._name:
            raise CorruptError(self._shown)

    @contextmanager
    def stored(self) -> Iterator[Buffer]:
        """The bytes, until the block is left."""
        if self._file is None:
            yield self._memory
            return
        self._file.flush()
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            yield view

    def whole(self) -> bytes:
        """The bytes of an object that must not be large. Raises RefusedError."""
        if self._file is not None:
            self._file.seek(0)
            return self._file.read()
        return bytes(self._memory)

    def close(self) -> None:
        """Forget everything."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Crew:
    """Workers over one stack of jobs, which may add jobs. The newest goes first, so a tree is walked depth first."""

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise RefusedError("at least one transfer at a time is needed")
        self._workers = workers
        self._jobs: list[Job] = []
        self._busy = 0
        self._changed = anyio.Event()
        self._error: Exception | None = None

    def add(self, job: Job) -> None:
        """Let *job* be done soon."""
        self._jobs.append(job)
        self._notify()

    async def run(self) -> None:
        """Return when no job is left. The first error of a job ends all, and is raised."""
        async with anyio.create_task_group() as group:
            for _ in range(self._workers):
                group.start_soon(self._work, group.cancel_scope)
        if self._error is not None:
            raise self._error

    async def _work(self, all_workers: anyio.CancelScope) -> None:
        while self._jobs or self._busy:
            if not self._jobs:
                await self._changed.wait()
                continue
            job = self._jobs.pop()
            self._busy += 1
            try:
                await job()
            except Exception as error:  # noqa: BLE001  # raised again by run, without the group around it
                self._error = self._error or error
                all_workers.cancel()
            finally:
                self._busy -= 1
                self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
