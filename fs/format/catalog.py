"""File catalogs: SQLite databases that hold one subtree each, as rows and as values.

Everything works on a connection that the caller made (from a file or from memory), so this module does no I/O of its
own. Source: CernVM-FS 2.12, catalog_sql.cc, catalog_counters.h, directory_entry.h.
"""

import sqlite3
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntFlag
from functools import cache
from typing import NamedTuple, TypeVar

from fs.errors import CatalogError, HashSyntaxError
from fs.format.columns import as_bytes, as_number, as_text
from fs.format.compression import Compression
from fs.format.hashes import DIGEST_BYTES, Algorithm, Hash, Suffix
from fs.format.paths import ROOT, name_of, parent_path, path_key
from fs.format.tree import Chunk, Content
from fs.format.xattrs import decode_xattrs, encode_xattrs

T = TypeVar("T")

SCHEMA_VERSION = "2.5"
SCHEMA_REVISION = "7"
DEFAULT_TTL_S = 240
NO_PREDECESSOR = "0" * 40
"""``previous_revision`` of a catalog that has none."""

DIRECTORY_SIZE = 4096
"""What directories state as their size."""

SCHEMA = """
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE catalog (md5path_1 INTEGER, md5path_2 INTEGER, parent_1 INTEGER, parent_2 INTEGER,
  hardlinks INTEGER, hash BLOB, size INTEGER, mode INTEGER, mtime INTEGER, mtimens INTEGER,
  flags INTEGER, name TEXT, symlink TEXT, uid INTEGER, gid INTEGER, xattr BLOB,
  CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2));
CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2);
CREATE TABLE chunks (md5path_1 INTEGER, md5path_2 INTEGER, offset INTEGER, size INTEGER, hash BLOB,
  CONSTRAINT pk_chunks PRIMARY KEY (md5path_1, md5path_2, offset, size),
  FOREIGN KEY (md5path_1, md5path_2) REFERENCES catalog(md5path_1, md5path_2));
CREATE TABLE nested_catalogs (path TEXT, sha1 TEXT, size INTEGER, CONSTRAINT pk_nested_catalogs PRIMARY KEY (path));
CREATE TABLE bind_mountpoints (path TEXT, sha1 TEXT, size INTEGER,
  CONSTRAINT pk_bind_mountpoints PRIMARY KEY (path));
CREATE TABLE statistics (counter TEXT, value INTEGER, CONSTRAINT pk_statistics PRIMARY KEY (counter));
"""

LINKS_SCHEMA = """
CREATE TABLE unpackd_links (md5path_1 INTEGER, md5path_2 INTEGER, link_group INTEGER, linkcount INTEGER,
  CONSTRAINT pk_unpackd_links PRIMARY KEY (md5path_1, md5path_2));
"""
"""What the reference schema cannot express of link counts. The table exists only in catalogs that need it.

Hard links whose names lie in several directories: the rows of ``catalog`` say link count 1 for them, so every other
reader sees independent files with equal content; readers that know this table see one inode. Directories that have
hidden directories in them: the rows of ``catalog`` count those, as the reference's checker demands; here, with the link
group 0, stands the link count without them, which is what readers that know this table show.
"""

INSERT_ENTRY = (
    "INSERT OR REPLACE INTO catalog (md5path_1, md5path_2, parent_1, parent_2, hardlinks, hash, size, mode, mtime,"
    " mtimens, flags, name, symlink, uid, gid, xattr)"
    # names are bytes: bound as blobs, stored as text whatever their encoding
    " VALUES (?,?,?,?,?,?,?,?,?,?,?,CAST(? AS TEXT),CAST(? AS TEXT),?,?,?)"
)
INSERT_CHUNK = "INSERT OR REPLACE INTO chunks (md5path_1, md5path_2, offset, size, hash) VALUES (?,?,?,?,?)"

