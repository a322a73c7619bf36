"""A store in a directory, laid out as web servers of the format expect it.

``data/00`` … ``data/ff`` hold the objects, ``data/txn`` those being written; both are on one file system, so that a
rename makes an object visible as a whole. Those being written are spread over directories too: a file system makes a
file near its first directory, ext4 takes a millisecond for it where very many were removed within the last minutes, and
writers wait for each other where all make theirs in one. ``.publisher`` is private: lock and index of the writer; it is
never served.
Source: CernVM-FS 2.12, upload_local.cc, util/posix.cc.
"""

import ctypes
import fcntl
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from fs.errors import AbsentError, CorruptError, FsError, OvertakenError, RefusedError
from fs.format.hashes import Hash, Suffix
from fs.runtime.files import write_atomically
from fs.store.base import REFRESH_AFTER_S, Buffer, StoredObject
from fs.store.names import parse_object_path

PRIVATE = ".publisher"
_STAGING = "data/txn"
_READABLE = 0o644
_libc = ctypes.CDLL(None, use_errno=True)

Refreshed = frozenset[tuple[Hash, Suffix]]
"""Old objects that were made young again, because something will refer to them."""


def _umask() -> int:
    """What this process takes from the modes of new files. Source: proc_pid_status(5); asking umask(2) would set it."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o777


class LocalStore:
    """A Store in directory *root*."""

    def __init__(self, root: Path, *, durable: bool = True, clock: Callable[[], float] = time.time) -> None:
        """Use what is there; ``prepare`` makes what is missing.

        Args:
            root: the storage directory.
            durable: sync to disk before ``settle`` and ``replace_named`` return. Without it a power cut can cost a
                revision, a killed process never does.
            clock: Unix seconds, as the file system's.
        """
        self.root = root
        self._prefix = f"{root}/"
        self.is_durable = durable
        self._clock = clock
        self._serial = itertools.count()
        self._is_masked = bool(_umask() & _READABLE)
        self._guard = threading.Lock()
        self._refreshed: set[tuple[Hash, Suffix]] = set()  # since the last settle

    @property
    def private(self) -> Path:
        """The directory of what is never served."""
        return self.root / PRIVATE

    def prepare(self) -> None:
        """Make the directories that are missing."""
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / _STAGING).mkdir(parents=True, exist_ok=True)
        for number in range(256):
            for parent in ("data", _STAGING):
                with suppress(FileExistsError):
                    os.mkdir(f"{self._prefix}{parent}/{number:02x}")  # noqa: PTH102  # at each opening
        self.private.mkdir(mode=0o700, exist_ok=True)
        self.private.chmod(0o700)

    def get(self, name: Hash, suffix: Suffix, *, limit_bytes: int) -> bytes:
        """See ObjectReader.get."""
        with self.open(name, suffix) as stream:
            stored = stream.read(limit_bytes + 1)
        if len(stored) > limit_bytes:
            raise RefusedError(f"object {name}{suffix.value} is larger than {limit_bytes} bytes")
        if Hash.of(stored, name.algorithm) != name:
            raise CorruptError(f"{name}{suffix.value}")
        return stored

    def has(self, name: Hash, suffix: Suffix, *, stored_bytes: int | None = None) -> bool:
        """See ObjectReader.has."""
        try:
            size = os.stat(self._prefix + name.object_path(suffix)).st_size  # noqa: PTH116  # once for every file
        except FileNotFoundError:
            return False
        return stored_bytes in (None, size)

    def open(self, name: Hash, suffix: Suffix) -> BinaryIO:
        """See ObjectReader.open."""
        try:
            return open(self._prefix + name.object_path(suffix), "rb", buffering=0)  # noqa: PTH123  # once for every file
        except FileNotFoundError as error:
            raise AbsentError(f"object {name}{suffix.value} is not in {self.root}") from error

    def put(self, name: Hash, suffix: Suffix, stored: Buffer) -> bool:
        """See ObjectWriter.put.

        An object of another length is a remnant of a power cut and is replaced.
        """
        if self.claim(name, suffix, stored_bytes=len(stored)):
            return False
        spread = f"{_STAGING}/{name.digest[0]:02x}"
        staged = f"{self._prefix}{spread}/{os.getpid()}-{threading.get_ident()}-{next(self._serial)}"
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _READABLE)
        try:
            try:
                if self._is_masked:  # the web server is somebody else
                    os.fchmod(descriptor, _READABLE)
                _write_all(descriptor, stored)
            finally:
                os.close(descriptor)
            os.rename(staged, self._prefix + name.object_path(suffix))  # noqa: PTH104
        except BaseException:
            os.unlink(staged)  # noqa: PTH108
            raise
        with self._guard:
            self._refreshed.discard((name, suffix))
        return True

    def claim(self, name: Hash, suffix: Suffix, *, stored_bytes: int | None = None) -> bool:
        """See ObjectWriter.claim."""
        path = self._prefix + name.object_path(suffix)
        try:
            status = os.stat(path)  # noqa: PTH116  # once for every file
            if stored_bytes not in (None, status.st_size):
                return False
            if status.st_mtime < self._clock() - REFRESH_AFTER_S:
                os.utime(path)
                with self._guard:
                    self._refreshed.add((name, suffix))
        except FileNotFoundError:
            return False
        return True

    def settle(self) -> None:
        """See ObjectWriter.settle: one ``syncfs`` of the whole file system instead of an fsync per object."""
        with self._guard:
            refreshed = frozenset(self._refreshed)
        for name, suffix in refreshed:
            if not self.has(name, suffix):  # and it stays in the set until somebody puts it again
                raise OvertakenError(f"object {name}{suffix.value} was collected as garbage while it was needed again")
        with self._guard:
            self._refreshed -= refreshed
        if not self.is_durable:
            return
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if _libc.syncfs(descriptor) != 0:
                reason = os.strerror(ctypes.get_errno())
                raise FsError(f"{self.root} cannot be written to disk: {reason}")
        finally:
            os.close(descriptor)

    def hand_over(self) -> Refreshed:
        """What ``settle`` would have to look at, for the store of another process to ``take_over``."""
        with self._guard:
            refreshed = frozenset(self._refreshed)
            self._refreshed.clear()
        return refreshed

    def take_over(self, refreshed: Refreshed) -> None:
        """Let ``settle`` look at what another process's store handed over."""
        with self._guard:
            self._refreshed |= refreshed

    def read_named(self, name: str, *, limit_bytes: int) -> bytes:
        """See NamedFiles.read_named."""
        try:
            with (self.root / name).open("rb") as stream:
                content = stream.read(limit_bytes + 1)
        except FileNotFoundError as error:
            raise AbsentError(f"there is no {name} in {self.root}") from error
        if len(content) > limit_bytes:
            raise RefusedError(f"{name} in {self.root} is larger than {limit_bytes} bytes")
        return content

    def replace_named(self, name: str, content: bytes) -> None:
        """See NamedFiles.replace_named."""
        write_atomically(self.root / name, content, mode=_READABLE, durable=self.is_durable)

    def swap_named(self, name: str, content: bytes, *, expected: bytes | None) -> None:
        """See NamedFiles.swap_named: comparison and rename happen under a file lock of their own."""
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # held for a rename by everybody, so there is no long wait
            path = self.root / name
            if (path.read_bytes() if path.exists() else None) != expected:
                raise OvertakenError(f"{name} in {self.root} was replaced by another writer")
            self.replace_named(name, content)
        finally:
            os.close(descriptor)

    def remove_named(self, name: str) -> None:
        """See NamedFiles.remove_named."""
        (self.root / name).unlink(missing_ok=True)

    def objects(self) -> Iterator[StoredObject]:
        """See ObjectReaper.objects."""
        for number in range(256):
            folder = f"data/{number:02x}"
            try:
                found = list(os.scandir(self._prefix + folder))  # with the status of each file
            except FileNotFoundError:
                continue
            for file in found:
                parsed = parse_object_path(f"{folder}/{file.name}")
                if parsed is None:
                    continue
                with suppress(FileNotFoundError):
                    status = file.stat(follow_symlinks=False)
                    yield StoredObject(*parsed, status.st_size, status.st_mtime)

    def describe(self, name: Hash, suffix: Suffix) -> StoredObject | None:
        """See ObjectReaper.describe."""
        try:
            status = os.stat(self._prefix + name.object_path(suffix))  # noqa: PTH116  # once for every file
        except FileNotFoundError:
            return None
        return StoredObject(name, suffix, status.st_size, status.st_mtime)

    def survey(self, objects: Sequence[StoredObject]) -> list[StoredObject | None]:
        """See ObjectReaper.survey."""
        return [self.describe(each.name, each.suffix) for each in objects]

    def now_unix_s(self) -> float:
        """See ObjectReaper.now_unix_s; of a network file system it is the server's."""
        with tempfile.NamedTemporaryFile(dir=self.root / _STAGING) as probe:
            return os.fstat(probe.fileno()).st_mtime

    def remove(self, objects: Sequence[StoredObject]) -> None:
        """See ObjectReaper.remove."""
        for each in objects:
            with suppress(FileNotFoundError):
                os.unlink(self._prefix + each.name.object_path(each.suffix))  # noqa: PTH108  # once for every file

    def remove_leftovers(self, before_unix_s: float) -> int:
        """See ObjectReaper.remove_leftovers: staged files of writers that were killed."""
        count = 0
        for staged in (self.root / _STAGING).rglob("*"):
            with suppress(FileNotFoundError, IsADirectoryError):
                if staged.stat().st_mtime < before_unix_s:
                    staged.unlink()
                    count += 1
        return count


def _write_all(descriptor: int, stored: Buffer) -> None:
    view = memoryview(stored)
    while view:
        view = view[os.write(descriptor, view) :]
