"""A tree of nodes becomes catalogs: one pass, exact counters, split along directory borders.

The same tree at the same path gives the same catalogs, byte for byte, so publishing an unchanged tree again stores
nothing. A catalog is built in memory and stored when everything below it is stored; those that do not contain each
other are compressed and written in parallel.
"""

import hashlib
import sqlite3
import stat
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from fs.errors import RefusedError
from fs.format.catalog_rows import (
    INSERT_CHUNK,
    INSERT_ENTRY,
    LINKS_SCHEMA,
    NO_PREDECESSOR,
    SCHEMA,
    SCHEMA_REVISION,
    SCHEMA_VERSION,
    Row,
)
from fs.format.compression import FAST_LEVEL, Compression, deflate
from fs.format.entries import COUNTER_NAMES, DIRECTORY_SIZE, Entry, Flag, type_flags
from fs.format.hashes import Algorithm, Hash, Suffix
from fs.format.paths import ROOT, name_of, parent_path, path_key
from fs.format.symlinks import encode_literal
from fs.format.tree import Content, Node
from fs.format.xattrs import encode_xattrs
from fs.publish.ingest import store_empty
from fs.publish.link_groups import CLOSED
from fs.store.base import ObjectWriter

MARKER = b".cvmfscatalog"
"""The file that every nested catalog has in its root directory; ours is hidden, so that it is in no listing."""

MARKER_MODE = stat.S_IFREG | 0o444
INSERT_LINK = "INSERT OR REPLACE INTO unpackd_links VALUES (?,?,?,?)"
INSERT_NESTED = "INSERT OR REPLACE INTO nested_catalogs (path, sha1, size) VALUES (CAST(? AS TEXT), ?, ?)"

_NS = 1_000_000_000
_LONGEST_NAME = 255
_PAIR = struct.Struct("<qq")
_GROUP_SHIFT = 32
_HASH_SHIFT, _COMPRESSION_SHIFT = 8, 11
_LINK_GROUP_BITS = 62
_HIDDEN = Flag.HIDDEN.value


@dataclass(frozen=True, slots=True)
class CatalogOptions:
    """How a tree is divided into catalogs and how these are stored."""

    most_rows: int = 50_000  # a catalog above this is split, if its directories allow it
    least_rows: int = 1_000  # smaller directories are not worth a catalog
    most_changed_rows: int = 4_000  # a catalog that commits let grow above this is split: each rewrites it
    least_changed_rows: int = 250  # and smaller directories stay in it
    algorithm: Algorithm = Algorithm.SHA1
    level: int = FAST_LEVEL
    last_modified_unix_s: int = 0  # a constant, so that equal trees give equal catalogs
    threads: int = 2


@dataclass(frozen=True, slots=True)
class StoredCatalog:
    """A catalog that is in the store."""

    hash: Hash
    size: int  # bytes of the uncompressed database


@dataclass(frozen=True, slots=True, kw_only=True)
class Subtree:
    """A tree whose catalogs are stored but not yet visible: what a graft needs."""

    path: bytes
    root: Entry  # without flags; the root's row in the catalog above
    shown_linkcount: int | None = None  # of the root, if readers show another one than its row has
    catalog: StoredCatalog
    counters: Mapping[str, int]  # of everything in the subtree, its root included
    catalogs: int
    entries: int