_NS = 1_000_000_000
_HASH_SHIFT, _HASH_MASK = 8, 7
_COMPRESSION_SHIFT, _COMPRESSION_MASK = 11, 7
_GROUP_SHIFT, _COUNT_MASK = 32, 0xFFFFFFFF

Row = tuple[
    int,
    int,
    int,
    int,
    int,
    bytes | None,
    int,
    int,
    int,
    int | None,
    int,
    bytes,
    bytes,
    int,
    int,
    bytes | None,
]


class Flag(IntFlag):
    """Bits of the column ``flags`` that are not numbers."""

    DIRECTORY = 1
    NESTED_MOUNTPOINT = 2
    FILE = 4
    LINK = 8
    SPECIAL = 16
    NESTED_ROOT = 32
    CHUNKED = 64
    EXTERNAL = 128
    BIND_MOUNTPOINT = 0x4000
    HIDDEN = 0x8000
    DIRECT_IO = 0x10000


NO_FLAGS = Flag(0)

_TABLES = {b"catalog", b"chunks", b"nested_catalogs", b"statistics"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of a catalog, as a reader wants it.

    ``size`` is what a file's content must have; symlinks and devices have their own fields. The content of a chunked
    file is asked from the catalog (``Catalog.content``).
    """

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    hash: Hash | None = None
    compression: Compression = Compression.ZLIB
    algorithm: Algorithm = Algorithm.SHA1  # of the content, also where hash is None (chunked)
    target: bytes = b""
    rdev: int = 0
    linkcount: int = 1
    link_group: int = 0  # equal numbers in one catalog mean one inode; 0 is none
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    flags: Flag = NO_FLAGS
    rowid: int = 0

    @property
    def is_directory(self) -> bool:
        """True for directories, nested and bind mount points included."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        """True for regular files."""
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        """True for symbolic links."""
        return stat.S_ISLNK(self.mode)


class Name(NamedTuple):
    """What a directory lists, without what the row says of it."""

    rowid: int
    name: bytes
    is_shown: bool  # false for hidden entries, and for rows that a look-up by name would not find


def type_flags(mode: int) -> Flag:
    """The type bits that belong to *mode*."""
    match stat.S_IFMT(mode):
        case stat.S_IFDIR:
            return Flag.DIRECTORY
        case stat.S_IFLNK:
            return Flag.FILE | Flag.LINK
        case stat.S_IFREG:
            return Flag.FILE
        case _:
            return Flag.FILE | Flag.SPECIAL


def entry_row(path: bytes, entry: Entry) -> Row:
    """The row, in the order of INSERT_ENTRY, that stores *entry* at canonical *path*.

    The type bits follow from the mode; a hash algorithm and a compression are written for regular files only.
    """
    flags = int(entry.flags | type_flags(entry.mode))
    if entry.hash is not None or entry.flags & Flag.CHUNKED:
        flags |= entry.algorithm.flag_number << _HASH_SHIFT
    if entry.is_regular:
        flags |= entry.compression.value << _COMPRESSION_SHIFT
    seconds, nanoseconds = divmod(entry.mtime_ns, _NS)
    parent = (0, 0) if path == ROOT else path_key(parent_path(path))
    return (
        *path_key(path),
        *parent,
        entry.link_group << _GROUP_SHIFT | entry.linkcount,
        entry.hash.digest if entry.hash else None,
        _stored_size(entry),
        entry.mode,
        seconds,
        nanoseconds,
        flags,
        name_of(path),
        entry.target,
        entry.uid,
        entry.gid,
        encode_xattrs(entry.xattrs),
    )


def _stored_size(entry: Entry) -> int:
    if entry.is_symlink:
        return len(entry.target)
    if stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode):
        return entry.rdev
    return entry.size


@dataclass(frozen=True, slots=True)
class NestedReference:
    """A row of ``nested_catalogs`` or ``bind_mountpoints``."""

    path: bytes
    hash: Hash
    size: int  # of the uncompressed database; 0 if unknown
    is_bind: bool = False


COUNTER_NAMES = (
    "regular",
    "symlink",
    "special",
    "dir",
    "nested",
    "chunked",
    "chunks",
    "file_size",
    "chunked_size",
    "xattr",
    "external",
    "external_file_size",
)


@dataclass(frozen=True, slots=True)
class Counters:
    """The 24 numbers of the table ``statistics``: of the catalog itself, and of all below it."""

    own: Mapping[str, int]
    subtree: Mapping[str, int]

    @property
    def total(self) -> dict[str, int]:
        """Own plus subtree, by counter."""
        return {name: self.own[name] + self.subtree[name] for name in COUNTER_NAMES}


def count_entry(counters: dict[str, int], entry: Entry, *, chunks: int = 0, sign: int = 1) -> None:
    """Add (*sign* 1) or take away (-1) what *entry* contributes to its catalog's own counters."""
    kind = type_flags(entry.mode)
    if entry.xattrs:
        counters["xattr"] += sign
    if kind & Flag.DIRECTORY:
        counters["dir"] += sign
    elif kind & Flag.LINK:
        counters["symlink"] += sign
    elif kind & Flag.SPECIAL:
        counters["special"] += sign
    else:
        counters["regular"] += sign
        counters["file_size"] += sign * entry.size
        if entry.flags & Flag.CHUNKED:
            counters["chunked"] += sign
            counters["chunked_size"] += sign * entry.size
            counters["chunks"] += sign * chunks
        if entry.flags & Flag.EXTERNAL:
            counters["external"] += sign
            counters["external_file_size"] += sign * entry.size


def secure(connection: sqlite3.Connection) -> None:
    """Settings for a database that somebody else wrote: nothing in it may run, damage is noticed, text is bytes."""
    connection.text_factory = bytes
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_VDBE_OP, _LONGEST_PROGRAM)
    connection.execute("PRAGMA trusted_schema=OFF")
    connection.execute("PRAGMA cell_size_check=ON")
    connection.execute("PRAGMA mmap_size=0")


