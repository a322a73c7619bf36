"""File catalogs: SQLite databases that hold one subtree each, read.

Everything works on a connection that the caller made (from a file or from memory), so this module does no I/O of its
own. Source: CernVM-FS 2.12, catalog_sql.cc, catalog.cc.
"""

import sqlite3
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from fs.errors import CatalogError, HashSyntaxError
from fs.format.catalog_rows import (
    ABSENT_COLUMNS,
    COLUMNS,
    DEFAULT_TTL_S,
    NO_PREDECESSOR,
    SCHEMA_VERSION,
    algorithm_of,
    check_numbers,
    entry_of,
    hardlinks_of,
    hash_of,
)
from fs.format.columns import as_bytes, as_number, as_text
from fs.format.databases import plain_columns
from fs.format.entries import COUNTER_NAMES, Counters, Entry, Flag, Name, NestedReference, is_name
from fs.format.hashes import Algorithm, Hash, Suffix
from fs.format.paths import ROOT, parent_path, path_key
from fs.format.tree import Chunk, Content

T = TypeVar("T")

_TABLES = {b"catalog", b"chunks", b"nested_catalogs", b"statistics"}
_FOLDERS_KNOWN = 1024
_ROWS_AT_ONCE = 1000


class Catalog:
    """Read access to one catalog, attached at *mountpoint*.

    Paths given and returned are those users see. They differ from the catalog's own only below bind mount points,
    where the root of an older revision is attached elsewhere (``root_prefix`` ≠ *mountpoint*).

    Not thread-safe beyond what the connection is. The caller closes it.
    """

    def __init__(self, connection: sqlite3.Connection, mountpoint: bytes = ROOT, *, as_stored: bool = False) -> None:
        """Check that *connection* is a catalog.

        Args:
            connection: a database.
            mountpoint: the path at which users see its root.
            as_stored: directories have the link counts of their rows, not those that readers show.

        Raises:
            CatalogError: tables or properties are missing, or the schema is not one this reader knows.
        """
        self._db = connection
        self.mountpoint = mountpoint
        self._is_as_stored = as_stored
        try:
            self.properties = {
                as_bytes(key).decode("utf-8", "replace"): as_text(value)
                for key, value in connection.execute("SELECT CAST(key AS TEXT), CAST(value AS TEXT) FROM properties")
            }
            self._check_schema()
            tables = {bytes(row[0]) for row in connection.execute("SELECT name FROM sqlite_schema WHERE type='table'")}
            columns, nested_columns = (plain_columns(connection, table) for table in ("catalog", "nested_catalogs"))
            for table in ("chunks", "bind_mountpoints", "statistics", "unpackd_links"):
                plain_columns(connection, table)
        except (sqlite3.DatabaseError, TypeError) as error:
            raise CatalogError(f"catalog of {mountpoint!r} cannot be read: {error}") from error
        needed = {b"catalog", b"nested_catalogs"} if self.is_legacy else _TABLES
        missing = needed - tables
        if missing:
            raise CatalogError(f"catalog of {mountpoint!r} lacks the table {min(missing).decode()}")
        self.root_prefix = self.properties.get("root_prefix", "").encode("utf-8", "surrogateescape")
        self._nested: dict[bytes, NestedReference] | None = None  # read when first wanted
        self._above: dict[bytes, NestedReference | None] = {}  # what holds directories that were asked for
        self._has_binds = b"bind_mountpoints" in tables
        self._has_links = b"unpackd_links" in tables
        self._has_statistics = b"statistics" in tables
        self._nested_size = "size" if "size" in nested_columns else "0"
        self._select = "SELECT " + COLUMNS.format(
            **{name: name if name in columns else other for name, other in ABSENT_COLUMNS.items()}
        )

    def _check_schema(self) -> None:
        version = self.properties.get("schema", "1.0")
        if version not in ("2.4", SCHEMA_VERSION) and not self.is_legacy:
            raise CatalogError(
                f"catalog of {self.mountpoint!r} has schema {version}; those below 2.0, 2.4 and 2.5 can be read"
            )

    @property
    def is_legacy(self) -> bool:
        """True for schemas before 2.0, which know neither owners nor link counts nor chunks."""
        major, _, minor = self.properties.get("schema", "1.0").partition(".")
        return major in ("0", "1") and minor.isdigit()

    @property
    def revision(self) -> int:
        """How often this catalog was rewritten; the root's is the repository's revision."""
        return self._number("revision", 0)

    @property
    def last_modified_unix_s(self) -> int:
        """When the catalog was rewritten last."""
        return self._number("last_modified", 0)

    @property
    def ttl_s(self) -> int:
        """How long a client may use the root catalog before it looks for a newer one."""
        return self._number("TTL", DEFAULT_TTL_S)

    @property
    def previous(self) -> Hash | None:
        """The version of this catalog before the current one."""
        text = self.properties.get("previous_revision", NO_PREDECESSOR)
        try:
            return None if text in ("", NO_PREDECESSOR) else Hash.parse(text)
        except HashSyntaxError as error:
            raise CatalogError(f"previous_revision of {self.mountpoint!r} is {text!r}") from error

    def _number(self, key: str, default: int) -> int:
        text = self.properties.get(key)
        try:
            return default if text is None else int(text)
        except ValueError as error:
            raise CatalogError(f"property {key} of the catalog of {self.mountpoint!r} is {text!r}") from error

    def inner(self, path: bytes) -> bytes:
        """The path by which the catalog itself knows what users see at *path*."""
        return self.root_prefix + path[len(self.mountpoint) :]

    def outer(self, path: bytes) -> bytes:
        """Inverse of ``inner``."""
        return self.mountpoint + path[len(self.root_prefix) :]

    def lookup(self, path: bytes) -> Entry | None:
        """The entry of *path*, or None; only paths that this catalog serves are found."""
        key = path_key(self.inner(path))
        row = self._one(self._select + " FROM catalog WHERE md5path_1=? AND md5path_2=?", key)
        return self._entry(row, key) if row is not None else None

    def listing(self, path: bytes, *, most: int = -1) -> list[Entry]:
        """What the directory at *path* holds, hidden entries included, in no particular order; *most* bounds it.

        Rows that a look-up by name would not find are left out, as the reference client does.
        """
        folder = self.inner(path)
        return [
            entry
            for key, entry in self.rows_in(path, most=most)
            if is_name(entry.name) and key == path_key(folder + b"/" + entry.name)
        ]

    def rows_in(self, path: bytes, *, most: int = -1) -> list[tuple[tuple[int, int], Entry]]:
        """Every row that calls the directory at *path* its parent, with its path key: what a check looks at."""
        statement = self._select + ", md5path_1, md5path_2 FROM catalog WHERE parent_1=? AND parent_2=? LIMIT ?"
        # the root is its own parent's child nowhere: parent 0/0 is no path's key
        rows = self._all(statement, (*path_key(self.inner(path)), most))
        return [(row[-2:], self._entry(row[:-2], row[-2:])) for row in rows]

    def is_small(self, path: bytes, most: int) -> bool:
        """True if no more than *most* rows call the directory at *path* their parent."""
        statement = "SELECT count(*) FROM (SELECT 1 FROM catalog WHERE parent_1=? AND parent_2=? LIMIT ?)"
        [(count,)] = self._all(statement, (*path_key(self.inner(path)), most + 1))
        return bool(count <= most)

    def names(self, path: bytes, *, after: int, most: int) -> list[Name]:
        """At most *most* of the rows that call the directory at *path* their parent, those behind row *after*."""
        folder = self.inner(path)
        statement = (
            "SELECT rowid, name, flags, md5path_1, md5path_2 FROM catalog"
            " WHERE parent_1=? AND parent_2=? AND rowid>? ORDER BY rowid LIMIT ?"
        )
        rows = self._all(statement, (*path_key(folder), after, most))
        names = []
        try:
            for rowid, text, bits, *key in rows:
                name = as_bytes(text)
                is_found = is_name(name) and tuple(key) == path_key(folder + b"/" + name)
                names.append(Name(as_number(rowid), name, is_found and not bits & Flag.HIDDEN))
        except (TypeError, ValueError) as error:
            raise CatalogError(f"a name in {path!r} is malformed") from error
        return names

    def at(self, rowid: int) -> Entry:
        """The entry in row *rowid*, which ``names`` gave."""
        row = self._one(self._select + ", md5path_1, md5path_2 FROM catalog WHERE rowid=?", (rowid,))
        if row is None:
            raise CatalogError(f"catalog of {self.mountpoint!r} has lost row {rowid}")
        return self._entry(row[:-2], row[-2:])

    def entries(self) -> Iterator[tuple[tuple[int, int], Entry]]:
        """Every entry with its path key, in storage order."""
        statement = self._select + ", md5path_1, md5path_2 FROM catalog ORDER BY rowid"
        rows = self._read(lambda: self._db.execute(statement))
        while batch := self._read(lambda: rows.fetchmany(_ROWS_AT_ONCE)):
            for row in batch:
                yield row[-2:], self._entry(row[:-2], row[-2:])

    def content(self, path: bytes, entry: Entry) -> Content:
        """Where the bytes of regular file *entry* at *path* are.

        Raises:
            CatalogError: it has neither a hash nor chunks, or its chunks do not cover it.
        """
        if not entry.has(Flag.CHUNKED):
            if entry.hash is None:
                raise CatalogError(f"{path!r} has no content hash")
            return Content(entry.size, entry.hash, (), entry.compression)
        chunks = self.chunks(path, entry.algorithm)
        position = 0
        for chunk in chunks:
            if chunk.offset != position:
                raise CatalogError(f"the chunks of {path!r} are not contiguous at {position}")
            position += chunk.size
        if position != entry.size or not chunks:
            raise CatalogError(f"the chunks of {path!r} cover {position} of {entry.size} bytes")
        return Content(entry.size, None, chunks, entry.compression)

    def chunks(self, path: bytes, algorithm: Algorithm) -> tuple[Chunk, ...]:
        """The rows of table ``chunks`` for *path*, by offset."""
        statement = "SELECT offset, size, hash FROM chunks WHERE md5path_1=? AND md5path_2=? ORDER BY offset"
        rows = self._all(statement, path_key(self.inner(path)))
        try:
            return tuple(Chunk(int(offset), int(size), hash_of(digest, algorithm)) for offset, size, digest in rows)
        except (TypeError, ValueError, HashSyntaxError) as error:
            raise CatalogError(f"the chunks of {path!r} are malformed") from error

    def shown_linkcounts(self) -> dict[tuple[int, int], int]:
        """The link counts that directories show instead of those in their rows, by path key."""
        if not self._has_links:
            return {}
        rows = self._all("SELECT md5path_1, md5path_2, linkcount FROM unpackd_links WHERE link_group=0", ())
        return {(first, second): count for first, second, count in rows}

    def link_key(self, path: bytes, entry: Entry) -> tuple[int, int]:
        """The path key that stands for all members of the hard link group of *entry*: the smallest of theirs."""
        if entry.link_group < 0:
            statement = "SELECT md5path_1, md5path_2 FROM unpackd_links WHERE link_group=? ORDER BY 1, 2 LIMIT 1"
            row = self._one(statement, (-entry.link_group,))
        else:
            statement = (
                "SELECT md5path_1, md5path_2 FROM catalog WHERE parent_1=? AND parent_2=? AND hardlinks=?"
                " ORDER BY 1, 2 LIMIT 1"
            )
            hardlinks = hardlinks_of(entry)
            row = self._one(statement, (*path_key(parent_path(self.inner(path))), hardlinks))
        return path_key(self.inner(path)) if row is None else row

    def objects(self) -> Iterator[tuple[Hash, Suffix, int]]:
        """Every object that a row or a chunk of this catalog refers to, with its plain size, as often as it does.

        External contents are not objects of the repository and are left out.

        Raises:
            CatalogError: a hash, size or flag is not what it must be.
        """
        whole = "SELECT hash, size, flags FROM catalog WHERE hash IS NOT NULL"
        parts = (
            "SELECT chunks.hash, chunks.size, catalog.flags FROM chunks, catalog"
            " WHERE chunks.md5path_1=catalog.md5path_1 AND chunks.md5path_2=catalog.md5path_2"
        )
        yield from self._objects(whole, Suffix.PLAIN)
        if not self.is_legacy:
            yield from self._objects(parts, Suffix.CHUNK)

    def _objects(self, statement: str, suffix: Suffix) -> Iterator[tuple[Hash, Suffix, int]]:
        rows = self._read(lambda: self._db.execute(statement))
        while batch := self._read(lambda: rows.fetchmany(_ROWS_AT_ONCE)):
            for digest, size, bits in batch:
                try:
                    if bits & Flag.EXTERNAL:
                        continue
                    name = hash_of(digest, algorithm_of(bits))
                    check_numbers(0, size, stat.S_IFREG, 0)
                except (TypeError, ValueError, HashSyntaxError) as error:
                    raise CatalogError(f"an object of the catalog of {self.mountpoint!r} is malformed") from error
                yield name, suffix, size

    def nested_holding(self, path: bytes) -> NestedReference | None:
        """The catalog directly below this one with the longest path that is *path* or above it, or None."""
        if self._nested is None:
            self._nested = {reference.path: reference for reference in self.nested()}
        reference = self._nested.get(path) if len(path) > len(self.mountpoint) else None
        if reference is not None or not self._nested:
            return reference
        folder = parent_path(path)
        if folder not in self._above:
            if len(self._above) == _FOLDERS_KNOWN:
                self._above.clear()
            self._above[folder] = self._nested_above(self._nested, folder)
        return self._above[folder]

    def _nested_above(self, nested: Mapping[bytes, NestedReference], path: bytes) -> NestedReference | None:
        while len(path) > len(self.mountpoint):
            reference = nested.get(path)
            if reference is not None:
                return reference
            path = parent_path(path)
        return None

    def nested(self) -> list[NestedReference]:
        """The catalogs directly below this one, bind mount points included."""
        found = [self._reference(row, is_bind=False) for row in self._references("nested_catalogs")]
        if self._has_binds:
            found += [self._reference(row, is_bind=True) for row in self._references("bind_mountpoints")]
        return found

    def _references(self, table: str) -> list[tuple[bytes, bytes, int | None]]:
        return self._all(f"SELECT path, sha1, {self._nested_size} FROM {table}", ())  # noqa: S608  # names of ours

    def _reference(self, row: tuple[bytes, bytes, int | None], *, is_bind: bool) -> NestedReference:
        path, text, size = row
        try:
            return NestedReference(self.outer(as_bytes(path)), Hash.parse(as_text(text)), as_number(size or 0), is_bind)
        except (HashSyntaxError, TypeError, ValueError) as error:
            raise CatalogError(f"nested catalog {path!r} has the hash {text!r}") from error

    def counters(self) -> Counters:
        """The table ``statistics``; counters that old schema revisions lack are 0."""
        if not self._has_statistics:
            return Counters(dict.fromkeys(COUNTER_NAMES, 0), dict.fromkeys(COUNTER_NAMES, 0))
        rows = self._all("SELECT counter, value FROM statistics", ())
        try:
            found = {as_text(name): int(value) for name, value in rows}
        except (TypeError, ValueError, OverflowError) as error:
            raise CatalogError(f"the counters of the catalog of {self.mountpoint!r} are malformed") from error
        return Counters(
            {name: found.get(f"self_{name}", 0) for name in COUNTER_NAMES},
            {name: found.get(f"subtree_{name}", 0) for name in COUNTER_NAMES},
        )

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def _one(self, statement: str, values: tuple[int, ...]) -> tuple | None:  # type: ignore[type-arg]  # a raw row
        rows = self._all(statement, values)
        return rows[0] if rows else None

    def _all(self, statement: str, values: tuple[int, ...]) -> list:  # type: ignore[type-arg]  # raw rows
        return self._read(lambda: self._db.execute(statement, values).fetchall())

    def _read(self, query: Callable[[], T]) -> T:
        try:
            return query()
        except sqlite3.DatabaseError as error:
            raise CatalogError(f"catalog of {self.mountpoint!r} cannot be read: {error}") from error

    def _entry(self, row: tuple, key: tuple[int, int]) -> Entry:  # type: ignore[type-arg]  # a raw row
        try:
            entry = entry_of(row)
        except (TypeError, ValueError, HashSyntaxError) as error:
            raise CatalogError(f"entry {row!r:.200} of the catalog of {self.mountpoint!r} is malformed") from error
        if not self._has_links or (entry.is_directory and self._is_as_stored):
            return entry
        links = self._one("SELECT link_group, linkcount FROM unpackd_links WHERE md5path_1=? AND md5path_2=?", key)
        if links is None or entry.is_directory is bool(links[0]):
            return entry
        try:
            return replace(entry, link_group=-as_number(links[0]), linkcount=as_number(links[1]))
        except ValueError as error:
            raise CatalogError(f"the links of {entry.name!r} are malformed") from error
