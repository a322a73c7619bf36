"""The local object cache: a directory of uncompressed objects with a quota in bytes.

========================  ==========================================================================
below the directory       content
========================  ==========================================================================
``objects/<2>/<rest>``    objects, named by the hash of their *stored* form; see object_file.py
``incoming/``             objects that are still arriving; emptied at each start
``pins/``                 what is not removed to make room; see pins.py
``lock``                  held by the process that uses the directory
``newest.json`` …         what repository.py keeps beside the objects
========================  ==========================================================================

There is no index that could disagree with the files: a start reads the names, sizes and times of the objects. An
object is there as a whole or not at all (temporary file, rename); nothing is synced, because a file that a power cut
spoilt fails its checksums and is fetched again. One process at a time uses a directory.
"""

import errno
import fcntl
import itertools
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from fs.client.object_file import Checksums, ObjectFile
from fs.errors import CorruptError, FsError, LockedError, RefusedError
from fs.format.hashes import Hash

_log = structlog.get_logger()

_OPEN_FILES = 256
_KEPT_SHARE = 0.75  # of the quota, after a clean-up
_KEPT_PINNED_SHARE = 0.95  # if pinned objects have to go


class CacheFullError(FsError):
    """The cache cannot take an object now (disk full, read-only, failing); it has to be served past it."""


@dataclass(slots=True)
class CacheCounts:
    """What happened since the start."""

    hits: int = 0
    misses: int = 0
    stored: int = 0
    damaged: int = 0
    evicted: int = 0
    evicted_pinned: int = 0  # of those
    cleanups: int = 0
    refused: int = 0  # objects that the disk did not take


