"""Fetching what will be needed: chunks ahead of a sequential reader, trees and profiles on request.

Nothing here can make a read fail: what cannot be fetched is logged, and whoever reads it gets the error. Of files that
are named themselves, as profiles do, the kernel is told too (see warming).
"""

import itertools
import os
from collections import OrderedDict, defaultdict, deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import anyio.lowlevel
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from fs.client.bundles import batches, is_small
from fs.client.cache_writer import CacheFullError
from fs.client.catalogs import CatalogRef
from fs.client.neighbours import SMALL_FILE_BYTES, Around, suffix_of
from fs.client.profile import Read
from fs.client.receiving import ObjectRef
from fs.client.repository import Placed, Repository
from fs.client.warming import Warming, warming
from fs.errors import AbsentError, FsError
from fs.format.entries import Entry, Flag
from fs.format.hashes import Hash
from fs.format.paths import is_below

if TYPE_CHECKING:
    from pathlib import Path

_log = structlog.get_logger()

_STREAKS = 256  # files whose readers are watched
_SLACK_BYTES = 2 << 20  # the kernel's own read-ahead does not ask in order
_STEPS = ((1 << 20, 1), (6 << 20, 2), (24 << 20, 4))  # after so many bytes in sequence, so many chunks ahead
_AHEAD = 4  # chunks fetched ahead at once
_QUEUE = 64
_PARALLEL = 48
_LARGE_AT_ONCE = 6  # enough to fill a link; more would all arrive at the end, instead of in the order of need
_AROUND_AT_ONCE = 16
_BUNDLES_AT_ONCE = 4
_MOST_LISTED = 4096  # entries of a directory that are looked at
_MOST_FOLDERS = 512  # directories
FAR_S = 0.003
"""A server that needs so long for an object is worth fetching beforehand, be it one object at a time."""
_MOST_JOBS = 16
_BACKLOG = 8  # batches
_GATHERED = 256


@dataclass(slots=True)
class _Streak:
    end: int = 0  # up to where it was read
    in_sequence: int = 0  # bytes
    hinted: int = -1  # the last chunk that was asked for


class ReadAhead:
    """Notices sequential readers of files in chunks. Pure: it only says which chunks come next."""

    def __init__(self) -> None:
        self._streaks = OrderedDict[bytes, _Streak]()

    def next_chunks(self, path: bytes, offset: int, size: int, chunk: int, chunks: int) -> range:
        """The numbers of the chunks to fetch now.

        Args:
            path: the file.
            offset: where it is read.
            size: how much.
            chunk: the number of the last chunk that this touches.
            chunks: how many the file has.
        """
        streak = self._streaks.get(path)
        if streak is None:
            streak = self._streaks[path] = _Streak(end=offset)
            if len(self._streaks) > _STREAKS:
                self._streaks.popitem(last=False)
        else:
            self._streaks.move_to_end(path)
        if abs(offset - streak.end) > _SLACK_BYTES:
            self._streaks[path] = streak = _Streak(end=offset)
        streak.in_sequence += size
        streak.end = max(streak.end, offset + size)
        ahead = max((count for least, count in _STEPS if streak.in_sequence >= least), default=0)
        first, last = max(chunk, streak.hinted) + 1, min(chunk + ahead, chunks - 1)
        if last < first:
            return range(0)
        streak.hinted = last
        return range(first, last + 1)


@dataclass(slots=True)
class Progress:
    """How far a prefetch is."""

    files: int = 0  # looked at
    objects: int = 0  # needed by them
    fetched: int = 0
    fetched_bytes: int = 0  # uncompressed
    present: int = 0  # in the cache before
    missing: int = 0  # paths that are not in the repository
    warmed: int = 0  # files that the kernel was told of
    failed: int = 0
    seconds: float = 0.0
    is_done: bool = False


