"""SQLite databases that somebody else wrote: opened so that nothing in them runs, and looked at before use."""

import sqlite3

from fs.errors import CatalogError
from fs.format.columns import as_text

_LONGEST_VALUE_BYTES = 16 << 20  # of what SQLite may hold at a time; attributes are the longest values, with 64 KiB
_LONGEST_PROGRAM = 20_000  # steps of a compiled statement; ours have some dozens


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
