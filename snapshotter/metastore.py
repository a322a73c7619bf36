"""What survives a restart: the rows of all snapshots, in SQLite.

One transaction is one RPC; it is on the disk when the ``with`` block ends. There is one connection that writes and
one that reads, each used by one thread at a time. In WAL mode readers never wait for the writer.
"""

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from snapshotter.errors import SnapshotNotFoundError, StateError
from snapshotter.labels import CRI_IMAGE_REF, SNAPSHOT_REF
from snapshotter.snapshots import Info, Kind, LayerSource, Snapshot, SourceKind, Usage

_VERSION = 1
_BUSY_TIMEOUT_S = 10
_SCHEMA = (
    """
CREATE TABLE snapshot (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given twice: it names the snapshot's directory
    name TEXT NOT NULL UNIQUE,
    parent INTEGER REFERENCES snapshot (number) ON DELETE RESTRICT,
    kind INTEGER NOT NULL CHECK (kind BETWEEN 1 AND 3),
    created_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL,
    labels TEXT NOT NULL,  -- JSON object
    reference TEXT,        -- the label containerd.io/snapshot.ref again, to be found by
    source TEXT,           -- where in the repository; NULL: the snapshot's own directory
    size_bytes INTEGER,    -- NULL: not measured
    inodes INTEGER
) STRICT
""",
    "CREATE INDEX snapshot_by_parent ON snapshot (parent)",
    "CREATE INDEX snapshot_by_reference ON snapshot (reference) WHERE reference IS NOT NULL",
)
_SELECT = """
SELECT child.number, child.name, coalesce(above.name, ''), child.kind, child.created_ns, child.updated_ns,
       child.labels, child.source, child.size_bytes, child.inodes
FROM snapshot AS child LEFT JOIN snapshot AS above ON above.number = child.parent
"""
_CHAIN = """
WITH RECURSIVE chain (number, depth) AS (
    SELECT number, 0 FROM snapshot WHERE name = ?
    UNION ALL
    SELECT snapshot.parent, depth + 1 FROM chain JOIN snapshot USING (number) WHERE snapshot.parent IS NOT NULL
)
"""

_ROOTS_IN_USE = """
WITH RECURSIVE below (number) AS (
    SELECT parent FROM snapshot WHERE kind <> :committed AND parent IS NOT NULL
    UNION
    SELECT snapshot.parent FROM below JOIN snapshot USING (number)
    WHERE snapshot.parent IS NOT NULL AND (snapshot.source IS NULL OR snapshot.source NOT LIKE :whole)
)
SELECT number, source FROM below JOIN snapshot USING (number) WHERE source LIKE :whole
"""


_SOURCES_IN_USE = """
WITH RECURSIVE below (number) AS (
    SELECT parent FROM snapshot WHERE kind <> :committed AND parent IS NOT NULL
    UNION
    SELECT snapshot.parent FROM below JOIN snapshot USING (number)
    WHERE snapshot.parent IS NOT NULL AND (snapshot.source IS NULL OR snapshot.source NOT LIKE :whole)
)
SELECT source, labels FROM below JOIN snapshot USING (number) WHERE source IS NOT NULL
"""


