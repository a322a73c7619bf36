"""What is different between two revisions: only catalogs whose hash differs are opened."""

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from fs.errors import CatalogError
from fs.format.catalog import Catalog
from fs.format.databases import connect_bytes
from fs.format.entries import Entry, Flag, NestedReference
from fs.format.hashes import Hash
from fs.format.paths import ROOT
from fs.publish.view import CatalogCache
from fs.store.base import ObjectReader

_OTHER_CATALOG = Flag.NESTED_MOUNTPOINT | Flag.BIND_MOUNTPOINT


class Change(Enum):
    """What happened to a path."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Difference:
    """One path that is not the same in both revisions."""

    path: bytes
    change: Change
    before: Entry | None
    after: Entry | None
    aspects: tuple[str, ...] = ()  # of what was changed: type, mode, owner, content, time, target, device, xattrs


@dataclass(frozen=True, slots=True)
class _Place:
    """A path in one of the revisions: its entry, and the catalog that the entry is in."""

    entry: Entry
    catalog: Catalog


_Pair = tuple[bytes, _Place | None, _Place | None]


def differences(store: ObjectReader, before: Hash, after: Hash, path: bytes = ROOT) -> Iterator[Difference]:
    """The paths that differ between two catalogs of *path*, parents before children, names in byte order.

    Of directories, times and sizes are not compared: they follow from what is inside. Hard links are compared as
    files; contents by their objects, so one that was only stored in another way counts as changed.

    Raises:
        AbsentError, CorruptError, CatalogError: a catalog cannot be read.
    """
    if before != after:
        yield from _Walk(store).run(before, after, path)


class _Walk:
    def __init__(self, store: ObjectReader) -> None:
        self._cache = CatalogCache(store)
        self._pending: list[_Pair | Catalog] = []  # a catalog is closed when the walk comes back to it

    def run(self, before: Hash, after: Hash, path: bytes) -> Iterator[Difference]:
        roots = [self._open(NestedReference(path, name, 0)) for name in (before, after)]
        entries = [catalog.lookup(path) for catalog in roots]
        if entries[0] is None or entries[1] is None:
            raise CatalogError(f"a catalog of {path!r} has no entry for its own root")
        self._pending.append((path, _Place(entries[0], roots[0]), _Place(entries[1], roots[1])))
        try:
            while self._pending:
                item = self._pending.pop()
                if isinstance(item, Catalog):
                    item.close()
                    continue
                found = _compare(*item)
                if found is not None:
                    yield found
                self._descend(*item)
        finally:
            for item in self._pending:
                if isinstance(item, Catalog):
                    item.close()

    def _open(self, reference: NestedReference) -> Catalog:
        catalog = Catalog(connect_bytes(self._cache.fetch(reference.hash)), reference.path)
        self._pending.append(catalog)
        return catalog

    def _descend(self, path: bytes, before: _Place | None, after: _Place | None) -> None:
        """Queue what is in the directory at *path*, unless both revisions have the same catalog there."""
        references = [_reference(path, place) for place in (before, after)]
        if references[0] is not None and references[1] is not None and references[0].hash == references[1].hash:
            return
        sides: list[dict[bytes, _Place]] = []
        for place, reference in zip((before, after), references, strict=True):
            if place is None or not place.entry.is_directory:
                sides.append({})
                continue
            catalog = place.catalog if reference is None else self._open(reference)
            found = catalog.listing(path)
            sides.append({e.name: _Place(e, catalog) for e in found if not e.flags & Flag.HIDDEN})
        names = sorted(sides[0].keys() | sides[1].keys(), reverse=True)  # the last one queued comes first
        self._pending += [(path + b"/" + name, sides[0].get(name), sides[1].get(name)) for name in names]


def _reference(path: bytes, place: _Place | None) -> NestedReference | None:
    """The catalog that begins at *path*, if one does."""
    if place is None or not place.entry.flags & _OTHER_CATALOG:
        return None
    reference = place.catalog.nested_holding(path)
    if reference is None or reference.path != path:
        raise CatalogError(f"the mount point {path!r} has no catalog")
    return reference


def _compare(path: bytes, before: _Place | None, after: _Place | None) -> Difference | None:
    if before is None:
        return Difference(path, Change.ADDED, None, after.entry if after else None)
    if after is None:
        return Difference(path, Change.REMOVED, before.entry, None)
    aspects = tuple(_aspects(path, before, after))
    return Difference(path, Change.CHANGED, before.entry, after.entry, aspects) if aspects else None


def _aspects(path: bytes, before: _Place, after: _Place) -> Iterator[str]:
    old, new = before.entry, after.entry
    if stat.S_IFMT(old.mode) != stat.S_IFMT(new.mode):
        yield "type"
    if stat.S_IMODE(old.mode) != stat.S_IMODE(new.mode):
        yield "mode"
    if (old.uid, old.gid) != (new.uid, new.gid):
        yield "owner"
    if old.is_regular and new.is_regular and not _same_content(path, before, after):
        yield "content"
    if not new.is_directory and old.mtime_ns != new.mtime_ns:
        yield "time"
    if old.target != new.target:
        yield "target"
    if old.rdev != new.rdev:
        yield "device"
    if old.xattrs != new.xattrs:
        yield "xattrs"


def _same_content(path: bytes, before: _Place, after: _Place) -> bool:
    old, new = before.entry, after.entry
    if (old.size, old.hash, old.flags & Flag.CHUNKED) != (new.size, new.hash, new.flags & Flag.CHUNKED):
        return False
    if not old.flags & Flag.CHUNKED:
        return True
    return before.catalog.chunks(path, old.algorithm) == after.catalog.chunks(path, new.algorithm)
