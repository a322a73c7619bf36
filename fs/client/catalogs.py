"""Open catalogs: a bounded number at a time, each verified before it is opened and whenever its file was written to.

A catalog that is open is pinned in the cache: removing its file would give no room back. If open catalogs take more
than half of the quota, those that are opened then are not pinned, except while they are being opened.
"""

import sqlite3
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from urllib.parse import quote

import structlog

from fs.client.cache_writer import CacheFullError
from fs.client.object_file import ObjectFile
from fs.client.objects import Objects, check_file
from fs.client.receiving import ObjectRef
from fs.client.snapshots import FOLDER, Snapshots, is_inside
from fs.errors import CatalogError, CorruptError
from fs.format.catalog import Catalog
from fs.format.databases import connect_bytes, secure
from fs.format.entries import Entry, Name
from fs.format.hashes import Hash, Suffix
from fs.format.lookup import serving_catalog
from fs.store.single_flight import SingleFlight

_log = structlog.get_logger()
T = TypeVar("T")

_LIMIT_BYTES = 2 << 30
_IN_MEMORY_LIMIT_BYTES = 256 << 20  # where the cache takes nothing
_PAGE_CACHE_KIB = 512
_OPENINGS = 3
_PINNED_SHARE = 0.5  # of the quota


@dataclass(frozen=True, slots=True)
class CatalogRef:
    """A catalog and where it is attached."""

    hash: Hash
    mountpoint: bytes = b""

    def __hash__(self) -> int:
        return hash((self.hash.digest, self.mountpoint))


@dataclass(frozen=True, slots=True)
class Found:
    """An entry, where it was found, and where the search for what is below it begins."""

    path: bytes
    entry: Entry
    home: CatalogRef  # the catalog that holds the entry
    inside: CatalogRef  # the catalog that holds a directory's children; home itself for all but mount points


@dataclass(slots=True, eq=False)
class _Open:
    catalog: Catalog
    file: ObjectFile | None  # None while it lives in memory
    state: tuple[int, int, int] | None
    is_pinned: bool = False

    def close(self) -> None:
        self.catalog.close()
        if self.file is not None:
            self.file.close()


class NeedsCatalog(Exception):  # noqa: N818  # a request, not an error
    """What was asked cannot be answered without waiting: the catalog *ref* has to be opened first.

    None is the catalog of the snapshots, which has to be made.
    """

    def __init__(self, ref: CatalogRef | None) -> None:
        super().__init__(ref)
        self.ref = ref


