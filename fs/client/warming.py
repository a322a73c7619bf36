"""Telling the kernel beforehand what a start will ask for: a look-up and a read less for each of its files.

There is no way to push names into the kernel, but whoever lists a directory leaves all its names and attributes there,
and whoever asks for read-ahead leaves the pages. So a process of its own (``warm_kernel``) does that through the mount,
for the files of a profile, as soon as their objects have arrived. A thread of the daemon will not do: a daemon
that is killed while one of its threads waits for its answer would never end.

What is warmed is bounded; it counts as read (in profiles that are recorded too, which stay whole that way). If the
process fails, files are read as if there were none.
"""

import math
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.abc
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from fs.client.profile import Read
from fs.format.paths import parent_path

_log = structlog.get_logger()

_MOST_FILES = 16_384
_MOST_BYTES = 256 << 20
_UNASKED_NAMES = 64  # that may be listed in a directory, whatever is wanted of it
_UNASKED_SHARE = 8  # for each that is wanted
_END_S = 60.0
_KILLED_S = 1.0


class Warming:
    """One job. Nothing here waits for the kernel.

    Args:
        reads: everything that will be read.
        told: takes records for ``warm_kernel``.
    """

    def __init__(self, reads: Iterable[Read], told: MemoryObjectSendStream[bytes]) -> None:
        self._wanted = _wanted(read.path for read in reads)
        self._told = told
        self._looked_at: set[bytes] = set()
        self._files = 0
        self._bytes = 0

    def folders(self, path: bytes) -> Iterator[tuple[bytes, int]]:
        """The directories above *path*, from the root on, that were not given yet.

        Each comes with the number of entries up to which it is worth listing: what is wanted of it is not much less.
        """
        above: list[bytes] = []
        while path and (path := parent_path(path)) not in self._looked_at:
            self._looked_at.add(path)
            above.append(path)
        for folder in reversed(above):
            yield folder, _UNASKED_NAMES + _UNASKED_SHARE * self._wanted[folder]

    def list_folder(self, folder: bytes) -> None:
        """The names in *folder* will be wanted."""
        self._tell(b"l" + folder)

    def read(self, path: bytes, size: int) -> None:
        """The *size* bytes of the file *path* are at hand."""
        if self._files < _MOST_FILES and self._bytes + size <= _MOST_BYTES:
            self._files += 1
            self._bytes += size
            self._tell(b"r" + path)

    def _tell(self, record: bytes) -> None:
        try:
            self._told.send_nowait(record + b"\0")
        except anyio.BrokenResourceError:  # the process is gone, which was logged
            return


@asynccontextmanager
async def warming(mountpoint: Path, reads: Iterable[Read]) -> AsyncIterator[Warming]:
    """Warm the kernel for *mountpoint* in the block; its end waits until that is done, or was not in a minute."""
    sending, receiving = anyio.create_memory_object_stream[bytes](math.inf)
    async with anyio.create_task_group() as group:
        group.start_soon(_run, mountpoint, receiving)
        async with sending:
            yield Warming(reads, sending)
        group.cancel_scope.deadline = anyio.current_time() + _END_S


async def _run(mountpoint: Path, records: MemoryObjectReceiveStream[bytes]) -> None:
    program = Path(__file__).with_name("warm_kernel.py")
    command = [sys.executable, "-I", "-S", str(program), str(mountpoint)]
    async with records:
        try:
            process = await anyio.open_process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except OSError as error:
            _log.warning("kernel_not_warmed", reason=error.strerror)
            return
        try:
            await _feed(process, records)
        except anyio.BrokenResourceError:
            _log.warning("kernel_not_warmed", reason="the process that does it ended")
        finally:
            if process.returncode is None:
                process.kill()
                with anyio.move_on_after(_KILLED_S, shield=True):  # not longer: it may wait for an answer of ours
                    await process.wait()


async def _feed(process: anyio.abc.Process, records: MemoryObjectReceiveStream[bytes]) -> None:
    """Give *process* all *records*, and wait until it has ended. Raises anyio.BrokenResourceError."""
    stdin = process.stdin
    assert stdin is not None  # noqa: S101  # for the type checker: a pipe was asked for
    async with stdin:
        async for record in records:
            together = [record]
            with suppress(anyio.WouldBlock, anyio.EndOfStream):
                while True:
                    together.append(records.receive_nowait())
            await stdin.send(b"".join(together))
    await process.wait()


def _wanted(paths: Iterable[bytes]) -> Counter[bytes]:
    """How many entries of each directory lead to *paths*."""
    wanted = Counter[bytes]()
    seen: set[bytes] = set()
    for path in paths:
        child = path
        while child and child not in seen:
            seen.add(child)
            child = parent_path(child)
            wanted[child] += 1
    return wanted
