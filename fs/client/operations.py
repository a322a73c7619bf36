"""What a mounted repository answers: inode numbers to attributes, entries and bytes. No front end is known here.

Within one revision nothing changes, so answers may be kept. When a newer revision is adopted, directories that the
kernel knows go over to it (those that are gone keep showing what they showed), files keep their content for ever, and
``adopt`` says which names and attributes the kernel has to forget.
"""

import errno
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import structlog

from fs.client.adoption import Adoption, Invalidations
from fs.client.catalogs import CatalogRef, Found, NeedsCatalog
from fs.client.content_view import DATA_MODE, VIEW, data_key, is_data, real_path
from fs.client.contents import content_at_hand, read_content
from fs.client.dormants import Dormants
from fs.client.errnos import FileError
from fs.client.inodes import Inode, InodeTable, Node, directory_key, file_key, needs_catalog
from fs.client.neighbours import Neighbours
from fs.client.pins import Pins
from fs.client.prefetch import FAR_S, Prefetcher, ReadAhead
from fs.client.profile import ReadRecorder
from fs.client.repository import Placed, Repository
from fs.format.entries import Entry, Flag, Name
from fs.format.symlinks import decode_literal, expand_target

_log = structlog.get_logger()
T = TypeVar("T")

_CONTENTS = 4096  # of files in use
_NEGATIVES = 1 << 16
_COMPARED_AT_ONCE = 128
BLOCK_BYTES = 4096
_SECTOR_BYTES = 512


class Attributes(NamedTuple):
    """What stat shows. Access and change time are the modification time."""

    inode: Inode
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    mtime_ns: int

    @property
    def blocks(self) -> int:
        """In units of 512 bytes, as the reference client counts them."""
        return 1 + self.size // _SECTOR_BYTES


@dataclass(frozen=True, slots=True)
class Statistics:
    """What statvfs shows, in units of BLOCK_BYTES."""

    blocks: int
    free_blocks: int
    files: int
    free_files: int


