"""Reading one revision straight from a store, synchronously: for publishers, checks and tools."""

import threading
from collections import OrderedDict
from collections.abc import Generator
from typing import TypeVar

from fs.errors import AbsentError, CorruptError, RefusedError
from fs.format.catalog import Catalog
from fs.format.compression import Compression, inflate
from fs.format.databases import connect_bytes
from fs.format.entries import Entry, Flag, NestedReference
from fs.format.hashes import Hash, Suffix
from fs.format.lookup import entry_at, serving_catalog
from fs.format.paths import ROOT
from fs.format.symlinks import decode_literal
from fs.format.tree import Content
from fs.store.base import ObjectReader

T = TypeVar("T")

MAX_CATALOG_BYTES = 1 << 30
MAX_STORED_BYTES = 1 << 30
_CACHED_BYTES = 64 << 20
_OPEN_BYTES = 128 << 20


class CatalogCache:
    """The bytes of catalogs used last, uncompressed. Thread-safe."""

    def __init__(self, store: ObjectReader, *, limit_bytes: int = _CACHED_BYTES) -> None:
        self._store = store
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hash, bytes] = OrderedDict()
        self._kept_bytes = 0

    def fetch(self, name: Hash) -> bytes:
        """The database called *name*. Raises what the store raises, CorruptError, RefusedError."""
        with self._lock:
            database = self._kept.get(name)
            if database is not None:
                self._kept.move_to_end(name)
                return database
        stored = self._store.get(name, Suffix.CATALOG, limit_bytes=MAX_STORED_BYTES)
        database = inflate(stored, limit_bytes=MAX_CATALOG_BYTES, name=f"{name}C")
        self.add(name, database)
        return database

    def add(self, name: Hash, database: bytes) -> None:
        """Remember a catalog that was just made."""
        with self._lock:
            if name in self._kept or len(database) > self._limit_bytes:
                return
            self._kept[name] = database
            self._kept_bytes += len(database)
            while self._kept_bytes > self._limit_bytes:
                _, dropped = self._kept.popitem(last=False)
                self._kept_bytes -= len(dropped)


class View:
    """The tree of one revision. Thread-safe; catalogs stay open while they are among those used last."""

    def __init__(self, store: ObjectReader, root_catalog: Hash, *, revision: int, cache: CatalogCache) -> None:
        self.root_catalog = root_catalog
        self.revision = revision
        self._store = store
        self._cache = cache
        self._lock = threading.RLock()
        self._open: OrderedDict[tuple[bytes, Hash], tuple[Catalog, int]] = OrderedDict()
        self._open_bytes = 0

    def lookup(self, path: bytes) -> Entry | None:
        """The entry of canonical *path*, or None. ``target`` is as stored; ``readlink`` gives what was meant."""
        with self._lock:
            return self._drive(entry_at(self._root(), path))

    def list(self, path: bytes) -> list[Entry]:
        """What the directory at *path* holds, by name, without hidden entries.

        Raises:
            AbsentError: there is nothing at *path*.
            RefusedError: it is not a directory.
        """
        entry = self._existing(path)
        if not entry.is_directory:
            raise RefusedError(f"{path!r} is not a directory")
        with self._lock:
            found = self._drive(serving_catalog(self._root(), path)).listing(path)
        return sorted((entry for entry in found if not entry.flags & Flag.HIDDEN), key=lambda entry: entry.name)

    def content(self, path: bytes) -> Content:
        """Where the bytes of the regular file at *path* are. Raises AbsentError, RefusedError, CatalogError."""
        entry = self._existing(path)
        if not entry.is_regular:
            raise RefusedError(f"{path!r} is not a regular file")
        if entry.flags & Flag.EXTERNAL:
            raise RefusedError(f"the content of {path!r} is outside of the repository")
        with self._lock:
            return self._drive(serving_catalog(self._root(), path, entering=False)).content(path, entry)

    def read(self, path: bytes, limit_bytes: int) -> bytes:
        """The bytes of the regular file at *path*, verified.

        Raises:
            AbsentError: there is nothing at *path*, or an object is missing.
            RefusedError: it is not a regular file, or larger than *limit_bytes*.
            CorruptError: an object is damaged.
        """
        content = self.content(path)
        if content.size > limit_bytes:
            raise RefusedError(f"{path!r} has {content.size} bytes, more than {limit_bytes}")
        return b"".join(read_parts(self._store, content))

    def readlink(self, path: bytes) -> bytes:
        """The target of the symbolic link at *path*. Raises AbsentError, RefusedError."""
        entry = self._existing(path)
        if not entry.is_symlink:
            raise RefusedError(f"{path!r} is not a symbolic link")
        return decode_literal(entry.target)

    def close(self) -> None:
        """Close the catalogs."""
        with self._lock:
            for catalog, _ in self._open.values():
                catalog.close()
            self._open.clear()
            self._open_bytes = 0

    def _existing(self, path: bytes) -> Entry:
        entry = self.lookup(path)
        if entry is None:
            raise AbsentError(f"there is no {path.decode('utf-8', 'backslashreplace') or '/'}")
        return entry

    def _root(self) -> Catalog:
        return self._catalog(NestedReference(ROOT, self.root_catalog, 0))

    def _drive(self, walk: Generator[NestedReference, Catalog, T]) -> T:
        try:
            reference = next(walk)
            while True:
                reference = walk.send(self._catalog(reference))
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _catalog(self, reference: NestedReference) -> Catalog:
        key = (reference.path, reference.hash)
        known = self._open.get(key)
        if known is not None:
            self._open.move_to_end(key)
            return known[0]
        database = self._cache.fetch(reference.hash)
        catalog = Catalog(connect_bytes(database), reference.path)
        self._open[key] = (catalog, len(database))
        self._open_bytes += len(database)
        # the one just opened stays; a walk holds no other
        while self._open_bytes > _OPEN_BYTES and len(self._open) > 1:
            dropped, size = self._open.popitem(last=False)[1]
            self._open_bytes -= size
            dropped.close()
        return catalog


def read_parts(store: ObjectReader, content: Content) -> Generator[bytes, None, None]:
    """The bytes of *content*, verified, object by object. Raises AbsentError, CorruptError."""
    if content.hash is not None:
        yield read_object(store, content.hash, Suffix.PLAIN, content.size, content.compression)
    for chunk in content.chunks:
        yield read_object(store, chunk.hash, Suffix.CHUNK, chunk.size, content.compression)


def read_object(store: ObjectReader, name: Hash, suffix: Suffix, size: int, compression: Compression) -> bytes:
    """One object that must have *size* plain bytes. Raises AbsentError, CorruptError."""
    shown = f"{name}{suffix.value}"
    # incompressible bytes grow a little when they are deflated
    stored = store.get(name, suffix, limit_bytes=size + size // 100 + 1024)
    if compression is Compression.NONE:
        data = stored
    else:
        try:
            data = inflate(stored, limit_bytes=size, name=shown)
        except RefusedError as error:
            raise CorruptError(shown, f"it holds more than the {size} bytes it should") from error
    if len(data) != size:
        raise CorruptError(shown, f"it holds {len(data)} bytes instead of {size}")
    return data
