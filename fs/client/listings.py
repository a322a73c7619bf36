"""Directory listings that go on from an offset alone.

Entries come in the order of a hash of their names, and the offset is that hash. It means the same in every revision and
every life of the daemon, so a listing that one of those overtakes neither repeats nor omits a name that stayed.
"""

import hashlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import anyio.lowlevel

from fs.client.catalogs import Found
from fs.client.operations import Operations
from fs.format.paths import parent_path

_LISTINGS = 64
_LISTED_ENTRIES = 250_000  # over all listings that are kept
_KEYS_AT_ONCE = 256
_POSITION_BITS = 31  # programs of 32 bits read offsets too
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
    """What a directory shows in one generation of the view."""

    generation: int
    entries: Sequence[Listed]

    def index(self, offset: int) -> int:
        """The first entry after *offset*."""
        return bisect_right(self.entries, offset, key=lambda listed: listed.position)


def positions(names: list[bytes]) -> list[tuple[int, bytes]]:
    """*names* in the order of a listing, each with its position: distinct, and independent of the other names.

    Two names whose hashes are equal are the exception: the later one of them moves on.
    """
    hashed = sorted((_FIRST + (_hash(name) >> (64 - _POSITION_BITS)), name) for name in names)
    placed: list[tuple[int, bytes]] = []
    last = 0
    for position, name in hashed:
        last = max(position, last + 1)
        placed.append((last, name))
    return placed


def _hash(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


class Listings:
    """The listings of a mount that are read now; the last ones are kept."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._listings = OrderedDict[int, Listing]()
        self._listed = 0

    def kept(self, inode: int) -> Listing | None:
        """What directory *inode* shows in the newest revision, if that is known already."""
        kept = self._listings.get(inode)
        if kept is None or kept.generation != self._operations.generation:
            return None
        self._listings.move_to_end(inode)
        return kept

    async def get(self, inode: int) -> Listing:
        """What directory *inode* shows in the newest revision; nothing may be awaited between this and its use."""
        while True:
            kept = self.kept(inode)
            if kept is not None:
                return kept
            self.drop(inode)
            made = await self._list_anew(inode)
            if made.generation == self._operations.generation:
                self._keep(inode, made)
                return made

    async def _list_anew(self, inode: int) -> Listing:
        operations = self._operations
        generation = operations.generation
        shown = {one.entry.name: one for one in await operations.listing(inode)}
        node = await operations.directory(inode)
        parent = Found(parent_path(node.found.path), node.found.entry, node.found.home, node.found.home)
        entries = [Listed(_DOT, b".", b"", node.found), Listed(_DOT_DOT, b"..", b"", parent)]
        for position, name in positions(list(shown)):
            key = await operations.key(shown[name])
            entries.append(Listed(position, name, key, shown[name]))
            if len(entries) % _KEYS_AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()  # others are answered meanwhile
        return Listing(generation, entries)

    def _keep(self, inode: int, listing: Listing) -> None:
        self.drop(inode)
        self._listings[inode] = listing
        self._listed += len(listing.entries)
        while len(self._listings) > 1 and (len(self._listings) > _LISTINGS or self._listed > _LISTED_ENTRIES):
            self.drop(next(iter(self._listings)))

    def drop(self, inode: int) -> None:
        """Nobody reads it any more."""
        dropped = self._listings.pop(inode, None)
        if dropped is not None:
            self._listed -= len(dropped.entries)