class Operations:
    """Answers of one mount. Belongs to one event loop.

    Args:
        repository: open.
        variables: what ``$(NAME)`` in targets of symlinks stands for; None leaves targets as they are stored.
    """

    def __init__(self, repository: Repository, root: Found, *, variables: Mapping[bytes, bytes] | None) -> None:
        self.repository = repository
        self.generation = 0
        self.pins = Pins(repository.objects.cache)
        self.recorder = ReadRecorder()
        self.prefetcher = Prefetcher(repository)
        self._read_ahead = ReadAhead()
        self._neighbours = Neighbours()
        self._variables = variables
        self.inodes = InodeTable(root, self.generation)
        self._contents = OrderedDict[Inode, Placed]()
        self._negatives = OrderedDict[bytes, None]()
        self.absent_recorder: Callable[[bytes], None] | None = None

    def restore(self, dormants: Dormants, absent: Iterable[bytes]) -> None:
        """Take over what an earlier life told the kernel: inodes, and paths where there was nothing."""
        self.inodes.restore(dormants)
        self._negatives.update(dict.fromkeys(absent))

    @property
    def absent(self) -> Iterable[bytes]:
        """Paths where the kernel was told that there is nothing."""
        return self._negatives

    async def recall(self, inode: int) -> None:
        """Find out what *inode*, which an earlier life told the kernel of, stands for.

        Raises:
            FileError: it is neither in the newest revision nor in the one of that time.
            FsError: a catalog cannot be had.
        """
        dormant = self.inodes.dormant(inode)
        if dormant is None:
            return
        for path in reversed(dormant.paths):
            for start in (self.repository.revision.root, dormant.home):
                found = await self.find(start, path)
                if found is not None and await self.key(found) == dormant.key:
                    self.inodes.wake(inode, found)
                    return
        raise FileError(errno.ESTALE)

    async def lookup(self, parent: int, name: bytes) -> Attributes | None:
        """The entry *name* of directory *parent*, counted as known to the kernel; None if there is none.

        Raises:
            FileError: *parent* is no directory.
            FsError: a catalog cannot be had.
        """
        return await self._answered(parent, lambda: self.lookup_now(parent, name))

    async def _answered(self, inode: int, question: Callable[[], T]) -> T:
        """What *question* about *inode* returns, which may fall asleep while a catalog is waited for."""
        while True:
            try:
                return await self.repository.catalogs.answered(question)
            except FileError as error:
                if error.code != errno.ESTALE or self.inodes.dormant(inode) is None:
                    raise
            await self.recall(inode)

    def lookup_now(self, parent: int, name: bytes) -> Attributes | None:
        """As ``lookup``. Raises NeedsCatalog."""
        node = self.directory_now(parent)
        path = node.found.path + b"/" + name
        found = self._find_now(self.repository.revision.root if path == VIEW else node.found.inside, path)
        if found is None:
            self._remember_negative(path)
            return None
        key = self.key_now(found)
        if is_data(found) and self.pins:
            self._pin(found, self.repository.content_now(found.home, real_path(path), found.entry))
        known = self.inodes.remember(key, found, node.generation)
        if is_data(found):
            known.found = found  # many paths lead here: who looked last will read
        return self._attributes(known.inode, found)

    async def find(self, start: CatalogRef, path: bytes) -> Found | None:
        """The entry at *path*, which may be in the content view, searched from catalog *start*. Raises FsError."""
        return await self.repository.catalogs.answered(lambda: self._find_now(start, path))

    def _find_now(self, start: CatalogRef, path: bytes) -> Found | None:
        """The entry at *path*, which may be in the content view, searched from catalog *start*. Raises NeedsCatalog."""
        found = self.repository.catalogs.find_now(start, real_path(path))
        return found if found is None or found.path == path else replace(found, path=path)

    def _pin(self, found: Found, placed: Placed) -> None:
        """What a file is made of is used by whoever has pinned a tree that it is in."""
        pins = self.pins.over(real_path(found.path))
        if pins:
            content = placed.content
            chunks = [chunk.hash for chunk in content.chunks] if content.hash is None else [content.hash]
            for pin in pins:
                self.pins.used(pin, (*chunks, found.home.hash))

    def _remember_negative(self, path: bytes) -> None:
        is_news = path not in self._negatives
        self._negatives[path] = None
        if len(self._negatives) > _NEGATIVES:
            self._negatives.popitem(last=False)
        if is_news and self.absent_recorder is not None:
            self.absent_recorder(path)

    async def key(self, found: Found) -> bytes:
        """What identifies an entry. Raises FsError."""
        try:
            return self.key_now(found)
        except NeedsCatalog:
            pass
        return await self.repository.catalogs.answered(lambda: self.key_now(found))

    def key_now(self, found: Found) -> bytes:
        """As ``key``. Raises NeedsCatalog."""
        if found.entry.is_directory:
            return directory_key(found.path)
        path = real_path(found.path)
        if is_data(found):
            return data_key(self.repository.content_now(found.home, path, found.entry), found.entry)
        catalog = self.repository.catalogs.get_now(found.home) if needs_catalog(found.entry) else None
        return file_key(catalog, path, found.entry)

    def _node(self, inode: int) -> Node:
        node = self.inodes.get(inode)
        if node is None:
            raise FileError(errno.ESTALE)
        return node

    async def directory(self, inode: int) -> Node:
        """Directory *inode* as it is in the newest revision, or, if it is gone there, as it was last."""
        return await self._answered(inode, lambda: self.directory_now(inode))

    def directory_now(self, inode: int) -> Node:
        """As ``directory``. Raises NeedsCatalog."""
        node = self._node(inode)
        if not node.found.entry.is_directory:
            raise FileError(errno.ENOTDIR)
        if node.generation != self.generation:
            found = self._find_now(self.repository.revision.root, node.found.path)
            if found is not None and found.entry.is_directory:
                node.found = found
            node.generation = self.generation
        return node

    async def attributes(self, inode: int) -> Attributes:
        """What stat shows of *inode*. Raises FileError, FsError."""
        return await self._answered(inode, lambda: self.attributes_now(inode))

    def attributes_now(self, inode: int) -> Attributes:
        """As ``attributes``. Raises NeedsCatalog."""
        node = self._node(inode)
        if node.found.entry.is_directory:
            node = self.directory_now(inode)
        return self._attributes(node.inode, node.found)

    def _attributes(self, inode: Inode, found: Found) -> Attributes:
        entry = found.entry
        if is_data(found):
            return Attributes(inode=inode, mode=DATA_MODE, nlink=1, uid=0, gid=0, rdev=0, size=entry.size, mtime_ns=0)
        return Attributes(
            inode=inode,
            mode=entry.mode,
            nlink=entry.linkcount,
            uid=entry.uid,
            gid=entry.gid,
            rdev=entry.rdev,
            size=len(self._target(entry)) if entry.is_symlink else entry.size,
            mtime_ns=entry.mtime_ns,
        )

    async def small_listing(self, folder: Found, *, most: int) -> list[Found] | None:
        """What directory *folder* shows, hidden entries left out; None if it holds more than *most*. Raises FsError."""
        path = folder.path
        found = await self.repository.catalogs.small_listing(folder.inside, real_path(path), most=most)
        if found is None:
            return None
        shown = [one for one in found if not one.entry.has(Flag.HIDDEN)]
        if real_path(path) != path:
            return [replace(one, path=path + b"/" + one.entry.name) for one in shown]
        return shown

    async def names(self, folder: Found, *, after: int, most: int) -> tuple[CatalogRef, list[Name]]:
        """A part of what directory *folder* holds, behind row *after*, and the catalog of it. Raises FsError."""
        return await self.repository.catalogs.names(folder.inside, real_path(folder.path), after=after, most=most)

    def listed_now(self, home: CatalogRef, folder: bytes, rowid: int) -> Found:
        """The entry of one of the ``names`` of the directory at *folder*. Raises NeedsCatalog, CatalogError."""
        found = self.repository.catalogs.at_now(home, real_path(folder), rowid)
        return replace(found, path=folder + b"/" + found.entry.name) if real_path(folder) != folder else found

    def describe(self, inode: Inode, found: Found) -> Attributes:
        """Attributes of an entry of a listing."""
        return self._attributes(inode, found)

    def remember(self, key: bytes, found: Found) -> None:
        """The kernel took an entry of a listing: count it."""
        self.inodes.remember(key, found, self.generation)

    def forget(self, inode: int, lookups: int) -> None:
        """The kernel forgets *inode*, *lookups* times."""
        self.inodes.forget(inode, lookups)
        if self.inodes.get(inode) is None:
            self._contents.pop(Inode(inode), None)

    def _target(self, entry: Entry) -> bytes:
        if self._variables is None:
            return decode_literal(entry.target)
        return expand_target(entry.target, self._variables)

    def readlink(self, inode: int) -> bytes:
        """The target of symlink *inode*. Raises FileError."""
        entry = self._node(inode).found.entry
        if not entry.is_symlink:
            raise FileError(errno.EINVAL)
        return self._target(entry)

    async def open(self, inode: int) -> bool:
        """Make sure that file *inode* can be read; True if the page cache shall be left alone.

        Raises:
            FileError: it is not a regular file.
            FsError: the catalog does not say where its content is.
        """
        node = self._node(inode)
        if not node.found.entry.is_regular:
            raise FileError(errno.EISDIR if node.found.entry.is_directory else errno.ENXIO)
        await self.content(node)
        return node.found.entry.has(Flag.DIRECT_IO)

    async def content(self, node: Node) -> Placed:
        """Where the bytes of *node* are. Raises CatalogError and what getting the catalog raises."""
        return await self.repository.catalogs.answered(lambda: self.content_now(node))

    def content_now(self, node: Node) -> Placed:
        """As ``content``. Raises NeedsCatalog."""
        placed = self._contents.get(node.inode)
        if placed is None:
            found = node.found
            placed = self.repository.content_now(found.home, real_path(found.path), found.entry)
            self._contents[node.inode] = placed
            if len(self._contents) > _CONTENTS:
                self._contents.popitem(last=False)
        else:
            self._contents.move_to_end(node.inode)
        return placed

    async def read(self, inode: int, offset: int, size: int) -> bytes:
        """At most *size* bytes of file *inode* from *offset* on; fewer at its end only. Raises FileError, FsError."""
        node = self._node(inode)
        placed = await self.content(node)
        end = min(offset + size, placed.content.size)
        if offset >= end:
            return b""
        self._note_read(node.found, placed, offset, end - offset)
        if placed.content.hash is not None:
            self._look_around(node.found, placed)
        return await read_content(self.repository.objects, placed, offset, end - offset)

    def read_now(self, inode: int, offset: int, size: int) -> bytes | None:
        """As ``read`` if the bytes are at hand; else None, and nothing was noted. Raises NeedsCatalog."""
        node = self._node(inode)
        placed = self.content_now(node)
        size = min(size, placed.content.size - offset)
        if size <= 0:
            return b""
        data = content_at_hand(self.repository.objects, placed, offset, size)
        if data is not None:
            self._note_read(node.found, placed, offset, size)
        return data

    def _note_read(self, found: Found, placed: Placed, offset: int, size: int) -> None:
        path = real_path(found.path)
        if placed.content.hash is not None:
            self.recorder.whole(path)
        else:
            self._look_ahead(path, placed, offset, size)
        if self.pins:
            self._pin(found, placed)
            for pin in self.pins.over(path):
                pin.files_read += not offset
                pin.bytes_read += size

    def _look_around(self, found: Found, placed: Placed) -> None:
        """Let small files near a small file be fetched, if several were missing.

        One at a time only from servers that are far away: a near one gives a file as quickly as the cache.
        """
        objects = self.repository.objects
        is_far = objects.latencies.typical_s >= FAR_S
        if not (is_far or objects.come_in_bundles) or placed.external is not None or objects.has(placed.whole()):
            return
        for wanted in self._neighbours.missed(real_path(found.path), placed.content.size):
            self.prefetcher.around(found.home, wanted)

    def _look_ahead(self, path: bytes, placed: Placed, offset: int, size: int) -> None:
        """Let the chunks be fetched that a sequential reader will want."""
        chunks = placed.content.chunks
        first, last = (
            bisect_right(chunks, place, key=lambda chunk: chunk.offset) - 1 for place in (offset, offset + size - 1)
        )
        for number in range(first, last + 1):
            self.recorder.chunk(path, number)
        for number in self._read_ahead.next_chunks(path, offset, size, last, len(chunks)):
            self.prefetcher.ahead(placed.chunk(number))

    def stored_attributes(self, inode: int) -> Mapping[bytes, bytes]:
        """The extended attributes that the catalog holds, exactly. Raises FileError."""
        found = self._node(inode).found
        return {} if is_data(found) else found.entry.xattrs

    def found(self, inode: int) -> Found:
        """What *inode* stands for, by its path in the repository. Raises FileError."""
        found = self._node(inode).found
        path = real_path(found.path)
        return found if path == found.path else replace(found, path=path)

    async def statistics(self) -> Statistics:
        """What statvfs shows: the cache as the disk, all entries of the revision as files. Raises FsError."""
        catalog = await self.repository.catalogs.get(self.repository.revision.root)
        total = catalog.counters().total
        files = sum(total[kind] for kind in ("regular", "symlink", "special", "dir")) - total["nested"]
        cache = self.repository.objects.cache
        blocks = max(1, cache.quota_bytes // BLOCK_BYTES)
        used = min(blocks, cache.used_bytes // BLOCK_BYTES)
        return Statistics(blocks, blocks - used, max(0, files), max(0, files - len(self.inodes)))

    async def adopt(self) -> Invalidations:
        """Go over to the revision that the repository shows now, and say what the kernel has to forget."""
        self.generation += 1
        forgotten = await Adoption(self).compare()
        for path in list(self._negatives):
            forgotten.add_name(self.inodes, path)
        self._negatives.clear()
        return forgotten
