"""One catalog that is being changed: a copy in memory with its counters, until it is stored as a new version."""

import sqlite3
from collections.abc import Mapping
from dataclasses import replace

from fs.format.catalog import Catalog
from fs.format.catalog_rows import INSERT_CHUNK, INSERT_ENTRY, LINKS_SCHEMA, entry_row
from fs.format.databases import connect_bytes
from fs.format.entries import COUNTER_NAMES, Entry, Flag, NestedReference, count_entry
from fs.format.hashes import Hash
from fs.format.paths import ROOT, path_key
from fs.format.tree import Content
from fs.publish.catalogs import (
    INSERT_LINK,
    INSERT_NESTED,
    StoredCatalog,
    marker_row,
    new_catalog,
    write_counters,
    write_properties,
)
from fs.publish.link_groups import CLOSED, Departed, names_in, restate

_UPDATE = (
    "UPDATE catalog SET hardlinks=?, hash=?, size=?, mode=?, mtime=?, mtimens=?, flags=?, symlink=CAST(? AS TEXT),"
    " uid=?, gid=?, xattr=? WHERE md5path_1=? AND md5path_2=?"
)
_BY_KEY = "WHERE md5path_1=? AND md5path_2=?"
_BORDER = Flag.NESTED_MOUNTPOINT.value | Flag.NESTED_ROOT.value | Flag.BIND_MOUNTPOINT.value
_TEXTS = {"name", "symlink"}  # whatever their encoding, they travel as bytes
_MOST_FREE = 0.2  # of pages; Source: CernVM-FS 2.12, catalog_rw.cc
_MOST_WASTE = 0.25  # of row numbers, which become inode numbers; same source


