"""What garbage collection has found to be needed, in a database that outlives an interrupted run.

Every catalog is one transaction: its objects are marked and its nested catalogs are queued, or nothing is. Marks of an
earlier run are good as long as every revision it kept is still kept; what they say too much is only kept longer.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

from fs.errors import AbsentError, CorruptError, FsError, MalformedError
from fs.format.catalog import Catalog
from fs.format.compression import inflate
from fs.format.databases import connect_bytes
from fs.format.entries import NestedReference
from fs.format.hashes import Algorithm, Hash, Suffix
from fs.format.paths import ROOT
from fs.publish.replica_state import Scope
from fs.publish.view import MAX_CATALOG_BYTES, MAX_STORED_BYTES
from fs.runtime.boot import boot_id
from fs.store.base import ObjectReader, StoredObject

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (boot TEXT);
CREATE TABLE IF NOT EXISTS roots (digest BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS live (digest BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS walked (digest BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pending (digest BLOB, algorithm TEXT, path BLOB, is_optional INTEGER);
CREATE TABLE IF NOT EXISTS dropped (digest BLOB PRIMARY KEY, revision INTEGER) WITHOUT ROWID;
"""
_TABLES = ("run", "roots", "live", "walked", "pending", "dropped")


class Marks:
    """The set of objects that are needed. Digests are compared without algorithm and letter, as the reference does."""

    def __init__(self, path: Path, store: ObjectReader, scope: Scope) -> None:
        """Open or make the database at *path*.

        Args:
            path: in the writer's private folder; nobody else has it open.
            store: where catalogs are read.
            scope: of a mirror; catalogs outside of it need not be there.
        """
        self._path = path
        self._store = store
        self._scope = scope
        self._db = _open(path)

    def begin(self, roots: Sequence[Hash]) -> bool:
        """Take up an earlier run if it kept nothing beyond *roots*; else forget it. True if it was taken up."""
        is_kept = {digest for (digest,) in self._db.execute("SELECT digest FROM roots")} <= {
            root.digest for root in roots
        }
        is_same_boot = self._db.execute("SELECT boot FROM run").fetchall() == [(boot_id(),)]
        is_resumed = is_kept and is_same_boot
        with self._db:
            self._db.execute("BEGIN")
            if not is_resumed:  # after a power cut marks may be missing, and a missing mark is a lost object
                for table in _TABLES:
                    self._db.execute(f"DELETE FROM {table}")  # noqa: S608  # names of ours
                self._db.execute("INSERT INTO run VALUES (?)", (boot_id(),))
            self._db.execute("DELETE FROM dropped")
        self.add_roots(roots)
        return is_resumed

    def add_roots(self, roots: Iterable[Hash]) -> None:
        """More revisions that are needed."""
        with self._db:
            self._db.execute("BEGIN")
            for root in roots:
                self._db.execute("INSERT OR IGNORE INTO roots VALUES (?)", (root.digest,))
                self._queue(NestedReference(ROOT, root, 0), is_optional=False)

    def add_young(self, catalogs: Iterable[Hash]) -> None:
        """Catalogs that stay because they are young: what is below them stays too, as far as it is there."""
        with self._db:
            self._db.execute("BEGIN")
            for name in catalogs:
                self._queue(NestedReference(ROOT, name, 0), is_optional=True)

    def add_objects(self, names: Iterable[Hash]) -> None:
        """Objects that are needed and refer to nothing."""
        with self._db:
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR IGNORE INTO live VALUES (?)", [(name.digest,) for name in names])

    def walk(self) -> int:
        """Mark everything that the roots lead to; gives the number of catalogs read.

        Raises:
            AbsentError, CorruptError, CatalogError, UnreachableError: a catalog cannot be read, so nobody knows what
                it needs.
        """
        count = 0
        while (row := self._next()) is not None:
            rowid, reference, is_optional = row
            with self._db:
                self._db.execute("BEGIN")
                try:
                    self._mark(reference, is_optional=is_optional)
                    count += 1
                except (AbsentError, MalformedError, CorruptError):
                    if not is_optional:
                        raise
                self._db.execute("DELETE FROM pending WHERE rowid = ?", (rowid,))
        return count

    def explain(self, roots: Iterable[tuple[int, Hash]]) -> None:
        """Find out what the *roots* (revision, catalog), which are not kept, lead to; what cannot be read is left."""
        with self._db:
            self._db.execute("BEGIN")
            for revision, root in roots:
                pending = [NestedReference(ROOT, root, 0)]
                while pending:
                    pending += self._explain(pending.pop(), revision)

    def is_live(self, name: Hash) -> bool:
        """True if the object is needed."""
        return self._db.execute("SELECT 1 FROM live WHERE digest = ?", (name.digest,)).fetchone() is not None

    def revision_of(self, name: Hash) -> int | None:
        """The newest of the explained revisions that led to the object."""
        row = self._db.execute("SELECT revision FROM dropped WHERE digest = ?", (name.digest,)).fetchone()
        return None if row is None else int(row[0])

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM live").fetchone()[0])

    def discard(self) -> None:
        """The run is over: forget everything."""
        self._db.close()
        for ending in ("", "-journal"):
            self._path.with_name(self._path.name + ending).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def _next(self) -> tuple[int, NestedReference, bool] | None:
        # the newest first: the queue stays as short as the tree is deep
        row = self._db.execute(
            "SELECT rowid, digest, algorithm, path, is_optional FROM pending ORDER BY rowid DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        rowid, digest, algorithm, path, is_optional = row
        return rowid, NestedReference(path, Hash(digest, Algorithm(algorithm)), 0), bool(is_optional)

    def _queue(self, reference: NestedReference, *, is_optional: bool) -> None:
        name = reference.hash
        if self._db.execute("SELECT 1 FROM walked WHERE digest = ?", (name.digest,)).fetchone() is None:
            self._db.execute(
                "INSERT INTO pending VALUES (?, ?, ?, ?)",
                (name.digest, name.algorithm.value, reference.path, is_optional),
            )

    def _mark(self, reference: NestedReference, *, is_optional: bool) -> None:
        if self._db.execute("SELECT 1 FROM walked WHERE digest = ?", (reference.hash.digest,)).fetchone():
            return
        with closing(read_catalog(self._store, reference)) as catalog:
            self._db.executemany(
                "INSERT OR IGNORE INTO live VALUES (?)", ((name.digest,) for name, _, _ in catalog.objects())
            )
            for nested in catalog.nested():
                if self._scope.leads_to(nested.path):
                    # what is only bound elsewhere is not kept by the reference's tools, so it may be gone
                    self._queue(nested, is_optional=is_optional or nested.is_bind)
        self._db.execute("INSERT OR IGNORE INTO live VALUES (?)", (reference.hash.digest,))
        self._db.execute("INSERT OR IGNORE INTO walked VALUES (?)", (reference.hash.digest,))

    def _explain(self, reference: NestedReference, revision: int) -> Iterator[NestedReference]:
        digest = reference.hash.digest
        if self.is_live(reference.hash) or self.revision_of(reference.hash) is not None:
            return
        self._db.execute("INSERT INTO dropped VALUES (?, ?)", (digest, revision))
        try:
            catalog = read_catalog(self._store, reference)
        except FsError:
            return
        with closing(catalog):
            self._db.executemany(
                "INSERT OR IGNORE INTO dropped VALUES (?, ?)",
                ((name.digest, revision) for name, _, _ in catalog.objects()),
            )
            yield from catalog.nested()


def read_catalog(store: ObjectReader, reference: NestedReference) -> Catalog:
    """The catalog that *reference* names; the caller closes it. Raises what the store raises, CatalogError."""
    stored = store.get(reference.hash, Suffix.CATALOG, limit_bytes=MAX_STORED_BYTES)
    database = inflate(stored, limit_bytes=MAX_CATALOG_BYTES, name=f"{reference.hash}C")
    return Catalog(connect_bytes(database), reference.path)


def parents_first(store: ObjectReader, catalogs: Sequence[StoredObject]) -> list[StoredObject]:
    """*catalogs* ordered so that none comes before one that refers to it. Unreadable ones refer to nothing."""
    by_name = {each.name: each for each in catalogs}
    below = {name: _nested_names(store, name) & by_name.keys() for name in by_name}
    parents = dict.fromkeys(by_name, 0)
    for names in below.values():
        for name in names:
            parents[name] += 1
    free = [name for name, count in parents.items() if not count]
    ordered: list[StoredObject] = []
    while free:
        name = free.pop()
        ordered.append(by_name[name])
        for child in below[name]:
            parents[child] -= 1
            if not parents[child]:
                free.append(child)
    return ordered  # hashes cannot form a circle, so all are there


def _nested_names(store: ObjectReader, name: Hash) -> set[Hash]:
    try:
        with closing(read_catalog(store, NestedReference(ROOT, name, 0))) as catalog:
            return {nested.hash for nested in catalog.nested()}
    except FsError:
        return set()


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")  # see Marks.begin for power cuts
    connection.execute("PRAGMA cache_size=-65536")
    connection.executescript(_SCHEMA)
    return connection
