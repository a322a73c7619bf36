"""The local object cache: a directory of uncompressed objects with a quota in bytes.

========================  ==========================================================================
below the directory       content
========================  ==========================================================================
``objects/<2>/<rest>``    objects, named by the hash of their *stored* form; see object_file.py
``incoming/<n>/``         objects that are still arriving, of the process in place *n*
``users``, ``used`` …     how processes get along that use the directory at once; see sharing.py
``mounts/…``              what belongs to repositories and mounts, among it what is pinned; see pins.py
========================  ==========================================================================

There is no index that could disagree with the files: a start reads the names, sizes and times of the objects. An
object is there as a whole or not at all (temporary file, rename); nothing is synced, because a file that a power cut
spoilt fails its checksums and is fetched again.

A process knows the objects that it found at its start, stored or used. What others stored it finds when it looks for
it; if others stored or removed something it reads the directory again before it makes room, and then the times of use
in the files decide. They are written at the first use and once a minute after that.
"""

import errno
import itertools
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from fs.client.cache_writer import CacheFullError, CacheWriter
from fs.client.object_file import ObjectFile
from fs.client.sharing import CacheUsers, pinned_below
from fs.errors import CorruptError, RefusedError
from fs.format.hashes import Hash

_log = structlog.get_logger()

_OPEN_FILES = 256
_KEPT_SHARE = 0.75  # of the quota, after a clean-up
_KEPT_PINNED_SHARE = 0.95  # if pinned objects have to go
_TOUCH_AGAIN_S = 60.0


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


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished file that was put in its place."""

    name: str
    file_bytes: int
    replaced: int = 0  # bytes of the same object that were there before


class ObjectCache:
    """Objects on disk, least recently used ones go first. Not thread-safe: it belongs to one event loop.

    Args:
        directory: made if it is absent, readable by its owner only.
        quota_bytes: what the objects may take, those of all processes. While an object arrives, and if a single one
            is larger than the quota, it is exceeded by that object.
    """

    def __init__(self, directory: Path, quota_bytes: int) -> None:
        self.directory = directory
        self.quota_bytes = quota_bytes
        self.counts = CacheCounts()
        self._objects = directory / "objects"
        self._incoming = directory / "incoming"
        self._sizes: OrderedDict[str, int] = OrderedDict()  # bytes on disk, least recently used first
        self._known_bytes = 0  # their sum
        self._users = CacheUsers(directory)
        self._open: OrderedDict[str, ObjectFile] = OrderedDict()
        self._held: dict[str, int] = {}  # how many pins hold an object, which need not be here
        self._held_elsewhere: frozenset[str] = frozenset()  # by pins of other processes, as read last
        self._touched: dict[str, float] = {}  # when its time of use was written
        self._pins = Counter[str]()  # what makes no room for others
        self._serials = itertools.count(1)

    @property
    def used_bytes(self) -> int:
        """What the objects take on disk."""
        return self._users.used()

    @property
    def object_count(self) -> int:
        """How many objects this process knows."""
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

    def start(self) -> None:
        """Join those who use the directory, remove what a crash left and learn what is there. Blocks for the disk.

        Raises:
            RefusedError: the directory cannot be made or written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._users.join()
            incoming = self.directory / "incoming"
            self._incoming = incoming / str(self._users.place)
            self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._objects.mkdir(exist_ok=True, mode=0o700)
            for folder in incoming.iterdir():
                if folder == self._incoming or (folder.name.isdigit() and self._users.is_free(int(folder.name))):
                    for leftover in folder.iterdir():
                        leftover.unlink(missing_ok=True)
            self._scan()
        except OSError as error:
            self.close()
            raise RefusedError(f"the cache directory {self.directory} cannot be used: {error.strerror}") from error
        self.make_room(0)

    def _scan(self) -> None:
        """Learn what is there, by the time of its last use."""
        before = self._users.used()
        found: list[tuple[int, str, int]] = []
        for folder in self._objects.iterdir():
            with os.scandir(folder) as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # another process made room
                    found.append((status.st_atime_ns, folder.name + entry.name, status.st_size))
        found.sort()
        self._sizes = OrderedDict((name, size) for _, name, size in found)
        self._known_bytes = sum(self._sizes.values())
        self._users.add(self._known_bytes - before)

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
                return None
        self.counts.hits += 1
        self._open.move_to_end(text)
        self._use(text, opened)
        return opened

    def __contains__(self, name: Hash) -> bool:
        text = str(name)
        return text in self._sizes or self._is_of_others(text)

    def _is_of_others(self, text: str) -> bool:
        """True if another process has stored the object; from then on it is known."""
        if self._users.used() == self._known_bytes:
            return False
        try:
            size = os.stat(self._path(text)).st_size  # noqa: PTH116  # one system call
        except OSError:
            return False
        self._learn(text, size)
        return True

    def _learn(self, text: str, file_bytes: int) -> None:
        if text not in self._sizes:
            self._sizes[text] = file_bytes
            self._known_bytes += file_bytes

    def is_gone(self, name: Hash) -> bool:
        """True if the object called *name*, which was there, is not any more: another process made room."""
        if os.path.exists(self.path_of(name)):  # noqa: PTH110  # one system call
            return False
        self._forget(str(name))
        return True

    def claim(self, name: Hash) -> bool:
        """True if no other process fetches the object called *name*; ``unclaim`` must follow."""
        return self._users.claim(name)

    def unclaim(self, name: Hash) -> None:
        """The object called *name* has arrived, or will not. Any thread may call this."""
        self._users.release(name)

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
        path = self.path_of(name)
        opened = ObjectFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), str(name), path)
        self.counts.hits += 1
        self._learn(str(name), opened.state()[2])
        self._use(str(name), opened, touch_again=False)  # who keeps it open looks at its times
        return opened

    def _use(self, text: str, opened: ObjectFile, *, touch_again: bool = True) -> None:
        if text in self._sizes:
            self._sizes.move_to_end(text)
        touched = self._touched.get(text)
        if touched is None or (touch_again and time.monotonic() - touched > _TOUCH_AGAIN_S):
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
        self._learn(text, opened.state()[2])
        self._open[text] = opened
        if len(self._open) > _OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return opened

    def _touch(self, text: str, opened: ObjectFile) -> None:
        """Write the time of use, so that the order of use survives a restart and others know it."""
        self._touched[text] = time.monotonic()
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
        else:
            self._users.add(-self._sizes.get(text, 0))
        self._forget(text)

    def _forget(self, text: str) -> None:
        """Whatever became of it, this process does not know it any more."""
        self._known_bytes -= self._sizes.pop(text, 0)
        self._touched.pop(text, None)
        opened = self._open.pop(text, None)
        if opened is not None:
            opened.close()

    def writer(self, name: Hash, *, expected_bytes: int = 0) -> CacheWriter:
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
            self.shrink(self.used_bytes // 2)
        return CacheFullError(f"the cache {self.directory} takes nothing: {error.strerror}")

    def temporary_path(self) -> str:
        """Where an object that is still arriving can be written. Any thread may call this."""
        return f"{self._incoming}/{next(self._serials)}"

    def adopt(self, text: str, temporary: str, file_bytes: int) -> None:
        """Put the finished file *temporary* in its place. Raises OSError."""
        replaced = self.place(temporary, text)
        self.count([Finished(text, file_bytes, replaced)])

    def place(self, temporary: str, text: str) -> int:
        """Put the finished file *temporary* in its place; ``count`` must follow. Any thread may call this.

        Returns:
            Bytes of the same object from another process, which is replaced; 0 if there is none.

        Raises:
            OSError: the disk does not take it.
        """
        place = self._path(text)
        try:
            replaced = os.stat(place).st_size  # noqa: PTH116  # one system call
        except OSError:
            replaced = 0
        try:
            os.rename(temporary, place)  # noqa: PTH104  # one system call
        except FileNotFoundError:
            os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120  # names are text here
            os.rename(temporary, place)  # noqa: PTH104  # one system call
        return replaced

    def count(self, placed: Sequence[Finished]) -> None:
        """These objects are in their places; at least one."""
        for one in placed:
            self._forget(one.name)
            self._learn(one.name, one.file_bytes)
            self._touched[one.name] = time.monotonic()
        self._users.add(sum(one.file_bytes - one.replaced for one in placed))
        self.counts.stored += len(placed)
        if self.used_bytes > self.quota_bytes:
            self.make_room(0, keep=placed[-1].name)

    def make_room(self, coming_bytes: int, keep: str = "") -> None:
        """Remove what was not used for long if *coming_bytes* more would not fit, but neither *keep* nor pins."""
        if self.used_bytes + coming_bytes > self.quota_bytes:
            self.shrink(max(0, int(self.quota_bytes * _KEPT_SHARE) - coming_bytes), keep=keep)

    def shrink(self, target_bytes: int, *, keep: str = "") -> None:
        """Remove least recently used objects until at most *target_bytes* are in use: neither *keep* nor pins.

        What trees hold goes only if that alone is more than fits: a cache that takes nothing would make every read of
        a new object a transfer.
        """
        if self.used_bytes <= target_bytes:
            return
        with self._users.cleaning() as is_mine:
            if not is_mine:
                return
            if self.used_bytes != self._known_bytes:
                self._scan()
                self._held_elsewhere = pinned_below(self.directory)
            self.counts.cleanups += 1
            removable = [text for text in self._sizes if text != keep and text not in self._pins]
            is_held = self._held.keys() | self._held_elsewhere
            self._evict(target_bytes, [text for text in removable if text not in is_held])
            pinned_target = max(target_bytes, int(self.quota_bytes * _KEPT_PINNED_SHARE))
            if self.used_bytes > pinned_target and is_held:
                before = self.counts.evicted
                self._evict(pinned_target, [text for text in removable if text in is_held])
                self.counts.evicted_pinned += self.counts.evicted - before
                _log.warning("cache_too_small_for_pins", held_bytes=self.held_bytes, quota_bytes=self.quota_bytes)
        _log.info("cache_cleaned", used_bytes=self.used_bytes, target_bytes=target_bytes)

    def _evict(self, target_bytes: int, names: Sequence[str]) -> None:
        for text in names:
            if self.used_bytes <= target_bytes:
                break
            self._remove(text)
            self.counts.evicted += 1

    def names(self) -> Iterator[str]:
        """The objects' names, least recently used first."""
        return iter(list(self._sizes))

    def close(self) -> None:
        """Close all files and leave."""
        while self._open:
            self._open.popitem()[1].close()
        self._users.leave()
