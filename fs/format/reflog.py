"""The reflog, ``.cvmfsreflog``: every root catalog, certificate, history and metainfo that was ever published.

Garbage collection and checks need it, readers do not. Works on a connection that the caller made.
Source: CernVM-FS 2.12, reflog_sql.cc, signing_tool.cc.
"""

import sqlite3
from collections.abc import Iterable
from enum import IntEnum

from fs.errors import HashSyntaxError, MalformedError
from fs.format.columns import as_text
from fs.format.hashes import Hash, Suffix

_SCHEMA = """
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE refs (hash TEXT, type INTEGER, timestamp INTEGER, CONSTRAINT pk_refs PRIMARY KEY (hash));
"""


class ReferenceType(IntEnum):
    """What a reference of the reflog is; the value is the format's number."""

    CATALOG = 0
    CERTIFICATE = 1
    HISTORY = 2
    METAINFO = 3

    @property
    def suffix(self) -> Suffix:
        """The letter of the object."""
        return _SUFFIXES[self]


_SUFFIXES = (Suffix.CATALOG, Suffix.CERTIFICATE, Suffix.HISTORY, Suffix.METAINFO)


def create_reflog(connection: sqlite3.Connection, repository: str) -> None:
    """Make the tables of a new reflog in an empty database."""
    connection.executescript(_SCHEMA)
    connection.executemany(
        "INSERT INTO properties VALUES (?, ?)", [("schema", "1.0"), ("schema_revision", "0"), ("fqrn", repository)]
    )


def add_references(
    connection: sqlite3.Connection, references: Iterable[tuple[ReferenceType, Hash]], now_unix_s: int
) -> None:
    """Record *references* as published now; those known already get the new time."""
    connection.executemany(
        "INSERT OR REPLACE INTO refs (hash, type, timestamp) VALUES (?, ?, ?)",
        [(str(name), int(kind), now_unix_s) for kind, name in references],
    )


def remove_references(connection: sqlite3.Connection, removed: Iterable[Hash]) -> None:
    """Forget *removed*, whose objects are about to be removed, and give their space back."""
    connection.executemany("DELETE FROM refs WHERE hash = ?", [(str(name),) for name in removed])
    connection.execute("VACUUM")


def references(connection: sqlite3.Connection) -> dict[Hash, tuple[ReferenceType, int]]:
    """Every reference with its type and its time in Unix seconds. Raises MalformedError."""
    try:
        return {
            Hash.parse(as_text(text)): (ReferenceType(kind), int(time))
            for text, kind, time in connection.execute("SELECT hash, type, timestamp FROM refs")
        }
    except (sqlite3.DatabaseError, HashSyntaxError, ValueError, TypeError, OverflowError) as error:
        raise MalformedError(f"the reflog cannot be read: {error}") from error