class Catalogs:
    """Opens catalogs on demand and keeps the ones used last.

    A Catalog that ``get`` returned may be closed at any later await: use it before the next one. All of it belongs to
    one event loop. Single look-ups run in it: they take some ten microseconds, less than the way to a thread.

    Whatever can be asked has a form that ends in ``_now``: it answers from open catalogs without an await, or raises
    NeedsCatalog, and changes nothing then. ``answered`` repeats such a question until its catalogs are open.
    """

    def __init__(self, objects: Objects, *, most_open: int = 128) -> None:
        self.objects = objects
        self._most_open = most_open
        self._open = OrderedDict[CatalogRef, _Open]()
        self._opening = SingleFlight[CatalogRef, None]()
        self.snapshots: Snapshots | None = None

    @property
    def open_count(self) -> int:
        """How many are open now."""
        return len(self._open)

    async def get(self, ref: CatalogRef) -> Catalog:
        """The catalog named by *ref*.

        Raises:
            CatalogError: it is not one.
            AbsentError, CorruptError, RefusedError, UnreachableError: it cannot be had.
        """
        return await self.answered(lambda: self.get_now(ref))

    def get_now(self, ref: CatalogRef) -> Catalog:
        """As ``get``. Raises NeedsCatalog."""
        found = self._open.get(ref)
        if found is None or (found.file is not None and found.file.state() != found.state):
            raise NeedsCatalog(ref)
        self._open.move_to_end(ref)
        return found.catalog

    async def answered(self, question: Callable[[], T]) -> T:
        """What *question* returns; it is asked again after each catalog that it needed. Raises as ``get`` does."""
        while True:
            try:
                return question()
            except NeedsCatalog as need:
                ref = need.ref
            if ref is None:
                if self.snapshots is not None:
                    await self.snapshots.make()
                continue
            found = self._open.get(ref)
            if found is None:
                await self._opening.run(ref, partial(self._open_anew, ref))
            else:
                await self._check_again(ref, found)

    async def _check_again(self, ref: CatalogRef, found: _Open) -> None:
        """Somebody wrote to the file (or removed or renamed it): go on with it only if every byte is still right."""
        file = found.file
        if file is None:
            return
        state = file.state()
        try:
            await check_file(file)
        except (CorruptError, OSError) as error:
            if self._open.get(ref) is found:
                del self._open[ref]
                self._close(ref, found)
                self.objects.cache.discard(ref.hash, error)
        else:
            found.state = state

    async def _open_anew(self, ref: CatalogRef) -> None:
        cache = self.objects.cache
        cache.pin(ref.hash)  # others must not push it out between its arrival, its check and its opening
        try:
            opened = await self._opened(ref)
            if opened.file is not None and cache.pinned_bytes <= cache.quota_bytes * _PINNED_SHARE:
                cache.pin(ref.hash)
                opened.is_pinned = True
        finally:
            cache.unpin(ref.hash)
        self._open[ref] = opened
        _log.debug("catalog_opened", path=ref.mountpoint.decode("utf-8", "replace"), object=str(ref.hash))
        while len(self._open) > self._most_open:
            self._close(*self._open.popitem(last=False))

    async def _opened(self, ref: CatalogRef) -> _Open:
        made = self.snapshots.open(ref.hash) if self.snapshots is not None else None
        if made is not None:
            return _Open(made, None, None)
        wanted = ObjectRef(ref.hash, Suffix.CATALOG, limit_bytes=_LIMIT_BYTES)
        try:
            for _ in range(_OPENINGS):
                file = await self.objects.file(wanted)
                try:
                    return _open_file(file, ref.mountpoint)
                except CatalogError:
                    if not self.objects.cache.is_gone(ref.hash):  # another process may have made room just now
                        raise
        except CacheFullError:
            _log.debug("catalog_in_memory", object=str(ref.hash))
        wanted = ObjectRef(ref.hash, Suffix.CATALOG, limit_bytes=_IN_MEMORY_LIMIT_BYTES)
        return _Open(Catalog(connect_bytes(await self.objects.whole(wanted)), ref.mountpoint), None, None)

    def _close(self, ref: CatalogRef, opened: _Open) -> None:
        opened.close()
        if opened.is_pinned:
            self.objects.cache.unpin(ref.hash)

    async def find(self, start: CatalogRef, path: bytes) -> Found | None:
        """The entry at *path*, searched from catalog *start*, which is at or above its parent. Raises as ``get``."""
        return await self.answered(lambda: self.find_now(start, path))

    def find_now(self, start: CatalogRef, path: bytes) -> Found | None:
        """As ``find``. Raises NeedsCatalog."""
        home, catalog = self._walk(self._beginning(start, path), path, entering=False)
        entry = catalog.lookup(path)
        return None if entry is None else found_in(catalog, home, path, entry)

    async def listing(self, start: CatalogRef, path: bytes, *, most: int = -1) -> list[Found]:
        """What is in the directory at *path*, hidden entries included; *most* bounds it. Raises as ``get``."""
        return await self.answered(lambda: self.listing_now(start, path, most=most))

    def listing_now(self, start: CatalogRef, path: bytes, *, most: int = -1) -> list[Found]:
        """As ``listing``. Raises NeedsCatalog."""
        home, catalog = self._walk(self._beginning(start, path), path, entering=True)
        return [found_in(catalog, home, path + b"/" + entry.name, entry) for entry in catalog.listing(path, most=most)]

    async def small_listing(self, start: CatalogRef, path: bytes, *, most: int) -> list[Found] | None:
        """As ``listing``; None if the directory holds more than *most*. Raises as ``get``."""

        def listing() -> list[Found] | None:
            _, catalog = self._walk(self._beginning(start, path), path, entering=True)
            return self.listing_now(start, path) if catalog.is_small(path, most) else None

        return await self.answered(listing)

    async def is_small(self, start: CatalogRef, path: bytes, *, most: int) -> bool:
        """True if the directory at *path* holds no more than *most* entries. Raises as ``get``."""

        def answer() -> bool:
            _, catalog = self._walk(self._beginning(start, path), path, entering=True)
            return catalog.is_small(path, most)

        return await self.answered(answer)

    async def names(self, start: CatalogRef, path: bytes, *, after: int, most: int) -> tuple[CatalogRef, list[Name]]:
        """A part of the names in the directory at *path*, and the catalog that holds them. Raises as ``get``."""

        def part() -> tuple[CatalogRef, list[Name]]:
            home, catalog = self._walk(self._beginning(start, path), path, entering=True)
            return home, catalog.names(path, after=after, most=most)

        return await self.answered(part)

    def at_now(self, home: CatalogRef, folder: bytes, rowid: int) -> Found:
        """The entry in row *rowid* of *home*, which lies in the directory *folder*. Raises NeedsCatalog."""
        catalog = self.get_now(home)
        entry = catalog.at(rowid)
        return found_in(catalog, home, folder + b"/" + entry.name, entry)

    async def serving(self, start: CatalogRef, path: bytes) -> CatalogRef:
        """The catalog that lists the directory at *path*, whether that exists or not. Raises as ``get``."""
        return await self.answered(lambda: self._walk(self._beginning(start, path), path, entering=True)[0])

    def _beginning(self, start: CatalogRef, path: bytes) -> CatalogRef:
        """Where to begin to look for *path*: snapshots are in no catalog of the repository. Raises NeedsCatalog."""
        if self.snapshots is None or not is_inside(path) or is_inside(start.mountpoint):
            return start
        if not self.snapshots.is_made:
            raise NeedsCatalog(None)
        name = self.snapshots.name_now()
        return start if name is None else CatalogRef(name, FOLDER)

    def _walk(self, start: CatalogRef, path: bytes, *, entering: bool) -> tuple[CatalogRef, Catalog]:
        """The catalog that serves *path*, from *start* on. Raises NeedsCatalog."""
        reached = start
        catalog = self.get_now(start)
        walk = serving_catalog(catalog, path, entering=entering)
        try:
            reference = next(walk)
            while True:
                reached = CatalogRef(reference.hash, reference.path)
                reference = walk.send(self.get_now(reached))
        except StopIteration as stop:
            arrived: Catalog = stop.value
            return reached, arrived

    def close(self) -> None:
        """Close all catalogs."""
        while self._open:
            self._close(*self._open.popitem())


