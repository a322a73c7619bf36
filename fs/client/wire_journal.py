"""What the kernel was told, on disk, so that the next daemon of the same session can go on.

The journal is written before the kernel gets the answer, without being synced: it has to survive the process, not the
machine. Each record is ``length, CRC-32`` (4 bytes each) and a body whose first byte is its kind:

====  ==================================================================================================
kind  rest of the body
====  ==================================================================================================
C     number of a catalog (4 bytes), length of the hash's text (1), the text, the mount point
N     inode (8), key (16), number of the catalog with the entry (4), with the children (4), is directory
      (1), path: the kernel was told of the inode, for the first time by this path
L     inode (8): it was told of it once more
K     inode (8), count (8): so often it was told of it in all
F     inode (8), count (8): so many times of those it has forgotten; all of them, and the inode is gone
A     path: the kernel was told that there is nothing
R     text of the root catalog's hash: all that does not hold there was revoked
====  ==================================================================================================

A record that a kill cut off is the last one and is left out: the kernel has not got its answer. A new life begins with
a new journal that holds what is left of the old one, and so does a life whose journal has grown too long.
"""

import os
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import structlog

from fs.client.catalogs import CatalogRef, Found
from fs.client.dormants import Dormant, Dormants
from fs.client.inodes import KEY_BYTES, Inode
from fs.errors import FsError
from fs.format.hashes import Hash

_log = structlog.get_logger()

_HEAD = struct.Struct("=II")
_CATALOG = struct.Struct("=cIB")
_NODE = struct.Struct(f"=cQ{KEY_BYTES}sIIB")
_TOLD = struct.Struct("=cQ")
_COUNTED = struct.Struct("=cQQ")
_RECORD_LIMIT_BYTES = 1 << 16
_BUFFER_BYTES = 1 << 16
_MOST_ABSENT = 1 << 16
_RECENT = 1 << 14
_LONG_BYTES = 16 << 20  # and four times of what it began with: then it is begun anew
_LONG_TIMES = 4


@dataclass(frozen=True, slots=True)
class State:
    """What the kernel knows."""

    root: Hash | None  # the catalog under which it was told
    inodes: Iterable[tuple[int, Dormant]] = ()
    absent: Iterable[bytes] = ()  # paths


class Remembered:
    """What an earlier life told the kernel, as it comes out of the journal. Raises sqlite3.Error as Dormants does.

    The kernel may know millions of inodes: those that were spoken of last are at hand, the others are put to sleep.
    """

    def __init__(self, root: Hash | None = None) -> None:
        self.root = root
        self.absent: dict[bytes, None] = {}
        self._dormants = Dormants()
        self._recent: dict[int, Dormant] = {}

    def get(self, inode: int) -> Dormant | None:
        """What *inode* stood for."""
        known = self._recent.get(inode)
        if known is None:
            known = self._dormants.pop(inode)
            if known is not None:
                self._recent[inode] = known
        return known

    def put(self, inode: int, known: Dormant) -> None:
        """From now on *inode*, which was asked for just before, stands for *known*."""
        self._recent[inode] = known
        if len(self._recent) > _RECENT:
            self._settle()

    def remove(self, inode: int) -> None:
        """The kernel has forgotten *inode*, which was asked for just before."""
        del self._recent[inode]

    def _settle(self) -> None:
        self._dormants.put(self._recent.items())
        self._recent.clear()

    def dormants(self) -> Dormants:
        """All inodes."""
        self._settle()
        return self._dormants

    def state(self) -> State:
        """To begin a journal with."""
        return State(self.root, self.dormants().items(), self.absent)