def new_catalog(mountpoint: bytes) -> sqlite3.Connection:
    """An empty catalog in memory, with the properties that do not change."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.executescript(SCHEMA)
    rows = [("schema", SCHEMA_VERSION.encode()), ("schema_revision", SCHEMA_REVISION.encode())]
    if mountpoint != ROOT:
        rows.append(("root_prefix", mountpoint))
    connection.executemany("INSERT INTO properties VALUES (?, CAST(? AS TEXT))", rows)
    return connection


def write_properties(
    connection: sqlite3.Connection, *, revision: int, last_modified_unix_s: int, previous: Hash | None
) -> None:
    """Record which version of a catalog this is."""
    connection.executemany(
        "INSERT OR REPLACE INTO properties VALUES (?, ?)",
        [
            ("revision", str(revision)),
            ("last_modified", str(last_modified_unix_s)),
            ("previous_revision", NO_PREDECESSOR if previous is None else str(previous)),
        ],
    )


def write_counters(connection: sqlite3.Connection, own: Mapping[str, int], subtree: Mapping[str, int]) -> None:
    """Replace the table ``statistics``."""
    rows = [(f"self_{name}", own[name]) for name in COUNTER_NAMES]
    rows += [(f"subtree_{name}", subtree[name]) for name in COUNTER_NAMES]
    connection.executemany("INSERT OR REPLACE INTO statistics VALUES (?, ?)", rows)


def store_catalog(database: bytes, writer: ObjectWriter, *, algorithm: Algorithm, level: int) -> StoredCatalog:
    """Compress and store a finished catalog."""
    stored = deflate(database, level=level)
    name = Hash.of(stored, algorithm)
    writer.put(name, Suffix.CATALOG, stored)
    return StoredCatalog(name, len(database))


def publish_tree(path: bytes, root: Node, writer: ObjectWriter, options: CatalogOptions | None = None) -> Subtree:
    """Build and store the catalogs of the tree *root* that is to appear at *path*.

    Raises:
        RefusedError: the tree holds something that the format cannot, or is no tree.
    """
    if path == ROOT or not root.is_directory:
        raise RefusedError("a subtree is a directory below the root of a repository")
    options = options or CatalogOptions()
    empty = store_empty(writer, options.algorithm)
    survey = _Survey(path, root, options)
    stored = _Builder(survey, empty, writer, options).build_all()
    top = survey.catalogs[0]
    directory = survey.directories[0]
    return Subtree(
        path=path,
        root=Entry(
            name=name_of(path),
            mode=root.mode,
            uid=root.uid,
            gid=root.gid,
            size=DIRECTORY_SIZE,
            mtime_ns=root.mtime_ns,
            xattrs=dict(root.xattrs),
            linkcount=directory.linkcount,
        ),
        shown_linkcount=directory.linkcount - directory.hidden if directory.hidden else None,
        catalog=stored,
        counters=top.total,
        catalogs=len(survey.catalogs),
        entries=sum(top.total[kind] for kind in ("regular", "symlink", "special", "dir")),
    )


@dataclass(slots=True, eq=False)
class _Directory:
    path: bytes
    node: Node
    parent: int  # index in the survey; -1 for the root
    weight: int  # rows that it puts into its catalog, itself included
    subdirectories: list[int] = field(default_factory=list)
    hidden: int = 0  # of the subdirectories
    is_nested: bool = False
    catalog: int = 0

    @property
    def linkcount(self) -> int:
        return 2 + len(self.subdirectories)


@dataclass(slots=True, eq=False)
class _Catalog:
    root: _Directory
    directories: list[_Directory] = field(default_factory=list)
    nested: list["_Catalog"] = field(default_factory=list)
    total: dict[str, int] = field(default_factory=dict)
    stored: "Future[StoredCatalog]" = field(default_factory=Future)


class _Links:
    """Which nodes have several names, and whether these lie in one directory."""

    __slots__ = ("count", "first_path", "within")

    def __init__(self, directory: int, path: bytes) -> None:
        self.count = 1
        self.within = directory  # -1: in several
        self.first_path = path


class _Survey:
    """What has to be known of the tree before the first row is written."""

    def __init__(self, path: bytes, root: Node, options: CatalogOptions) -> None:
        self.directories: list[_Directory] = [_Directory(path, root, -1, 1)]
        self.links: dict[int, _Links] = {}
        self._walk()
        self._divide(options)
        self.catalogs: list[_Catalog] = []
        self._assign()

    def _walk(self) -> None:
        """Every directory, parents before children, and every node with several names."""
        directories, links = self.directories, self.links
        seen = {id(directories[0].node)}
        names: dict[int, tuple[int, bytes]] = {}
        index = 0
        while index < len(directories):
            directory = directories[index]
            path, children = directory.path, directory.node.children
            for name in sorted(children):
                node = children[name]
                _check_name(name, path)
                if stat.S_ISDIR(node.mode):
                    if id(node) in seen:
                        raise RefusedError(f"directory {path + b'/' + name!r} has a second name")
                    seen.add(id(node))
                    directory.subdirectories.append(len(directories))
                    directory.hidden += node.is_hidden
                    directories.append(_Directory(path + b"/" + name, node, index, 1))
                    continue
                directory.weight += 1
                first = names.setdefault(id(node), (index, name))
                if first != (index, name):
                    known = links.get(id(node))
                    if known is None:
                        known = links[id(node)] = _Links(first[0], directories[first[0]].path + b"/" + first[1])
                    known.count += 1
                    if known.within != index:
                        known.within = -1
            index += 1

    def _divide(self, options: CatalogOptions) -> None:
        """Choose the directories that become nested catalogs, from the leaves up, the heaviest first."""
        for index in range(len(self.directories) - 1, -1, -1):
            directory = self.directories[index]
            below = [self.directories[child] for child in directory.subdirectories]
            directory.weight += sum(1 if child.is_nested else child.weight for child in below)
            candidates = [child for child in below if child.weight >= options.least_rows and not child.is_nested]
            for child in sorted(candidates, key=lambda child: -child.weight):
                if directory.weight <= options.most_rows:
                    break
                child.is_nested = True
                directory.weight -= child.weight - 1
            marker = directory.node.children.get(MARKER)
            # the marker of a user means in an image what it means anywhere: a catalog begins here
            directory.is_nested = index == 0 or (marker is not None and stat.S_ISREG(marker.mode))

    def _assign(self) -> None:
        for directory in self.directories:
            if directory.is_nested:
                catalog = _Catalog(directory)
                if directory.parent >= 0:
                    self.catalogs[self.directories[directory.parent].catalog].nested.append(catalog)
                directory.catalog = len(self.catalogs)
                self.catalogs.append(catalog)
            else:
                directory.catalog = self.directories[directory.parent].catalog
            self.catalogs[directory.catalog].directories.append(directory)


def _check_name(name: bytes, path: bytes) -> None:
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name or len(name) > _LONGEST_NAME:
        raise RefusedError(f"{name!r} in {path!r} cannot be the name of a file")


class _Builder:
    """Writes the catalogs of one survey, each after those that are nested in it."""

    def __init__(self, survey: _Survey, empty: Content, writer: ObjectWriter, options: CatalogOptions) -> None:
        self._survey = survey
        self._empty = empty
        self._writer = writer
        self._options = options

    def build_all(self) -> StoredCatalog:
        """Build and store everything; gives the topmost catalog."""
        with ThreadPoolExecutor(self._options.threads, thread_name_prefix="catalogs") as pool:
            # later catalogs lie below earlier ones, or beside them
            for catalog in reversed(self._survey.catalogs):
                database = self._database(catalog)
                catalog.stored = pool.submit(self._store, database)
            return self._survey.catalogs[0].stored.result()

    def _store(self, database: bytes) -> StoredCatalog:
        return store_catalog(database, self._writer, algorithm=self._options.algorithm, level=self._options.level)

    def _database(self, catalog: _Catalog) -> bytes:
        rows = _Rows(catalog, self._survey, self._empty)
        connection = new_catalog(catalog.root.path)
        connection.execute("BEGIN")
        connection.execute("DROP INDEX idx_catalog_parent")  # made anew at the end, which is quicker
        connection.executemany(INSERT_ENTRY, rows.entries())
        connection.execute("CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2)")
        connection.executemany(INSERT_CHUNK, rows.chunks)
        if rows.links:
            connection.execute(LINKS_SCHEMA)
            connection.executemany(INSERT_LINK, rows.links)
        nested = [(child.root.path, child.stored.result()) for child in catalog.nested]
        connection.executemany(INSERT_NESTED, [(path, str(stored.hash), stored.size) for path, stored in nested])
        subtree = {name: sum(child.total[name] for child in catalog.nested) for name in COUNTER_NAMES}
        write_counters(connection, rows.counters, subtree)
        modified = self._options.last_modified_unix_s
        write_properties(connection, revision=1, last_modified_unix_s=modified, previous=None)
        if catalog is self._survey.catalogs[0]:
            connection.execute("INSERT INTO properties VALUES (?, '1')", (CLOSED,))
        connection.execute("COMMIT")
        catalog.total = {name: rows.counters[name] + subtree[name] for name in COUNTER_NAMES}
        database = connection.serialize()
        connection.close()
        return database


class _Rows:
    """The rows of one catalog; counters, chunks and links are complete when ``entries`` is exhausted."""

    def __init__(self, catalog: _Catalog, survey: _Survey, empty: Content) -> None:
        self._catalog = catalog
        self._survey = survey
        self._empty = empty
        self._groups: dict[int, int] = {}
        self.counters = dict.fromkeys(COUNTER_NAMES, 0)
        self.chunks: list[tuple[int, int, int, int, bytes]] = []
        self.links: list[tuple[int, int, int, int]] = []

    def entries(self) -> Iterator[Row]:
        """Rows in the order of INSERT_ENTRY: the root, then each directory's children in byte order."""
        root = self._catalog.root
        above = path_key(parent_path(root.path))
        yield self._directory_row(root, path_key(root.path), above, Flag.NESTED_ROOT)
        self.counters["nested"] = len(self._catalog.nested)
        for directory in self._catalog.directories:
            yield from self._children(directory)
        if MARKER not in root.node.children:
            yield self._marker_row(root)

    def _children(self, directory: _Directory) -> Iterator[Row]:
        md5, unpack = hashlib.md5, _PAIR.unpack
        prefix, children = directory.path + b"/", directory.node.children
        parent = path_key(directory.path)
        subdirectories = iter(directory.subdirectories)
        for name in sorted(children):
            node = children[name]
            key = unpack(md5(prefix + name, usedforsecurity=False).digest())
            if stat.S_ISDIR(node.mode):
                child = self._survey.directories[next(subdirectories)]
                yield self._directory_row(child, key, parent, Flag.NESTED_MOUNTPOINT if child.is_nested else Flag(0))
            else:
                yield self._file_row(name, node, key, parent)

    def _directory_row(self, directory: _Directory, key: tuple[int, int], parent: tuple[int, int], flag: Flag) -> Row:
        node = directory.node
        self.counters["dir"] += 1
        if directory.hidden:
            self.links.append((*key, 0, directory.linkcount - directory.hidden))
        return (
            *key,
            *parent,
            directory.linkcount,
            None,
            DIRECTORY_SIZE,
            node.mode,
            node.mtime_ns // _NS,
            node.mtime_ns % _NS,
            Flag.DIRECTORY.value | flag.value | (_HIDDEN if node.is_hidden else 0),
            name_of(directory.path),
            b"",
            node.uid,
            node.gid,
            self._xattrs(node),
        )

    def _file_row(self, name: bytes, node: Node, key: tuple[int, int], parent: tuple[int, int]) -> Row:
        kind = stat.S_IFMT(node.mode)
        digest: bytes | None = None
        target = b""
        if kind == stat.S_IFREG:
            digest, size, flags = self._regular(node, key)
        elif kind == stat.S_IFLNK:
            target = encode_literal(node.target)
            size, flags = len(target), 12
            self.counters["symlink"] += 1
        else:
            size = node.rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
            flags = type_flags(node.mode).value
            self.counters["special"] += 1
        return (
            *key,
            *parent,
            self._hardlinks(node, key),
            digest,
            size,
            node.mode,
            node.mtime_ns // _NS,
            node.mtime_ns % _NS,
            flags | _HIDDEN if node.is_hidden else flags,
            name,
            target,
            node.uid,
            node.gid,
            self._xattrs(node),
        )

    def _regular(self, node: Node, key: tuple[int, int]) -> tuple[bytes | None, int, int]:
        """Digest, size and flags of a regular file."""
        content = node.content
        if content is None:
            raise RefusedError("a regular file has no content")
        counters = self.counters
        counters["regular"] += 1
        counters["file_size"] += content.size
        flags = Flag.FILE.value
        if content.compression is not Compression.ZLIB:
            flags |= content.compression.value << _COMPRESSION_SHIFT
        if content.hash is not None:
            if content.hash.algorithm is not Algorithm.SHA1:
                flags |= content.hash.algorithm.flag_number << _HASH_SHIFT
            return content.hash.digest, content.size, flags
        counters["chunked"] += 1
        counters["chunked_size"] += content.size
        counters["chunks"] += len(content.chunks)
        self.chunks += [(*key, chunk.offset, chunk.size, chunk.hash.digest) for chunk in content.chunks]
        flags |= Flag.CHUNKED.value | content.chunks[0].hash.algorithm.flag_number << _HASH_SHIFT
        return None, content.size, flags

    def _hardlinks(self, node: Node, key: tuple[int, int]) -> int:
        """The column ``hardlinks``; links over several directories go into the extra table."""
        links = self._survey.links.get(id(node))
        if links is None:
            return 1
        if links.within < 0:
            self.links.append((*key, link_group(links.first_path), links.count))
            return 1
        group = self._groups.setdefault(id(node), len(self._groups) + 1)
        return group << _GROUP_SHIFT | links.count

    def _xattrs(self, node: Node) -> bytes | None:
        if not node.xattrs:
            return None
        self.counters["xattr"] += 1
        return encode_xattrs(node.xattrs)

    def _marker_row(self, root: _Directory) -> Row:
        self.counters["regular"] += 1
        return marker_row(root.path, root.node.uid, root.node.gid, root.node.mtime_ns, self._empty)


def marker_row(mountpoint: bytes, uid: int, gid: int, mtime_ns: int, empty: Content) -> Row:
    """The row of the marker that the format wants in the root of a nested catalog."""
    if empty.hash is None:
        raise RefusedError("a marker is one object")
    return (
        *path_key(mountpoint + b"/" + MARKER),
        *path_key(mountpoint),
        1,
        empty.hash.digest,
        0,
        MARKER_MODE,
        mtime_ns // _NS,
        mtime_ns % _NS,
        Flag.FILE.value | Flag.HIDDEN.value | empty.hash.algorithm.flag_number << _HASH_SHIFT,
        MARKER,
        b"",
        uid,
        gid,
        None,
    )


def link_group(first_path: bytes) -> int:
    """The number of a group of hard links over several directories, from the first of its paths in the repository.

    Numbers are the same at each run and differ over the whole repository, so that a reader need not know where a
    subtree begins.
    """
    digest = hashlib.sha256(first_path).digest()
    return (int.from_bytes(digest[:8]) >> (64 - _LINK_GROUP_BITS)) | 1
