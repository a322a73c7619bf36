"""Inodes that the kernel knows and nobody asks for: kept small, in a temporary database that may go to the disk.

A node in memory takes about a kilobyte, with everything that the catalog says of it. Here it takes some dozen bytes and
its path; what the catalog says is looked up again when the kernel asks.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fs.client.catalogs import CatalogRef

_CACHE_KIB = 16 << 10
_ROWS_AT_ONCE = 256
_SELECT = "SELECT key, home, inside, is_directory, lookups, paths, inode FROM dormant "


@dataclass(frozen=True, slots=True)
class Dormant:
    """What the kernel was told of an inode that was not asked for since, or not in this life of the client."""

    key: bytes
    home: CatalogRef  # as in Found, of the revision of that time
    inside: CatalogRef
    is_directory: bool
    paths: tuple[bytes, ...]
    lookups: int = 1


class Dormants:
    """A map of inode numbers to Dormant. Raises sqlite3.Error if neither memory nor disk takes any more."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)  # a file without a name, once it is larger than the cache
        self._db.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute(
            "CREATE TABLE dormant (inode INTEGER PRIMARY KEY, key BLOB, home INTEGER, inside INTEGER,"
            " is_directory INTEGER, lookups INTEGER, paths BLOB)"
        )
        self._db.execute("CREATE INDEX by_home ON dormant (home, inode)")
        self._count = 0
        self._catalogs: list[CatalogRef] = []
        self._numbers: dict[CatalogRef, int] = {}

    def __len__(self) -> int:
        return self._count

    def put(self, dormants: Iterable[tuple[int, Dormant]]) -> None:
        """Add them; numbers that are there already keep what they have."""
        rows = [
            (inode, one.key, self._number(one.home), self._number(one.inside), one.is_directory, one.lookups,
             b"\0".join(one.paths))
            for inode, one in dormants
        ]  # fmt: skip
        self._db.execute("BEGIN")
        try:
            before = self._db.total_changes
            self._db.executemany("INSERT OR IGNORE INTO dormant VALUES (?,?,?,?,?,?,?)", rows)
            self._count += self._db.total_changes - before
        finally:
            self._db.execute("COMMIT")

    def _number(self, catalog: CatalogRef) -> int:
        number = self._numbers.get(catalog)
        if number is None:
            number = self._numbers[catalog] = len(self._catalogs)
            self._catalogs.append(catalog)
        return number

    def get(self, inode: int) -> Dormant | None:
        """What *inode* stands for, or None."""
        if not self._count:
            return None
        row = self._db.execute(_SELECT + "WHERE inode=?", (inode,)).fetchone()
        return None if row is None else self._dormant(*row[:-1])

    def _dormant(  # noqa: PLR0913, PLR0917  # the columns
        self, key: bytes, home: int, inside: int, is_directory: int, lookups: int, paths: bytes
    ) -> Dormant:
        places = self._catalogs[home], self._catalogs[inside]
        return Dormant(key, *places, bool(is_directory), tuple(paths.split(b"\0")), lookups)

    def directories(self) -> Iterator[tuple[int, bytes]]:
        """The directories among them, with their paths; none may be put or taken meanwhile."""
        for inode, paths in self._db.execute("SELECT inode, paths FROM dormant WHERE is_directory"):
            yield inode, paths.rpartition(b"\0")[2]

    def pop(self, inode: int) -> Dormant | None:
        """Take *inode* out."""
        found = self.get(inode)
        if found is not None:
            self._db.execute("DELETE FROM dormant WHERE inode=?", (inode,))
            self._count -= 1
        return found

    def items(self) -> Iterator[tuple[int, Dormant]]:
        """All of them, those of one catalog after the other; others may be put and taken meanwhile."""
        last = (-1, -1)
        while True:
            statement = _SELECT + "WHERE (home, inode) > (?, ?) ORDER BY home, inode LIMIT ?"
            rows = self._db.execute(statement, (*last, _ROWS_AT_ONCE)).fetchall()
            if not rows:
                return
            for *row, inode in rows:
                yield inode, self._dormant(*row)
            last = rows[-1][1], rows[-1][-1]
