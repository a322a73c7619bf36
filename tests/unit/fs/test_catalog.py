import sqlite3
import stat
from collections.abc import Iterator

import pytest

from fs.errors import CatalogError
from fs.format.catalog import Catalog
from fs.format.catalog_rows import INSERT_CHUNK, INSERT_ENTRY, LINKS_SCHEMA, SCHEMA, entry_row
from fs.format.entries import Entry, Flag
from fs.format.hashes import Algorithm, Hash
from fs.format.lookup import entry_at, serving_catalog
from fs.format.paths import path_key

CONTENT = Hash(b"c" * 20, Algorithm.SHAKE128)
DIRECTORY = Entry(name=b"", mode=stat.S_IFDIR | 0o755, uid=0, gid=0, size=4096, mtime_ns=0, linkcount=2)


def database(entries: dict[bytes, Entry], **properties: str) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.text_factory = bytes
    connection.executescript(SCHEMA)
    values = {"schema": "2.5", "schema_revision": "7", **properties}
    connection.executemany("INSERT INTO properties VALUES (?, ?)", values.items())
    connection.executemany(INSERT_ENTRY, [entry_row(path, entry) for path, entry in entries.items()])
    return connection


def file(name: bytes, **changes: object) -> Entry:
    values: dict[str, object] = {"mode": stat.S_IFREG | 0o644, "uid": 1, "gid": 2, "size": 5, "mtime_ns": 7, **changes}
    return Entry(name=name, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "entry",
    [
        file(b"plain", hash=CONTENT, algorithm=Algorithm.SHAKE128),
        file(b"not-utf8-\xff", hash=Hash(b"h" * 20), mtime_ns=-1, xattrs={b"user.a": b"b"}),
        file(b"link", mode=stat.S_IFLNK | 0o777, target=b"../\xfe", size=0),
        file(b"null", mode=stat.S_IFCHR | 0o666, rdev=(1 << 8) | 3, size=0),
        file(b"twice", hash=Hash(b"h" * 20), linkcount=2, link_group=9),
        file(b"huge-ids", hash=Hash(b"h" * 20), uid=2**32 - 2, gid=2**32 - 2, mode=stat.S_IFREG | 0o7777),
    ],
    ids=lambda entry: entry.name.decode("latin-1"),
)
def test_what_is_stored_is_read_back(entry: Entry) -> None:
    path = b"/" + entry.name
    catalog = Catalog(database({b"": DIRECTORY, path: entry}))

    found = catalog.lookup(path)

    assert found is not None
    type_bits = Flag.DIRECTORY | Flag.FILE | Flag.LINK | Flag.SPECIAL
    assert replace_flags(found, found.flags & ~type_bits) == entry
    assert [listed.name for listed in catalog.listing(b"")] == [entry.name]


def replace_flags(entry: Entry, flags: Flag) -> Entry:
    from dataclasses import replace

    return replace(entry, flags=flags, rowid=0)


def test_names_are_stored_as_text_whatever_their_encoding() -> None:
    connection = database({b"": DIRECTORY, b"/\xff": file(b"\xff", hash=CONTENT)})

    assert connection.execute("SELECT DISTINCT typeof(name), typeof(symlink) FROM catalog").fetchall() == [
        (b"text", b"text")
    ]


def test_chunks_must_cover_the_file() -> None:
    entry = file(b"big", flags=Flag.CHUNKED, size=30)
    connection = database({b"": DIRECTORY, b"/big": entry})
    rows = [(*path_key(b"/big"), offset, 10, b"x" * 20) for offset in (0, 10, 20)]
    connection.executemany(INSERT_CHUNK, rows[:2])
    catalog = Catalog(connection)

    with pytest.raises(CatalogError, match="20 of 30"):
        catalog.content(b"/big", entry)
    connection.executemany(INSERT_CHUNK, rows[2:])
    assert [chunk.offset for chunk in catalog.content(b"/big", entry).chunks] == [0, 10, 20]


def test_links_over_several_directories_come_from_their_own_table() -> None:
    connection = database({b"": DIRECTORY, b"/a": file(b"a", hash=CONTENT)})
    connection.executescript(LINKS_SCHEMA)
    connection.execute("INSERT INTO unpackd_links VALUES (?, ?, 4, 3)", path_key(b"/a"))

    found = Catalog(connection).lookup(b"/a")

    assert found is not None
    assert (found.linkcount, found.link_group) == (3, -4)


def test_an_unknown_schema_is_refused() -> None:
    with pytest.raises(CatalogError, match=r"2\.6"):
        Catalog(database({}, schema="2.6"))


@pytest.fixture
def nested() -> Iterator[tuple[Catalog, dict[bytes, Catalog]]]:
    """A root with /a nested, and /a/b nested in that."""
    root = database({b"": DIRECTORY, b"/a": DIRECTORY, b"/plain": file(b"plain", hash=CONTENT)})
    root.execute("INSERT INTO nested_catalogs VALUES ('/a', ?, 0)", (str(Hash(b"1" * 20)),))
    middle = database({b"/a": DIRECTORY, b"/a/b": DIRECTORY, b"/a/bc": file(b"bc", hash=CONTENT)}, root_prefix="/a")
    middle.execute("INSERT INTO nested_catalogs VALUES ('/a/b', ?, 0)", (str(Hash(b"2" * 20)),))
    inner = database({b"/a/b": DIRECTORY, b"/a/b/c": file(b"c", hash=CONTENT)}, root_prefix="/a/b")
    catalogs = {b"/a": Catalog(middle, b"/a"), b"/a/b": Catalog(inner, b"/a/b")}
    root_catalog = Catalog(root)
    yield root_catalog, catalogs
    root_catalog.close()


def drive(walk: object, catalogs: dict[bytes, Catalog]) -> object:
    try:
        reference = next(walk)  # type: ignore[call-overload]
        while True:
            reference = walk.send(catalogs[reference.path])  # type: ignore[attr-defined]
    except StopIteration as stop:
        return stop.value


def test_the_walk_enters_nested_catalogs_only_as_far_as_needed(
    nested: tuple[Catalog, dict[bytes, Catalog]],
) -> None:
    root, catalogs = nested

    assert drive(serving_catalog(root, b"/plain"), catalogs) is root
    assert drive(serving_catalog(root, b"/a", entering=False), catalogs) is root
    assert drive(serving_catalog(root, b"/a"), catalogs) is catalogs[b"/a"]
    assert drive(serving_catalog(root, b"/a/bc"), catalogs) is catalogs[b"/a"]
    assert drive(serving_catalog(root, b"/a/b/c"), catalogs) is catalogs[b"/a/b"]
    assert drive(entry_at(root, b"/a/b/none"), catalogs) is None