def plain_columns(connection: sqlite3.Connection, table: str) -> set[str]:
    """The columns of *table*, a table of the format; empty if there is none.

    Raises:
        CatalogError: it computes columns, or is read by a module of SQLite: a hostile database could do anything there.
        sqlite3.DatabaseError: the database cannot be read.
    """
    columns = connection.execute(f"PRAGMA table_xinfo({table})").fetchall()
    sql = connection.execute("SELECT sql FROM sqlite_schema WHERE type='table' AND name=?", (table,)).fetchone()
    is_virtual = sql is not None and not as_text(sql[0]).upper().startswith("CREATE TABLE")
    if is_virtual or any(hidden for *_, hidden in columns):
        raise CatalogError(f"the table {table} is not a plain one")
    return {as_text(row[1]) for row in columns}


def connect_bytes(database: bytes) -> sqlite3.Connection:
    """A read-only view of a database that is in memory; close it after use.

    Raises:
        CatalogError: it is not an SQLite database.
    """
    if not database:
        raise CatalogError("not an SQLite database: it is empty")  # SQLite would say that there is no memory
    connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    try:
        connection.deserialize(database)
        secure(connection)
        connection.execute("PRAGMA query_only=ON")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except (sqlite3.DatabaseError, OverflowError, UnicodeDecodeError) as error:  # messages quote bytes of the file
        connection.close()
        raise CatalogError(f"not an SQLite database: {error}") from error
    return connection


_COLUMNS = "{hardlinks}, hash, size, mode, mtime, {mtimens}, flags, name, symlink, {uid}, {gid}, {xattr}, rowid"

_ABSENT_COLUMNS = {"hardlinks": "1", "mtimens": "NULL", "uid": "0", "gid": "0", "xattr": "NULL"}
"""What stands for columns that older schemas lack."""