class ObjectCache:
    """Objects on disk, least recently used ones go first. Not thread-safe: it belongs to one event loop.

    Args:
        directory: made if it is absent, readable by its owner only.
        quota_bytes: what the objects may take. While an object arrives, and if a single one is larger than the
            quota, it is exceeded by that object.
    """

    def __init__(self, directory: Path, quota_bytes: int) -> None:
        self.directory = directory
        self.quota_bytes = quota_bytes
        self.counts = CacheCounts()
        self._objects = directory / "objects"
        self._incoming = directory / "incoming"
        self._sizes: OrderedDict[str, int] = OrderedDict()  # bytes on disk, least recently used first
        self._used_bytes = 0
        self._open: OrderedDict[str, ObjectFile] = OrderedDict()
        self._held: dict[str, int] = {}  # how many pins hold an object, which need not be here
        self._touched: set[str] = set()  # whose time of use was written in this life
        self._pins = Counter[str]()  # what makes no room for others
        self._serials = itertools.count(1)
        self._lock = -1

    @property
    def used_bytes(self) -> int:
        """What the objects take on disk."""
        return self._used_bytes

    @property
    def object_count(self) -> int:
        """How many objects there are."""
        return len(self._sizes)

    @property
    def held_bytes(self) -> int:
        """What the objects take that trees in use hold, open catalogs not counted."""
        return sum(self._sizes.get(name, 0) for name in self._held)

    def hold(self, name: str) -> None:
        """Keep the object *name* as long as anything else can go; to be released as often as it is held."""
        self._held[name] = self._held.get(name, 0) + 1

    def release(self, name: str) -> None:
        """Inverse of ``hold``."""
        count = self._held.get(name, 0)
        if count > 1:
            self._held[name] = count - 1
        else:
            self._held.pop(name, None)

    def start(self, *, lock_timeout_s: float = 5.0, lock: int = -1) -> None:
        """Lock the directory, remove what a crash left and learn what is there. Blocks for the disk.

        Args:
            lock_timeout_s: how long to wait for it.
            lock: descriptor of the file that is locked already, if it is.

        Raises:
            LockedError: another process uses it.
            RefusedError: the directory cannot be made or written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = lock
            if lock < 0:
                self._take_lock(lock_timeout_s)
            self._incoming.mkdir(exist_ok=True, mode=0o700)
            self._objects.mkdir(exist_ok=True, mode=0o700)
            for leftover in self._incoming.iterdir():
                leftover.unlink()
            self._scan()
        except OSError as error:
            self.close()
            raise RefusedError(f"the cache directory {self.directory} cannot be used: {error.strerror}") from error
        self.make_room(0)

    def _take_lock(self, timeout_s: float) -> None:
        self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    self.close()
                    raise LockedError(
                        f"the cache directory {self.directory} is in use by another mount; name another with --cache"
                    ) from None
                time.sleep(0.05)
            else:
                return

    def _scan(self) -> None:
        found: list[tuple[int, str, int]] = []
        for folder in self._objects.iterdir():
            with os.scandir(folder) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_atime_ns, folder.name + entry.name, status.st_size))
        found.sort()
        self._sizes = OrderedDict((name, size) for _, name, size in found)
        self._used_bytes = sum(self._sizes.values())

    def _path(self, name: str) -> str:
        return f"{self._objects}/{name[:2]}/{name[2:]}"

    def find(self, name: Hash) -> ObjectFile | None:
        """The object called *name*, or None. It stays open as long as others do not push it out: use it at once.

        A file that is not what it should be is removed, and a log line says so.
        """
        text = str(name)
        opened = self._open.get(text)
        if opened is None:
            opened = self._open_file(text)
            if opened is None:
                self.counts.misses += 1
                return None
        self.counts.hits += 1
        self._open.move_to_end(text)
        self._use(text, opened)
        return opened

    def __contains__(self, name: Hash) -> bool:
        return str(name) in self._sizes

    def pin(self, name: Hash) -> None:
        """Keep the object called *name*, which may not have arrived yet, whatever room is needed; ``unpin`` ends it."""
        self._pins[str(name)] += 1

    def unpin(self, name: Hash) -> None:
        """Take one ``pin`` back."""
        text = str(name)
        self._pins[text] -= 1
        if self._pins[text] <= 0:
            del self._pins[text]

    @property
    def pinned_bytes(self) -> int:
        """What pinned objects take on disk."""
        return sum(self._sizes.get(text, 0) for text in self._pins)

    def path_of(self, name: Hash) -> str:
        """Where the object called *name* lies or would lie."""
        return self._path(str(name))

    def open_private(self, name: Hash) -> ObjectFile:
        """Open the object for a caller that keeps it open and closes it. Raises CorruptError, OSError."""
        opened = ObjectFile(os.open(self.path_of(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), str(name))
        self.counts.hits += 1
        self._use(str(name), opened)
        return opened

    def _use(self, text: str, opened: ObjectFile) -> None:
        if text in self._sizes:
            self._sizes.move_to_end(text)
        if text not in self._touched:
            self._touch(text, opened)

    def _open_file(self, text: str) -> ObjectFile | None:
        try:
            descriptor = os.open(self._path(text), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            opened = ObjectFile(descriptor, text)
        except FileNotFoundError:
            self._forget(text)
            return None
        except (CorruptError, OSError) as error:
            self.discard(text, error)
            return None
        self._open[text] = opened
        if len(self._open) > _OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return opened

    def _touch(self, text: str, opened: ObjectFile) -> None:
        """Write the time of use, once a life, so that the order of use survives a restart."""
        self._touched.add(text)
        modified_ns = opened.state()[0]
        try:
            os.utime(opened.fileno(), ns=(time.time_ns(), modified_ns))
        except OSError as error:
            _log.debug("cache_time_of_use_not_written", object=text, reason=error.strerror)

    def discard(self, name: str | Hash, error: Exception) -> None:
        """Remove an object that *error* says is damaged."""
        text = str(name)
        self.counts.damaged += 1
        _log.error("cache_object_damaged", object=text, reason=str(error), path=self._path(text))
        self._remove(text)

    def _remove(self, text: str) -> None:
        try:
            os.unlink(self._path(text))  # noqa: PTH108  # on the way of every eviction
        except OSError as error:
            if error.errno != errno.ENOENT:
                _log.warning("cache_object_not_removed", object=text, reason=error.strerror)
        self._forget(text)

    def _forget(self, text: str) -> None:
        self._used_bytes -= self._sizes.pop(text, 0)
        self._touched.discard(text)
        opened = self._open.pop(text, None)
        if opened is not None:
            opened.close()

    def writer(self, name: Hash, *, expected_bytes: int = 0) -> "CacheWriter":
        """Begin to store an object; room for *expected_bytes* is made first.

        Raises:
            CacheFullError: the disk does not take it.
        """
        self.make_room(expected_bytes)
        path = self.temporary_path()
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self.full(error) from error
        return CacheWriter(self, str(name), path, descriptor)

    def full(self, error: OSError) -> CacheFullError:
        """The error to raise for a write that failed; makes room if the disk is full."""
        self.counts.refused += 1
        _log.warning("cache_refuses_object", reason=error.strerror, directory=str(self.directory))
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            self.shrink(self._used_bytes // 2)
        return CacheFullError(f"the cache {self.directory} takes nothing: {error.strerror}")

    def temporary_path(self) -> str:
        """Where an object that is still arriving can be written. Any thread may call this."""
        return f"{self._incoming}/{next(self._serials)}"

    def adopt(self, text: str, temporary: str, file_bytes: int) -> None:
        """Put the finished file *temporary* in its place. Raises OSError."""
        self.place(temporary, text)
        self.count(text, file_bytes)

    def place(self, temporary: str, text: str) -> None:
        """Put the finished file *temporary* in its place; ``count`` must follow. Any thread may call this.

        Raises:
            OSError: the disk does not take it.
        """
        place = self._path(text)
        try:
            os.rename(temporary, place)  # noqa: PTH104  # one system call
        except FileNotFoundError:
            os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120  # names are text here
            os.rename(temporary, place)  # noqa: PTH104  # one system call

    def count(self, text: str, file_bytes: int) -> None:
        """The object called *text* is in its place."""
        self._forget(text)
        self._sizes[text] = file_bytes
        self._used_bytes += file_bytes
        self._touched.add(text)
        self.counts.stored += 1
        if self._used_bytes > self.quota_bytes:
            self.make_room(0, keep=text)

    def make_room(self, coming_bytes: int, keep: str = "") -> None:
        """Remove what was not used for long if *coming_bytes* more would not fit, but neither *keep* nor pins."""
        if self._used_bytes + coming_bytes > self.quota_bytes:
            self.shrink(max(0, int(self.quota_bytes * _KEPT_SHARE) - coming_bytes), keep=keep)

    def shrink(self, target_bytes: int, *, keep: str = "") -> None:
        """Remove least recently used objects until at most *target_bytes* are in use: neither *keep* nor pins.

        What trees hold goes only if that alone is more than fits: a cache that takes nothing would make every read of
        a new object a transfer.
        """
        if self._used_bytes <= target_bytes:
            return
        self.counts.cleanups += 1
        removable = [text for text in self._sizes if text != keep and text not in self._pins]
        self._evict(target_bytes, [text for text in removable if text not in self._held])
        pinned_target = max(target_bytes, int(self.quota_bytes * _KEPT_PINNED_SHARE))
        if self._used_bytes > pinned_target and self._held:
            before = self.counts.evicted
            self._evict(pinned_target, [text for text in removable if text in self._held])
            self.counts.evicted_pinned += self.counts.evicted - before
            _log.warning("cache_too_small_for_pins", held_bytes=self.held_bytes, quota_bytes=self.quota_bytes)
        _log.info("cache_cleaned", used_bytes=self._used_bytes, target_bytes=target_bytes)

    def _evict(self, target_bytes: int, names: Sequence[str]) -> None:
        for text in names:
            if self._used_bytes <= target_bytes:
                break
            self._remove(text)
            self.counts.evicted += 1

    def names(self) -> Iterator[str]:
        """The objects' names, least recently used first."""
        return iter(list(self._sizes))

    def close(self) -> None:
        """Close all files and give the lock up."""
        while self._open:
            self._open.popitem()[1].close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class CacheWriter:
    """An object on its way into the cache: write, then commit; leaving the context without commit removes it."""

    def __init__(self, cache: ObjectCache, name: str, path: str, descriptor: int) -> None:
        self._cache = cache
        self._name = name
        self._path = path
        self._descriptor = descriptor
        self._checksums = Checksums()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            os.unlink(self._path)  # noqa: PTH108  # one system call

    @property
    def size_bytes(self) -> int:
        """What was written so far."""
        return self._checksums.size_bytes

    def restart(self) -> None:
        """Forget what was written."""
        if not self._checksums.size_bytes:
            return
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._checksums = Checksums()

    def write(self, piece: bytes) -> None:
        """The next bytes of the uncompressed object. May run in a worker thread. Raises OSError."""
        self._checksums.update(piece)
        self._write(piece)

    def _write(self, piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def commit(self) -> None:
        """Everything was written and verified: the object is in the cache from now on. Raises CacheFullError."""
        size = self._checksums.size_bytes
        trailer = self._checksums.trailer(self._name)
        try:
            self._write(trailer)
            self._cache.adopt(self._name, self._path, size + len(trailer))
        except OSError as error:
            raise self._cache.full(error) from error
        os.close(self._descriptor)
        self._descriptor = -1