class Prefetcher:
    """Fetches in the background of a mount, while ``running``.

    Args:
        repository: open.
        parallel: transfers of small objects at once, of one job.
    """

    def __init__(self, repository: Repository, *, parallel: int = _PARALLEL) -> None:
        self.looks_ahead = True  # else only what is asked for is fetched
        self.mountpoint: Path | None = None  # if there is one whose kernel shall be warm
        self._repository = repository
        self._parallel = parallel
        self._large = anyio.Semaphore(_LARGE_AT_ONCE)
        self._numbers = itertools.count(1)
        self._jobs = OrderedDict[int, Progress]()
        self._group: anyio.abc.TaskGroup | None = None
        self._around: set[bytes] = set()  # directories that are being looked at
        self._hints: MemoryObjectSendStream[ObjectRef] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work until the end of the block; what is under way then is given up."""
        sending, receiving = anyio.create_memory_object_stream[ObjectRef](_QUEUE)
        async with sending, receiving, anyio.create_task_group() as group:
            self._group, self._hints = group, sending
            for _ in range(_AHEAD):
                group.start_soon(self._fetch_ahead, receiving)
            try:
                yield
            finally:
                self._group = self._hints = None
                group.cancel_scope.cancel()

    def ahead(self, ref: ObjectRef) -> None:
        """A reader will want *ref* soon. Never blocks; in a rush, hints are dropped."""
        if self._hints is None or not self.looks_ahead or self._repository.objects.has(ref):
            return
        try:
            self._hints.send_nowait(ref)
        except anyio.WouldBlock:
            _log.debug("read_ahead_dropped", object=str(ref.hash))

    def around(self, home: CatalogRef, wanted: Around) -> None:
        """Readers will want *wanted*, which is in the catalog *home*."""
        is_inside = wanted.top == home.mountpoint or is_below(wanted.top, home.mountpoint)
        if self._group is not None and self.looks_ahead and is_inside and wanted.top not in self._around:
            self._around.add(wanted.top)
            self._group.start_soon(self._fetch_around, home, wanted)

    async def _fetch_around(self, home: CatalogRef, wanted: Around) -> None:
        try:
            bundles = anyio.Semaphore(_BUNDLES_AT_ONCE)
            singles = anyio.Semaphore(_AROUND_AT_ONCE)
            async with anyio.create_task_group() as group:
                for batch in batches([ref async for ref in self._beside(home, wanted)]):
                    await bundles.acquire()
                    group.start_soon(self._fetch_batch, batch, bundles, singles)
        except FsError as error:
            _log.debug("read_ahead_failed", path=wanted.top.decode("utf-8", "replace"), reason=str(error))
        except Exception:  # noqa: BLE001  # the edge: a fault in here must not take the mount away
            _log.exception("read_ahead_broken")
        finally:
            self._around.discard(wanted.top)

    async def _fetch_batch(self, batch: list[ObjectRef], bundles: anyio.Semaphore, singles: anyio.Semaphore) -> None:
        """Fetch *batch*, by itself if it does not come as a bundle and the server is far away."""
        objects = self._repository.objects
        try:
            left = await objects.fetch_bundle(batch)
            if objects.latencies.typical_s < FAR_S:
                return
            async with anyio.create_task_group() as group:
                for ref in left:
                    await singles.acquire()
                    group.start_soon(self._fetch_single, ref, singles)
        finally:
            bundles.release()

    async def _fetch_single(self, ref: ObjectRef, slots: anyio.Semaphore) -> None:
        try:
            await self._repository.objects.fetch(ref)
        except FsError as error:
            _log.debug("read_ahead_failed", object=str(ref.hash), reason=str(error))
        finally:
            slots.release()

    async def _beside(self, home: CatalogRef, wanted: Around) -> AsyncIterator[ObjectRef]:
        """The objects of *wanted* that are not here, the nearest first; other catalogs are left alone."""
        repository = self._repository
        left = wanted.count
        waiting = deque([wanted.top])
        for _ in range(_MOST_FOLDERS):
            if not waiting:
                return
            folder = waiting.popleft()
            folders: list[bytes] = []
            for found in await repository.catalogs.listing(home, folder, most=_MOST_LISTED):
                if found.entry.is_directory:
                    if wanted.suffix is not None and found.inside == home:
                        folders.append(found.entry.name)
                    continue
                ref = _worth_it(found.entry, wanted.suffix)
                if ref is not None and not repository.objects.has(ref):
                    yield ref
                    left -= 1
                    if not left:
                        return
            after = wanted.after if folder == wanted.top else b""
            waiting += [folder + b"/" + name for name in sorted(folders, key=lambda name: (name <= after, name))]
            await anyio.lowlevel.checkpoint()  # readers are answered meanwhile

    async def _fetch_ahead(self, hints: MemoryObjectReceiveStream[ObjectRef]) -> None:
        async for ref in hints:
            try:
                await self._repository.objects.fetch(ref)
            except (FsError, CacheFullError) as error:
                _log.debug("read_ahead_failed", object=str(ref.hash), reason=str(error))

    def start(self, reads: Sequence[Read], view: bytes = b"") -> int:
        """Begin to fetch what *reads* names, directories with everything below; gives the job's number.

        Files will be looked for in the directory *view*, which shows the repository too (see content_view).
        """
        if self._group is None:
            raise AbsentError("this mount is ending")
        number = next(self._numbers)
        progress = self._jobs[number] = Progress()
        while len(self._jobs) > _MOST_JOBS:
            self._jobs.popitem(last=False)
        self._group.start_soon(self._work, reads, view, progress)
        return number

    def progress(self, job: int) -> Progress:
        """How far *job* is. Raises AbsentError."""
        if job not in self._jobs:
            raise AbsentError(f"there is no prefetch number {job}")
        return self._jobs[job]

    async def _work(self, reads: Sequence[Read], view: bytes, progress: Progress) -> None:
        began = anyio.current_time()
        try:
            if self.mountpoint is None:
                await self.fetch(reads, progress)
            else:
                async with warming(self.mountpoint / os.fsdecode(view).lstrip("/"), reads) as warmed:
                    await self.fetch(reads, progress, warmed)
        except Exception:  # noqa: BLE001  # the edge: a fault in here must not take the mount away
            _log.exception("prefetch_broken")
        finally:
            progress.seconds = round(anyio.current_time() - began, 3)
            progress.is_done = True
        _log.info("prefetched", files=progress.files, objects=progress.fetched, failed=progress.failed)

    async def fetch(self, reads: Iterable[Read], progress: Progress, warmed: Warming | None = None) -> None:
        """Fetch what *reads* names, in order, some at once; *progress* is kept up to date, *warmed* told what came."""
        began = anyio.current_time()
        named: defaultdict[Hash, list[bytes]] = defaultdict(list)  # files that the kernel is to be told of
        sending, receiving = anyio.create_memory_object_stream[list[ObjectRef]](_BACKLOG)

        singles = anyio.Semaphore(self._parallel)

        async def take() -> None:
            async for batch in receiving:
                await self._fetch_listed(batch, progress, singles)
                if warmed is not None:
                    self._tell(batch, named, warmed, progress)
                progress.seconds = round(anyio.current_time() - began, 3)

        async with sending, receiving, anyio.create_task_group() as group:
            for _ in range(self._parallel):
                group.start_soon(take)
            gathered: list[ObjectRef] = []
            for read in reads:
                try:
                    async for ref, path in self._refs(read, progress):
                        progress.objects += 1
                        gathered.append(ref)
                        if warmed is not None and path == read.path and is_small(ref):
                            named[ref.hash].append(path)
                            await self._list_folders(path, warmed)
                        if len(gathered) == _GATHERED:
                            await _send(gathered, sending)
                except FsError as error:
                    progress.failed += 1
                    _log.warning("prefetch_failed", path=read.path.decode("utf-8", "replace"), reason=str(error))
            await _send(gathered, sending)
            sending.close()
        progress.seconds = round(anyio.current_time() - began, 3)

    async def _fetch_listed(self, batch: list[ObjectRef], progress: Progress, singles: anyio.Semaphore) -> None:
        """Fetch *batch*, together as far as the server can."""
        objects = self._repository.objects
        absent = [ref for ref in batch if not objects.has(ref)]
        progress.present += len(batch) - len(absent)
        if len(absent) > 1 and objects.come_in_bundles:
            await objects.fetch_bundle(absent)
        async with anyio.create_task_group() as group:
            for ref in absent:
                if objects.has(ref):
                    progress.fetched += 1
                    progress.fetched_bytes += ref.size or 0
                else:
                    await singles.acquire()
                    group.start_soon(self._fetch_one, ref, progress, singles)

    async def _fetch_one(self, ref: ObjectRef, progress: Progress, singles: anyio.Semaphore) -> None:
        try:
            async with nullcontext() if is_small(ref) else self._large:
                await self._repository.objects.fetch(ref)
        except FsError as error:
            progress.failed += 1
            _log.warning("prefetch_failed", object=str(ref.hash), reason=str(error))
        else:
            progress.fetched += 1
            progress.fetched_bytes += ref.size or 0
        finally:
            singles.release()

    async def _list_folders(self, path: bytes, warmed: Warming) -> None:
        """Let the directories above *path* be listed that hold little else."""
        catalogs, root = self._repository.catalogs, self._repository.revision.root
        for folder, most in warmed.folders(path):
            if await catalogs.is_small(root, folder, most=most):
                warmed.list_folder(folder)

    def _tell(
        self, batch: list[ObjectRef], named: dict[Hash, list[bytes]], warmed: Warming, progress: Progress
    ) -> None:
        """The files of *batch* that came can be read."""
        for ref in batch:
            paths = named.pop(ref.hash, []) if self._repository.objects.has(ref) else []
            for path in paths:
                warmed.read(path, ref.size or 0)
            progress.warmed += len(paths)

    async def _refs(self, read: Read, progress: Progress) -> AsyncIterator[tuple[ObjectRef, bytes]]:
        """The objects of *read*, each with the path of its file. Catalogs on the way are fetched by looking."""
        repository = self._repository
        found = await repository.find(read.path)
        if found is None:
            progress.missing += 1
            return
        waiting = [found]
        while waiting:
            one = waiting.pop()
            if one.entry.is_directory:
                children = await repository.catalogs.listing(one.inside, one.path)
                waiting += [child for child in reversed(children) if not child.entry.has(Flag.HIDDEN)]
            elif one.entry.is_regular and one.entry.size:
                progress.files += 1
                placed = await repository.content(one.home, one.path, one.entry)
                for ref in _chosen(placed, read.chunks if one is found else ()):
                    yield ref, one.path


async def _send(gathered: list[ObjectRef], sending: MemoryObjectSendStream[list[ObjectRef]]) -> None:
    """Hand what was *gathered* on, large objects by themselves, small ones in batches of near order."""
    small = [ref for ref in gathered if is_small(ref)]
    for batch in [*batches(small), *([ref] for ref in gathered if not is_small(ref))]:
        await sending.send(batch)
    gathered.clear()


def _worth_it(entry: Entry, suffix: bytes | None) -> ObjectRef | None:
    """The object of a small file of the kind that is wanted; None if *entry* is none."""
    if entry.hash is None or not entry.is_regular or not 0 < entry.size <= SMALL_FILE_BYTES:
        return None
    if entry.has(Flag.EXTERNAL) or (suffix is not None and suffix_of(entry.name) != suffix):
        return None
    return ObjectRef(entry.hash, compression=entry.compression, size=entry.size)


def _chosen(placed: Placed, chunks: Sequence[int]) -> Iterable[ObjectRef]:
    """The objects of a file; only *chunks* of them if that names any."""
    content = placed.content
    if content.hash is not None:
        return [placed.whole()]
    numbers = [number for number in chunks if 0 <= number < len(content.chunks)] or range(len(content.chunks))
    return [placed.chunk(number) for number in numbers]
