"""Several processes over one cache directory: who uses it, what everything takes, who fetches what, who makes room.

=============  =======================================================================================
file           what it is for
=============  =======================================================================================
``users``      byte *n* is locked by the process in place *n*; its unfinished files are in ``incoming/n``
``used``       what all objects take on disk: 8 bytes, little-endian, changed under a lock on its first
``arriving``   byte *h* is locked by who fetches the object whose digest begins with *h*
``cleaning``   locked by who makes room
=============  =======================================================================================

The locks belong to open file descriptions, so they end with their process, however it ends; no process ever waits for
another without a bound. The objects themselves need no lock: they come by rename, go by unlink, and an open file stays
readable. The number in ``used`` may go wrong by what a killed process had in hand; whoever reads the directory sets it
right.
"""

import errno
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fs.errors import RefusedError
from fs.format.hashes import Hash

_LOCK = struct.Struct("hhqqi4x")  # struct flock
_MOST_USERS = 1024
_NUMBER_BYTES = 8
_OFFSET_BITS = 62
_ATTEMPTS = 100
_PAUSE_S = 0.0002
_TAKEN = frozenset({errno.EAGAIN, errno.EACCES})


class CacheUsers:
    """One process among those that use a cache directory; made at once, used from any thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, int] = {}
        self._used: mmap.mmap | None = None
        self.place = -1

    def join(self) -> None:
        """Take a place. Raises OSError, RefusedError."""
        for name in ("users", "used", "arriving", "cleaning"):
            self._files[name] = os.open(self._directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._files["used"]).st_size < _NUMBER_BYTES:
            os.ftruncate(self._files["used"], _NUMBER_BYTES)
        self._used = mmap.mmap(self._files["used"], _NUMBER_BYTES, prot=mmap.PROT_READ)
        for place in range(_MOST_USERS):
            if self._lock("users", place):
                self.place = place
                return
        raise RefusedError(f"{_MOST_USERS} processes use the cache directory {self._directory} already")

    def leave(self) -> None:
        """Give the place up."""
        if self._used is not None:
            self._used.close()
            self._used = None
        while self._files:
            os.close(self._files.popitem()[1])
        self.place = -1

    def is_free(self, place: int) -> bool:
        """True if no process is in *place*."""
        if place == self.place or not self._lock("users", place):
            return False
        self._unlock("users", place)
        return True

    def used(self) -> int:
        """What all objects take on disk, as far as is known. Asked for so often that a system call would be felt."""
        return int.from_bytes(self._used or b"", "little")

    def add(self, change: int) -> None:
        """Objects that take *change* bytes more came, or less: went."""
        if not change:
            return
        for _ in range(
            _ATTEMPTS
        ):  # who has it writes eight bytes; a process that is stopped just then is not waited for
            if self._lock("used", 0):
                break
            time.sleep(_PAUSE_S)
        try:
            number = max(0, self.used() + change)
            os.pwrite(self._files["used"], number.to_bytes(_NUMBER_BYTES, "little"), 0)
        finally:
            self._unlock("used", 0)

    @contextmanager
    def cleaning(self) -> Iterator[bool]:
        """True if this process is the one that makes room until the end of the block."""
        is_mine = self._lock("cleaning", 0)
        try:
            yield is_mine
        finally:
            if is_mine:
                self._unlock("cleaning", 0)

    def claim(self, name: Hash) -> bool:
        """True if no other process fetches the object called *name*; until ``release`` this one does."""
        return self._lock("arriving", _offset(name))

    def release(self, name: Hash) -> None:
        """The object arrived, or did not."""
        self._unlock("arriving", _offset(name))

    def _lock(self, name: str, offset: int) -> bool:
        try:
            fcntl.fcntl(self._files[name], fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            if name == "users":
                raise
        return True  # a file system without locks has one user

    def _unlock(self, name: str, offset: int) -> None:
        try:
            fcntl.fcntl(self._files[name], fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, offset, 1, 0))
        except (KeyError, OSError):
            return  # closed, or never locked


def _offset(name: Hash) -> int:
    return int.from_bytes(name.digest[:8], "little") >> (64 - _OFFSET_BITS)


def pinned_below(directory: Path) -> frozenset[str]:
    """The objects that the pins of all mounts hold; see pins.py for their form."""
    names: set[str] = set()
    for file in directory.glob("mounts/*/*.pins/*"):
        try:
            names.update(file.read_text("ascii").split("\n")[1:-1])
        except (OSError, ValueError):
            continue  # it was taken away just now, or is damaged
    return frozenset(names)
