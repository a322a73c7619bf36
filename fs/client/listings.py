"""Directory listings that go on from an offset alone.

Entries come in the order of a hash of their names, and the offset is that hash. It means the same in every revision and
every life of the daemon, so a listing that one of those overtakes neither repeats nor omits a name that stayed.

An entry takes a kilobyte. Those of small directories are held; of a large one only where each entry is in its catalog,
twelve bytes, and entries are made whenever they are asked for.
"""

import hashlib
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import anyio.lowlevel

from fs.client.catalogs import CatalogRef, Found, NeedsCatalog
from fs.client.operations import Operations
from fs.errors import FsError
from fs.format.paths import parent_path

T = TypeVar("T")

_LISTINGS = 64
_HELD_ENTRIES = 2048  # of one directory
_HELD_IN_ALL = 16384
_NAMES_AT_ONCE = 1024
_KEYS_AT_ONCE = 256
_POSITION_BITS = 31  # programs of 32 bits read offsets too
_HASH_BITS = _ROW_BITS = 64
_DOT, _DOT_DOT, _FIRST = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Listed:
    """An entry at its place in a listing."""

    position: int
    name: bytes
    key: bytes  # empty for dots
    found: Found


@dataclass(frozen=True, slots=True)
class Listing:
    """What a directory shows in one generation of the view, in the order of positions."""

    generation: int
    home: CatalogRef  # the catalog that holds the entries
    positions: Sequence[int]
    entry: Callable[[int], Listed]  # by its number; raises NeedsCatalog and CatalogError, unless all are held
    held: int = 0  # entries

    def __len__(self) -> int:
        return len(self.positions)

    def index(self, offset: int) -> int:
        """The first entry after *offset*."""
        return bisect_right(self.positions, offset)

    def since(self, offset: int) -> Iterator[Listed]:
        """Entries after *offset*: all, or those before one that cannot be made now.

        Raises:
            NeedsCatalog: the first one's catalog has to be opened.
            CatalogError: it holds what no catalog may.
        """
        first = self.index(offset)
        for index in range(first, len(self)):
            try:
                yield self.entry(index)
            except (NeedsCatalog, FsError):
                if index == first:
                    raise
                return


def positions(hashes: Iterable[int]) -> Iterator[int]:
    """Where names lie in a listing, whose *hashes* come in ascending order: distinct, and independent of other names.

    Two names whose hashes begin alike are the exception: the later one of them moves on.
    """
    last = 0
    for hashed in hashes:
        last = max(_FIRST + (hashed >> _HASH_BITS - _POSITION_BITS), last + 1)
        yield last


def hash_of(name: bytes) -> int:
    """By which *name* is ordered in a listing."""
    return int.from_bytes(hashlib.blake2b(name, digest_size=_HASH_BITS // 8).digest(), "little")


class Listings:
    """The listings of a mount that are read now; the last ones are kept."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._listings = OrderedDict[int, Listing]()
        self._held = 0

    def kept(self, inode: int) -> Listing | None:
        """What directory *inode* shows in the newest revision, if that is known already."""
        kept = self._listings.get(inode)
        if kept is None or kept.generation != self._operations.generation:
            return None
        self._listings.move_to_end(inode)
        return kept

    async def read(self, inode: int, question: Callable[[Listing], T]) -> T:
        """What *question* makes of the listing of directory *inode*; asked again if it raises NeedsCatalog.

        Raises:
            FileError: it is no directory.
            FsError: its catalog cannot be had, or holds what no catalog may.
        """
        while True:
            listing = await self._get(inode)
            try:
                return question(listing)
            except NeedsCatalog:
                await self._operations.repository.catalogs.get(listing.home)

    async def _get(self, inode: int) -> Listing:
        """What directory *inode* shows in the newest revision; nothing may be awaited between this and its use.

        Raises as ``read`` does.
        """
        while True:
            kept = self.kept(inode)
            if kept is not None:
                return kept
            self.drop(inode)
            generation = self._operations.generation
            folder = (await self._operations.directory(inode)).found
            made = await self._held_listing(generation, folder) or await self._long_listing(generation, folder)
            if generation == self._operations.generation:
                self._keep(inode, made)
                return made

    async def _held_listing(self, generation: int, folder: Found) -> Listing | None:
        """A listing of *folder* with its entries; None if there are too many."""
        operations = self._operations
        found = await operations.small_listing(folder, most=_HELD_ENTRIES)
        if found is None:
            return None
        shown = {hash_of(one.entry.name): one for one in found}
        entries = _dots(folder)
        order = sorted(shown)
        for hashed, position in zip(order, positions(order), strict=True):
            one = shown[hashed]
            entries.append(Listed(position, one.entry.name, await operations.key(one), one))
            if len(entries) % _KEYS_AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()  # others are answered meanwhile
        places = [entry.position for entry in entries]
        return Listing(generation, folder.inside, places, entries.__getitem__, held=len(entries))

    async def _long_listing(self, generation: int, folder: Found) -> Listing:
        """A listing of *folder* that reads its entries whenever they are asked for."""
        operations = self._operations
        rows: list[int] = []
        after = -1
        while True:
            home, names = await operations.names(folder, after=after, most=_NAMES_AT_ONCE)
            rows += [hash_of(name) << _ROW_BITS | rowid for rowid, name, is_shown in names if is_shown]
            if len(names) < _NAMES_AT_ONCE:
                break
            after = names[-1].rowid
            await anyio.lowlevel.checkpoint()  # others are answered meanwhile
        rows.sort()
        dots = _dots(folder)
        places = array("I", [*(dot.position for dot in dots), *positions(row >> _ROW_BITS for row in rows)])
        numbers = array("q", (row & (1 << _ROW_BITS) - 1 for row in rows))

        def entry(index: int) -> Listed:
            if index < len(dots):
                return dots[index]
            found = operations.listed_now(home, folder.path, numbers[index - len(dots)])
            return Listed(places[index], found.entry.name, operations.key_now(found), found)

        return Listing(generation, home, places, entry)

    def _keep(self, inode: int, listing: Listing) -> None:
        self.drop(inode)
        self._listings[inode] = listing
        self._held += listing.held
        while len(self._listings) > 1 and (len(self._listings) > _LISTINGS or self._held > _HELD_IN_ALL):
            self.drop(next(iter(self._listings)))

    def drop(self, inode: int) -> None:
        """Nobody reads it any more."""
        dropped = self._listings.pop(inode, None)
        if dropped is not None:
            self._held -= dropped.held


def _dots(folder: Found) -> list[Listed]:
    parent = Found(parent_path(folder.path), folder.entry, folder.home, folder.home)
    return [Listed(_DOT, b".", b"", folder), Listed(_DOT_DOT, b"..", b"", parent)]