def found_in(catalog: Catalog, home: CatalogRef, path: bytes, entry: Entry) -> Found:
    """*entry* of *catalog* at *path*, with the catalog that its children are in."""
    if not entry.is_directory:
        return Found(path, entry, home, home)
    reference = catalog.nested_holding(path)
    is_mountpoint = reference is not None and reference.path == path
    inside = CatalogRef(reference.hash, path) if reference is not None and is_mountpoint else home
    return Found(path, entry, home, inside)


def _open_file(file: ObjectFile, mountpoint: bytes) -> _Open:
    """Open a verified database. SQLite does not mind the trailer: it reads the pages that the header counts."""
    state = file.state()
    try:
        connection = sqlite3.connect(
            f"file:{quote(file.path)}?mode=ro&immutable=1", uri=True, check_same_thread=False, isolation_level=None
        )
    except sqlite3.Error as error:
        file.close()
        raise CatalogError(f"catalog of {mountpoint!r} cannot be opened: {error}") from error
    try:
        secure(connection)
        connection.execute("PRAGMA query_only=ON")
        connection.execute(f"PRAGMA cache_size=-{_PAGE_CACHE_KIB}")
        return _Open(Catalog(connection, mountpoint), file, state)
    except BaseException as error:
        connection.close()
        file.close()
        if isinstance(error, sqlite3.Error):
            raise CatalogError(f"catalog of {mountpoint!r} is not an SQLite database: {error}") from error
        raise
