"""Catalogs that others wrote: old schemas, and what a hostile one may hold."""

import sqlite3
import stat
from dataclasses import replace

import pytest

from fs.errors import CatalogError
from fs.format.catalog import Catalog
from fs.format.catalog_rows import INSERT_ENTRY, SCHEMA, entry_row
from fs.format.databases import secure
from fs.format.entries import Entry, Flag
from fs.format.hashes import Hash
from fs.format.paths import path_key

LEGACY = """
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE catalog (md5path_1 INTEGER, md5path_2 INTEGER, parent_1 INTEGER, parent_2 INTEGER, inode INTEGER,
  hash BLOB, size INTEGER, mode INTEGER, mtime INTEGER, flags INTEGER, name TEXT, symlink TEXT,
  CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2));
CREATE TABLE nested_catalogs (path TEXT, sha1 TEXT, CONSTRAINT pk_nested_catalogs PRIMARY KEY (path));
INSERT INTO properties VALUES ('schema', '1.2');
"""

FILE = Entry(name=b"f", mode=stat.S_IFREG | 0o644, uid=0, gid=0, size=3, mtime_ns=10**9, hash=Hash.of(b"abc"))


def _connection(script: str) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(script)
    secure(connection)
    return connection


def _modern() -> sqlite3.Connection:
    connection = _connection(SCHEMA + "INSERT INTO properties VALUES ('schema', '2.5');")
    connection.execute(INSERT_ENTRY, entry_row(b"/f", FILE))
    return connection


def test_a_legacy_catalog_has_what_it_has() -> None:
    connection = _connection(LEGACY)
    connection.execute(
        "INSERT INTO catalog VALUES (?,?,?,?,7,?,3,?,1,4,'f','')",
        (*path_key(b"/f"), *path_key(b""), Hash.of(b"abc").digest, stat.S_IFREG | 0o644),
    )
    connection.execute("INSERT INTO nested_catalogs VALUES ('/n', ?)", (str(Hash.of(b"n")),))
    catalog = Catalog(connection)

    assert catalog.lookup(b"/f") == replace(FILE, rowid=1, flags=Flag.FILE)
    assert [entry.name for entry in catalog.listing(b"")] == [b"f"]
    assert catalog.nested()[0].size == 0
    assert catalog.counters().total["regular"] == 0


@pytest.mark.parametrize("schema", ["2.1", "2.3", "2.6", "3.0", "", "x"])
def test_schemas_that_nobody_knows_are_refused(schema: str) -> None:
    with pytest.raises(CatalogError, match="schema"):
        Catalog(_connection(SCHEMA + f"INSERT INTO properties VALUES ('schema', '{schema}');"))


@pytest.mark.parametrize(
    "change",
    [
        "size = -1",
        "size = 'many'",
        "size = NULL",
        "mode = 420",
        "mode = 'x'",
        "flags = 'x'",
        "flags = 0x700",
        "hash = 'text'",
        "hash = x'00'",
        "name = NULL",
        "symlink = NULL",
        "hardlinks = -1",
        "mtime = 'now'",
        "mtime = 1 << 62",
        "uid = -5",
    ],
)
def test_a_row_that_holds_nonsense_is_an_error_and_nothing_else(change: str) -> None:
    connection = _modern()
    connection.execute(f"UPDATE catalog SET {change}")

    with pytest.raises(CatalogError):
        Catalog(connection).lookup(b"/f")
    with pytest.raises(CatalogError):
        [Catalog(connection).at(one.rowid) for one in Catalog(connection).names(b"", after=0, most=2)]


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "other"])
def test_a_listing_holds_only_names_that_can_be_looked_up(name: str) -> None:
    connection = _modern()
    connection.execute("UPDATE catalog SET name = ?", (name,))

    assert Catalog(connection).listing(b"") == []
    assert [one.is_shown for one in Catalog(connection).names(b"", after=0, most=2)] == [False]


def test_a_view_is_no_table() -> None:
    connection = _modern()
    connection.executescript("ALTER TABLE catalog RENAME TO hidden; CREATE VIEW catalog AS SELECT * FROM hidden;")

    with pytest.raises(CatalogError, match="lacks the table catalog"):
        Catalog(connection)


def test_a_nested_catalog_at_its_own_place_ends_the_walk() -> None:
    connection = _modern()
    connection.execute("INSERT INTO nested_catalogs VALUES ('/n', ?, 0)", (str(Hash.of(b"n")),))
    connection.execute("INSERT INTO properties VALUES ('root_prefix', '/n')")
    catalog = Catalog(connection, b"/n")

    assert catalog.nested_holding(b"/n/deep/er") is None


def test_the_longest_mount_point_serves() -> None:
    connection = _modern()
    for path in ("/a", "/a/b/c"):
        connection.execute("INSERT INTO nested_catalogs VALUES (?, ?, 0)", (path, str(Hash.of(path.encode()))))
    catalog = Catalog(connection)

    found = {path: catalog.nested_holding(path) for path in (b"/a/b", b"/a/b/c", b"/a/b/cd", b"/ab", b"")}
    paths = {path: reference and reference.path for path, reference in found.items()}
    assert paths == {b"/a/b": b"/a", b"/a/b/c": b"/a/b/c", b"/a/b/cd": b"/a", b"/ab": None, b"": None}