class Draft:
    """A catalog to be changed. Counters always agree with the rows; ``subtree`` with what is stored below."""

    def __init__(self, connection: sqlite3.Connection, mountpoint: bytes, parent: "Draft | None") -> None:
        self._db = connection
        self.catalog = Catalog(connection, mountpoint, as_stored=True)
        self.mountpoint = mountpoint
        self.parent = parent
        counters = self.catalog.counters()
        self.own = dict(counters.own)
        self.subtree = dict(counters.subtree)
        self.total_above = counters.total
        """What the catalog above believes to be the total of this one."""
        self._nested: dict[bytes, NestedReference] | None = None
        self.inserted = 0  # rows, by operations
        self.changes = 0
        """Only grows: tells if an operation changed something."""

    @property
    def is_changed(self) -> bool:
        """True if there has to be a new version."""
        return self.changes > 0

    @classmethod
    def of_stored(cls, database: bytes, mountpoint: bytes, parent: "Draft | None") -> "Draft":
        """A copy of the stored catalog with the bytes *database*. Raises CatalogError."""
        connection = connect_bytes(database)
        connection.execute("PRAGMA query_only=OFF")
        connection.execute("BEGIN")
        return cls(connection, mountpoint, parent)

    @classmethod
    def empty(cls, mountpoint: bytes, root: Entry, parent: "Draft | None", marker: Content) -> "Draft":
        """A new catalog with a root entry and, unless it is the root of the repository, its marker."""
        connection = new_catalog(mountpoint)
        connection.text_factory = bytes
        zero = dict.fromkeys(COUNTER_NAMES, 0)
        write_counters(connection, zero, zero)
        connection.execute("BEGIN")
        draft = cls(connection, mountpoint, parent)
        draft.insert(mountpoint, replace(root, flags=Flag.NESTED_ROOT if mountpoint != ROOT else Flag(0)))
        if mountpoint != ROOT:
            connection.execute(INSERT_ENTRY, marker_row(mountpoint, root.uid, root.gid, root.mtime_ns, marker))
            draft.own["regular"] += 1
        return draft

    @property
    def rows(self) -> int:
        """How many entries the catalog has."""
        return sum(self.own[kind] for kind in ("regular", "symlink", "special", "dir"))

    @property
    def has_binds(self) -> bool:
        """True if an older revision is shown somewhere in it; such a directory cannot be moved."""
        return any(reference.is_bind for reference in self.catalog.nested())

    def heavy_directories(self, most_rows: int, least_rows: int) -> list[bytes]:
        """Directories that would leave no more than *most_rows* here if each got a catalog; outer ones come last.

        As for new trees: from the leaves up, the heaviest first, none that has fewer than *least_rows* itself.
        """
        children: dict[tuple[int, int], list[tuple[tuple[int, int], bytes]]] = {}
        weights: dict[tuple[int, int], int] = {}
        for first, second, *above, flags, name in self._db.execute(
            "SELECT md5path_1, md5path_2, parent_1, parent_2, flags, CAST(name AS BLOB) FROM catalog"
        ):
            parent = (above[0], above[1])
            weights[parent] = weights.get(parent, 0) + 1
            if flags & Flag.DIRECTORY.value and not flags & _BORDER:
                children.setdefault(parent, []).append(((first, second), name))
        chosen: list[bytes] = []
        self._weigh(self.mountpoint, path_key(self.mountpoint), children, weights, (most_rows, least_rows), chosen)
        return chosen

    def _weigh(  # noqa: PLR0913, PLR0917  # what a recursion shares
        self,
        path: bytes,
        key: tuple[int, int],
        children: Mapping[tuple[int, int], list[tuple[tuple[int, int], bytes]]],
        weights: Mapping[tuple[int, int], int],
        limits: tuple[int, int],
        chosen: list[bytes],
    ) -> int:
        """The rows that the directory at *path* leaves in this catalog, its own included."""
        most_rows, least_rows = limits
        below = [
            (self._weigh(path + b"/" + name, child, children, weights, limits, chosen), path + b"/" + name)
            for child, name in children.get(key, ())
            if child != key
        ]
        weight = 1 + weights.get(key, 0) + sum(each - 1 for each, _ in below)
        for each, child_path in sorted(below, reverse=True):
            if weight <= most_rows or each < least_rows:
                break
            chosen.append(child_path)
            weight -= each - 1
        return weight

    def lookup(self, path: bytes) -> Entry | None:
        """The entry of *path* in this catalog."""
        return self.catalog.lookup(path)

    def children(self, path: bytes) -> list[tuple[bytes, Entry]]:
        """What the directory at *path* holds, as far as it is in this catalog, with full paths."""
        return [(path + b"/" + entry.name, entry) for entry in self.catalog.listing(path)]

    def insert(
        self, path: bytes, entry: Entry, content: Content | None = None, *, shown_linkcount: int | None = None
    ) -> None:
        """Add a row that is not there yet; a directory may show another link count than its row has."""
        chunks = content.chunks if content is not None else ()
        self._db.execute(INSERT_ENTRY, entry_row(path, entry))
        key = path_key(path)
        self._db.executemany(INSERT_CHUNK, [(*key, part.offset, part.size, part.hash.digest) for part in chunks])
        count_entry(self.own, entry, chunks=len(chunks))
        if shown_linkcount is not None and shown_linkcount != entry.linkcount:
            self.show_linkcount(path, shown_linkcount)
        self.inserted += 1
        self.changes += 1

    def shown_linkcount(self, path: bytes) -> int | None:
        """The link count that the directory at *path* shows, if it is another one than its row has."""
        if not self._has_links():
            return None
        query = f"SELECT linkcount FROM unpackd_links {_BY_KEY} AND link_group = 0"  # noqa: S608
        row = self._db.execute(query, path_key(path)).fetchone()
        return None if row is None else int(row[0])

    def show_linkcount(self, path: bytes, linkcount: int) -> None:
        """Let the directory at *path* show another link count than its row has."""
        if not self._has_links():
            self._db.execute(LINKS_SCHEMA)
        self._db.execute(INSERT_LINK, (*path_key(path), 0, linkcount))

    def update(self, path: bytes, before: Entry, after: Entry) -> None:
        """Change the row of *path* without giving it a new row number. Not for chunked files."""
        count_entry(self.own, before, sign=-1)
        count_entry(self.own, after)
        row = entry_row(path, after)
        self._db.execute(_UPDATE, (*row[4:11], row[12], *row[13:], *row[:2]))
        more = after.linkcount - before.linkcount
        if more and after.is_directory and self._has_links():
            self._db.execute(f"UPDATE unpackd_links SET linkcount = linkcount + ? {_BY_KEY}", (more, *row[:2]))  # noqa: S608
        self.changes += 1

    def delete(self, path: bytes, entry: Entry) -> None:
        """Remove the row of *path*, its chunks and its name of a hard link; the link's other names do not know yet."""
        key = path_key(path)
        chunks = self._db.execute(f"DELETE FROM chunks {_BY_KEY}", key).rowcount  # noqa: S608
        self._db.execute(f"DELETE FROM catalog {_BY_KEY}", key)  # noqa: S608  # constants of ours, as above
        count_entry(self.own, entry, chunks=chunks, sign=-1)
        if entry.link_group < 0 or (entry.is_directory and self._has_links()):
            self._db.execute(f"DELETE FROM unpackd_links {_BY_KEY}", key)  # noqa: S608
        self.changes += 1

    def relink(self, path: bytes, group: int, linkcount: int) -> None:
        """Change the hard link group of the row of *path*; 0 is none."""
        key = path_key(path)
        self._db.execute(f"UPDATE catalog SET hardlinks=? {_BY_KEY}", (group << 32 | linkcount, *key))  # noqa: S608

    def close(self) -> None:
        """Forget the changes."""
        self._db.close()

    def add_departed(self, departed: Departed) -> None:
        """Count the names of all links over several directories in this catalog among those that went."""
        departed.add_catalog(self._db)

    def restate_links(self, left: Mapping[int, int]) -> int:
        """Let the names of those groups say that they are as many as *left* says; gives how many names are here."""
        here = names_in(self._db, left)
        if here:
            restate(self._db, {group: left[group] for group in here})
            self.changes += 1
        return sum(here.values())

    @property
    def ends_links(self) -> bool:
        """True if no link with a name at or below the root of this catalog has names elsewhere."""
        return self.mountpoint == ROOT or CLOSED in self.catalog.properties

    def attach(self, reference: NestedReference, total: Mapping[str, int]) -> None:
        """Add the row of a nested catalog whose counters are *total*; its mount point is a row of its own."""
        self.register(reference.path, StoredCatalog(reference.hash, reference.size))
        self.own["nested"] += 1
        for name in COUNTER_NAMES:
            self.subtree[name] += total[name]

    def detach(self, path: bytes, total: Mapping[str, int]) -> None:
        """Remove the row of the nested catalog at *path*, of which this catalog counted *total*."""
        self._db.execute("DELETE FROM nested_catalogs WHERE path = CAST(? AS TEXT)", (path,))
        if self._nested is not None:
            self._nested.pop(path, None)
        self.own["nested"] -= 1
        for name in COUNTER_NAMES:
            self.subtree[name] -= total[name]
        self.changes += 1

    def register(self, path: bytes, stored: StoredCatalog) -> None:
        """Say which version of the nested catalog at *path* is current."""
        self._db.execute(INSERT_NESTED, (path, str(stored.hash), stored.size))
        if self._nested is not None:
            self._nested[path] = NestedReference(path, stored.hash, stored.size)
        self.changes += 1

    def adopt_total(self, child: "Draft") -> None:
        """Count what has changed in *child* since it was counted last."""
        total = child.total
        for name in COUNTER_NAMES:
            self.subtree[name] += total[name] - child.total_above[name]
        child.total_above = total

    @property
    def total(self) -> dict[str, int]:
        """Own plus subtree."""
        return {name: self.own[name] + self.subtree[name] for name in COUNTER_NAMES}

    def nested_at(self, path: bytes) -> NestedReference | None:
        """The nested catalog or bind mount point at exactly *path*."""
        if self._nested is None:
            self._nested = {reference.path: reference for reference in self.catalog.nested()}
        return self._nested.get(path)

    def move(self, path: bytes, entry: Entry, target: "Draft") -> None:
        """Move one row, with its chunks and links, to another catalog."""
        key = path_key(path)
        chunks = self._copy_rows("chunks", key, target)
        self._copy_rows("catalog", key, target)
        if self._has_links():
            if not target._has_links():  # noqa: SLF001  # another of this class
                target._db.execute(LINKS_SCHEMA)  # noqa: SLF001
            self._copy_rows("unpackd_links", key, target)
        count_entry(self.own, entry, chunks=chunks, sign=-1)
        count_entry(target.own, entry, chunks=chunks)
        self.changes += 1
        target.changes += 1

    def _copy_rows(self, table: str, key: tuple[int, int], target: "Draft") -> int:
        """Move the rows of *key*; gives their number. Columns go by name: old catalogs have another order."""
        columns = [bytes(row[1]).decode("ascii") for row in self._db.execute(f"PRAGMA table_info({table})")]
        chosen = ", ".join(f"CAST({name} AS BLOB)" if name in _TEXTS else name for name in columns)
        rows = self._db.execute(f"SELECT {chosen} FROM {table} {_BY_KEY}", key).fetchall()  # noqa: S608
        values = ", ".join("CAST(? AS TEXT)" if name in _TEXTS else "?" for name in columns)
        statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})"  # noqa: S608
        target._db.executemany(statement, rows)  # noqa: SLF001  # another of this class
        self._db.execute(f"DELETE FROM {table} {_BY_KEY}", key)  # noqa: S608  # columns and tables are the schema's
        return len(rows)

    def _has_links(self) -> bool:
        found = self._db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'unpackd_links'").fetchone()
        return found is not None

    def finish(self, *, revision: int, last_modified_unix_s: int, previous: Hash | None, ttl_s: int | None) -> bytes:
        """The bytes of the new version; the draft is not used afterwards."""
        write_counters(self._db, self.own, self.subtree)
        write_properties(self._db, revision=revision, last_modified_unix_s=last_modified_unix_s, previous=previous)
        if ttl_s is not None:
            self._db.execute("INSERT OR REPLACE INTO properties VALUES ('TTL', ?)", (str(ttl_s),))
        self._compact()
        database = self._db.serialize()
        self._db.close()
        return database

    def _compact(self) -> None:
        entries, highest = self._db.execute("SELECT count(*), max(rowid) FROM catalog").fetchone()
        is_wasteful = highest is not None and 1 - entries / highest > _MOST_WASTE
        if is_wasteful:
            self._db.execute("CREATE TEMP TABLE dense AS SELECT * FROM main.catalog ORDER BY rowid")
            self._db.execute("DELETE FROM main.catalog")
            self._db.execute("INSERT INTO main.catalog SELECT * FROM temp.dense ORDER BY rowid")
            self._db.execute("DROP TABLE temp.dense")
        self._db.execute("COMMIT")
        free, pages = (self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "page_count"))
        if is_wasteful or free > pages * _MOST_FREE:
            self._db.execute("VACUUM")