_LONGEST_NAME = 255
_FOLDERS_KNOWN = 1024
_ROWS_AT_ONCE = 1000
_LONGEST_VALUE_BYTES = 16 << 20  # of what SQLite may hold at a time; attributes are the longest values, with 64 KiB
_LONGEST_PROGRAM = 20_000  # steps of a compiled statement; ours have some dozens


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
        self._select = "SELECT " + _COLUMNS.format(
            **{name: name if name in columns else other for name, other in _ABSENT_COLUMNS.items()}
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
        if not entry.flags & Flag.CHUNKED:
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
            return tuple(Chunk(int(offset), int(size), _hash(digest, algorithm)) for offset, size, digest in rows)
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
            hardlinks = entry.link_group << _GROUP_SHIFT | entry.linkcount
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
                    name = _hash(digest, Algorithm.from_flag_number(bits >> _HASH_SHIFT & _HASH_MASK))
                    _check_numbers(0, size, stat.S_IFREG, 0)
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
        hardlinks, digest, size, mode, mtime, mtimens, bits, name, symlink, uid, gid, xattr, rowid = row
        try:
            _check_numbers(hardlinks, size, mode, mtime, mtimens or 0, bits, uid, gid)
            algorithm = Algorithm.from_flag_number(bits >> _HASH_SHIFT & _HASH_MASK)
            uncompressed = bits >> _COMPRESSION_SHIFT & _COMPRESSION_MASK
            is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
            entry = Entry(
                name=as_bytes(name),
                mode=mode,
                uid=uid,
                gid=gid,
                size=size if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else 0,
                mtime_ns=mtime * _NS + (mtimens or 0),
                hash=None if digest is None else _hash(digest, algorithm),
                compression=Compression.NONE if uncompressed else Compression.ZLIB,
                algorithm=algorithm,
                target=as_bytes(symlink),
                rdev=size if is_device else 0,
                linkcount=hardlinks & _COUNT_MASK,
                link_group=hardlinks >> _GROUP_SHIFT,
                xattrs=decode_xattrs(xattr) if xattr is not None else {},
                flags=_flags(bits & _FLAG_BITS),
                rowid=rowid,
            )
        except (TypeError, ValueError, HashSyntaxError) as error:
            raise CatalogError(f"entry {name!r} of the catalog of {self.mountpoint!r} is malformed") from error
        if not self._has_links or (entry.is_directory and self._is_as_stored):
            return entry
        links = self._one("SELECT link_group, linkcount FROM unpackd_links WHERE md5path_1=? AND md5path_2=?", key)
        if links is None or entry.is_directory is bool(links[0]):
            return entry
        try:
            return replace(entry, link_group=-as_number(links[0]), linkcount=as_number(links[1]))
        except ValueError as error:
            raise CatalogError(f"the links of {entry.name!r} are malformed") from error


def is_name(name: bytes) -> bool:
    """True if a file can have *name*."""
    return name not in (b"", b".", b"..") and b"/" not in name and b"\0" not in name and len(name) <= _LONGEST_NAME


def _check_numbers(*values: int) -> None:
    """Refuse what a hostile database may hold in place of numbers: text, blobs, negative sizes, modes without type."""
    if set(map(type, values)) != _NUMBERS:
        raise TypeError("not a number")
    hardlinks, size, mode, mtime, *others = values
    if min(hardlinks, size, mode, *others) < 0 or mode >> 16 or not stat.S_IFMT(mode) or abs(mtime) >> 40:
        raise ValueError("out of range")


_NUMBERS = {int}
_FLAG_BITS = sum(flag.value for flag in Flag)


@cache
def _flags(bits: int) -> Flag:
    """``Flag(bits)``, of which there are few in use."""
    return Flag(bits)


def _hash(digest: bytes, algorithm: Algorithm) -> Hash:
    if not isinstance(digest, bytes) or len(digest) != DIGEST_BYTES:
        raise HashSyntaxError(repr(digest))
    return Hash(digest, algorithm)