class Journal:
    """Appends; all of it belongs to one event loop. A disk that takes nothing ends the journal, not the mount.

    Args:
        path: of the file.
        long_bytes: what it may grow to in any case.
    """

    def __init__(self, path: Path, *, long_bytes: int = _LONG_BYTES) -> None:
        self._path = path
        self._catalogs: dict[CatalogRef, int] = {}
        self._buffer = bytearray()
        self._descriptor = -1
        self.root: Hash | None = None  # see adopted
        self._long_bytes = long_bytes
        self._bytes = self._limit_bytes = 0
        self.has_news = False  # that must be on disk before the kernel gets an answer
        self.present: Callable[[], State | None] | None = None
        """Gives what the kernel knows now, to begin anew with; None at moments when that is not settled."""

    def start(self, state: State) -> None:
        """Begin anew with *state*; the old journal stays until this one is complete."""
        temporary = self._path.with_suffix(".new")
        self.close()
        self._catalogs.clear()
        self._buffer.clear()
        self._bytes = 0
        try:
            self._descriptor = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            self._give_up(error)
            return
        if state.root is not None:
            self.adopted(state.root)
        for inode, dormant in state.inodes:
            self._node(inode, dormant)
            if dormant.lookups != len(dormant.paths):
                self._append(_COUNTED.pack(b"K", inode, dormant.lookups))
        for path in state.absent:
            self.absent(path)
        self._write()
        if self._descriptor >= 0:
            try:
                temporary.replace(self._path)
            except OSError as error:
                self._give_up(error)
        self.has_news = False
        self._limit_bytes = max(self._long_bytes, _LONG_TIMES * self._bytes)

    def known(self, inode: Inode, key: bytes, found: Found) -> None:
        """The kernel will know *inode* by the path of *found*, for the first time by that."""
        self._node(inode, Dormant(key, found.home, found.inside, found.entry.is_directory, (found.path,)))
        self.has_news = True

    def told(self, inode: Inode) -> None:
        """The kernel will be told of *inode* once more."""
        self._append(_TOLD.pack(b"L", inode))
        self.has_news = True

    def _node(self, inode: int, known: Dormant) -> None:
        numbers = self._catalog(known.home), self._catalog(known.inside)
        for path in known.paths:
            self._append(_NODE.pack(b"N", inode, known.key, *numbers, known.is_directory) + path)

    def _catalog(self, catalog: CatalogRef) -> int:
        number = self._catalogs.get(catalog)
        if number is None:
            number = self._catalogs[catalog] = len(self._catalogs)
            text = str(catalog.hash).encode()
            self._append(_CATALOG.pack(b"C", number, len(text)) + text + catalog.mountpoint)
        return number

    def forgotten(self, inode: Inode, lookups: int) -> None:
        """The kernel has forgotten *lookups* of the times that it was told of *inode*."""
        self._append(_COUNTED.pack(b"F", inode, lookups))

    def absent(self, path: bytes) -> None:
        """The kernel will know that there is nothing at *path*."""
        self._append(b"A" + path)
        self.has_news = True

    def adopted(self, root: Hash) -> None:
        """All that does not hold under the catalog *root* was revoked."""
        self.root = root
        self._append(b"R" + str(root).encode())
        self.has_news = True

    def _append(self, body: bytes) -> None:
        if self._descriptor < 0:
            return
        self._buffer += _HEAD.pack(len(body), zlib.crc32(body)) + body
        if len(self._buffer) > _BUFFER_BYTES:
            self._write()

    def flush(self) -> None:
        """Write what was appended. All that was appended is true of what is known now, so it may begin anew here."""
        is_long = self._descriptor >= 0 and self._bytes + len(self._buffer) > self._limit_bytes
        if is_long and self.present is not None:
            state = self.present()
            if state is not None:
                self.start(state)  # which holds what is not written yet
                return
        self.has_news = False
        self._write()

    def _write(self) -> None:
        if self._descriptor < 0:
            return
        view = memoryview(bytes(self._buffer))
        self._buffer.clear()
        self._bytes += len(view)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Half a journal is worse than none: the next daemon would take it for the whole."""
        _log.error("journal_not_written", path=str(self._path), reason=error.strerror)
        self.close()
        for path in (self._path, self._path.with_suffix(".new")):
            try:
                path.unlink(missing_ok=True)
            except OSError as failure:
                _log.error("journal_not_removed", path=str(path), reason=failure.strerror)  # a reason is all

    def close(self) -> None:
        """What was not flushed is lost."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def load(path: Path) -> Remembered:
    """What the journal at *path* holds; nothing if there is none."""
    remembered = Remembered()
    catalogs: dict[int, CatalogRef] = {}
    try:
        with path.open("rb") as stream:
            for body in _bodies(stream):
                _take(body, remembered, catalogs)
    except (OSError, sqlite3.Error) as error:
        _log.error("journal_not_read", path=str(path), reason=str(error))
        return Remembered()
    except (struct.error, KeyError, ValueError, FsError) as error:
        _log.error("journal_damaged", path=str(path), reason=str(error))
    return remembered


def _bodies(stream: BinaryIO) -> Iterator[bytes]:
    while len(head := stream.read(_HEAD.size)) == _HEAD.size:
        length, checksum = _HEAD.unpack(head)
        body = stream.read(length) if 0 < length <= _RECORD_LIMIT_BYTES else b""
        if not body or len(body) != length or zlib.crc32(body) != checksum:
            return  # cut off, and so is whatever follows
        yield body


def _take(body: bytes, remembered: Remembered, catalogs: dict[int, CatalogRef]) -> None:
    match body[:1]:
        case b"C":
            _, number, length = _CATALOG.unpack_from(body)
            text = body[_CATALOG.size : _CATALOG.size + length]
            catalogs[number] = CatalogRef(Hash.parse(text.decode("ascii")), body[_CATALOG.size + length :])
        case b"N":
            _, inode, key, home, inside, is_directory = _NODE.unpack_from(body)
            known = remembered.get(inode)
            path = body[_NODE.size :]
            paths, lookups = ((), 0) if known is None or known.key != key else (known.paths, known.lookups)
            told = Dormant(key, catalogs[home], catalogs[inside], bool(is_directory), (*paths, path), lookups + 1)
            remembered.put(inode, told)
        case b"L":
            _count(remembered, _TOLD.unpack_from(body)[1], lambda lookups: lookups + 1)
        case b"K":
            _, inode, count = _COUNTED.unpack_from(body)
            _count(remembered, inode, lambda _: count)
        case b"F":
            _, inode, count = _COUNTED.unpack_from(body)
            _count(remembered, inode, lambda lookups: lookups - count)
        case b"A":
            remembered.absent[body[1:]] = None
            if len(remembered.absent) > _MOST_ABSENT:
                remembered.absent.pop(next(iter(remembered.absent)))
        case b"R":
            remembered.root = Hash.parse(body[1:].decode("ascii"))
        case kind:
            raise ValueError(f"a record of kind {kind!r}")


def _count(remembered: Remembered, inode: int, change: Callable[[int], int]) -> None:
    known = remembered.get(inode)
    if known is None:
        return
    lookups = change(known.lookups)
    if lookups > 0:
        remembered.put(inode, replace(known, lookups=lookups))
    else:
        remembered.remove(inode)