class Reading:
    """A view of all rows at one instant."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def find(self, name: str) -> Snapshot | None:
        """The snapshot of that name or key."""
        return self._one(f"{_SELECT} WHERE child.name = ?", name)

    def get(self, name: str) -> Snapshot:
        """The snapshot of that name or key. Raises SnapshotNotFoundError."""
        found = self.find(name)
        if found is None:
            raise SnapshotNotFoundError(name)
        return found

    def parent_of(self, snapshot: Snapshot) -> Snapshot | None:
        """The snapshot on which *snapshot* stands."""
        return self.find(snapshot.info.parent) if snapshot.info.parent else None

    def chain(self, name: str) -> tuple[Snapshot, ...]:
        """The snapshot *name* and all below it, uppermost first; nothing for an empty name."""
        query = f"{_CHAIN} {_SELECT} JOIN chain ON chain.number = child.number ORDER BY chain.depth"
        return tuple(_snapshot(row) for row in self._connection.execute(query, (name,)))

    def page(self, *, after: int, limit: int) -> tuple[Snapshot, ...]:
        """Up to *limit* snapshots with numbers above *after*, in the order of their numbers."""
        query = f"{_SELECT} WHERE child.number > ? ORDER BY child.number LIMIT ?"
        return tuple(_snapshot(row) for row in self._connection.execute(query, (after, limit)))

    def with_reference(self, reference: str) -> tuple[Snapshot, ...]:
        """All snapshots with that value of the label ``containerd.io/snapshot.ref``."""
        query = f"{_SELECT} WHERE child.reference = ? ORDER BY child.number"
        return tuple(_snapshot(row) for row in self._connection.execute(query, (reference,)))

    def has_children(self, snapshot: Snapshot) -> bool:
        """True if others stand on *snapshot*."""
        query = "SELECT 1 FROM snapshot WHERE parent = ? LIMIT 1"
        return self._connection.execute(query, (snapshot.number,)).fetchone() is not None

    def numbers(self) -> frozenset[int]:
        """Numbers of all snapshots."""
        return frozenset(row[0] for row in self._connection.execute("SELECT number FROM snapshot"))

    def roots_in_use(self) -> dict[int, LayerSource]:
        """The whole root file systems on which Active snapshots and Views stand, by the numbers of their snapshots."""
        values = {"committed": Kind.COMMITTED, "whole": f"{SourceKind.CHAIN_FLAT}:%"}
        return {number: LayerSource.parse(source) for number, source in self._connection.execute(_ROOTS_IN_USE, values)}

    def sources_in_use(self) -> dict[LayerSource, str]:
        """The remote layers on which Active snapshots and Views stand, with the names of images that were said."""
        values = {"committed": Kind.COMMITTED, "whole": f"{SourceKind.CHAIN_FLAT}:%"}
        rows = self._connection.execute(_SOURCES_IN_USE, values)
        return {LayerSource.parse(source): json.loads(labels).get(CRI_IMAGE_REF, "") for source, labels in rows}

    def _one(self, query: str, *values: object) -> Snapshot | None:
        row = self._connection.execute(query, values).fetchone()
        return None if row is None else _snapshot(row)


class Writing(Reading):
    """A transaction: what it changes is seen by others and on the disk when it ends, or not at all."""

    def insert(self, info: Info, *, source: LayerSource | None = None, usage: Usage | None = None) -> Snapshot:
        """Add a row; gives it with its number."""
        cursor = self._connection.execute(
            "INSERT INTO snapshot (name, parent, kind, created_ns, updated_ns, labels, reference, source,"
            " size_bytes, inodes)"
            " VALUES (?, (SELECT number FROM snapshot WHERE name = ?), ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                info.name,
                info.parent,
                info.kind,
                info.created_ns,
                info.updated_ns,
                _json(info.labels),
                info.labels.get(SNAPSHOT_REF),
                None if source is None else str(source),
                None if usage is None else usage.size_bytes,
                None if usage is None else usage.inodes,
            ),
        )
        if cursor.lastrowid is None:
            raise StateError("a new row has no number")
        return Snapshot(number=cursor.lastrowid, info=info, source=source, usage=usage)

    def change(self, number: int, info: Info) -> None:
        """Replace everything that is said about the snapshot *number*."""
        self._connection.execute(
            "UPDATE snapshot SET name = ?, parent = (SELECT number FROM snapshot WHERE name = ?), kind = ?,"
            " created_ns = ?, updated_ns = ?, labels = ?, reference = ? WHERE number = ?",
            (
                info.name,
                info.parent,
                info.kind,
                info.created_ns,
                info.updated_ns,
                _json(info.labels),
                info.labels.get(SNAPSHOT_REF),
                number,
            ),
        )

    def measure(self, number: int, usage: Usage) -> None:
        """Store the disk space of a snapshot that does not change any more."""
        self._connection.execute(
            "UPDATE snapshot SET size_bytes = ?, inodes = ? WHERE number = ? AND kind = ?",
            (usage.size_bytes, usage.inodes, number, Kind.COMMITTED),
        )

    def delete(self, number: int) -> None:
        """Remove a row that has no children."""
        self._connection.execute("DELETE FROM snapshot WHERE number = ?", (number,))


class Metastore:
    """The database file *path*, made if it is not there. Thread-safe.

    Raises:
        StateError: the file is not a database of this version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        try:
            self._writer = self._connect()
            self._prepare()
            self._reader = self._connect()
        except sqlite3.Error as error:
            raise StateError(f"{path} cannot be used as the snapshotter's database: {error}") from error

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """Read in one consistent view. Keep it short: readers take turns."""
        with self._read_lock, _transaction(self._reader, "DEFERRED"):
            yield Reading(self._reader)

    @contextmanager
    def writing(self) -> Iterator[Writing]:
        """Change rows; one writer at a time. An exception undoes everything."""
        with self._write_lock, _transaction(self._writer, "IMMEDIATE"):
            yield Writing(self._writer)

    def close(self) -> None:
        """Close both connections; waits for what is under way."""
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path,
            isolation_level=None,  # transactions are begun and ended here, not by the module
            check_same_thread=False,  # the locks see to that
            timeout=_BUSY_TIMEOUT_S,
        )
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "trusted_schema = OFF"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _prepare(self) -> None:
        version: int = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            with _transaction(self._writer, "IMMEDIATE"):
                for statement in _SCHEMA:
                    self._writer.execute(statement)
                self._writer.execute(f"PRAGMA user_version = {_VERSION}")
        elif version != _VERSION:
            raise StateError(f"{self._path} was written by another version of the snapshotter ({version})")


@contextmanager
def _transaction(connection: sqlite3.Connection, kind: str) -> Iterator[None]:
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _json(labels: Mapping[str, str]) -> str:
    return json.dumps(dict(labels), ensure_ascii=False, separators=(",", ":"))


def _snapshot(row: tuple[Any, ...]) -> Snapshot:
    number, name, parent, kind, created_ns, updated_ns, labels, source, size_bytes, inodes = row
    info = Info(
        name=name,
        parent=parent,
        kind=Kind(kind),
        created_ns=created_ns,
        updated_ns=updated_ns,
        labels=json.loads(labels),
    )
    return Snapshot(
        number=number,
        info=info,
        source=None if source is None else LayerSource.parse(source),
        usage=None if size_bytes is None else Usage(size_bytes=size_bytes, inodes=inodes),
    )
