"""What strangers can send, as functions of bytes: each takes an input and raises only what its code documents.

Used in two ways: ``python -m tests.fuzz`` (``make fuzz``) lets atheris search for minutes, guided by coverage; the unit
tests try seeds and what hypothesis makes of them.
"""

import io
import json
import sqlite3
import stat
import struct
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import anyio

from fs.client import wire_messages as wire
from fs.client.control import _answer as answer_control
from fs.client.profile import parse_profile
from fs.client.receiving import ObjectReceiver, ObjectRef, WindowSink
from fs.client.wire_journal import Remembered, _bodies, _take
from fs.errors import CatalogError, CorruptError, FsError, MalformedError, RefusedError
from fs.format.blacklist import Blacklist
from fs.format.catalog import Catalog
from fs.format.catalog_rows import INSERT_CHUNK, INSERT_ENTRY, SCHEMA, entry_row
from fs.format.compression import Compression, inflate
from fs.format.databases import connect_bytes, secure
from fs.format.entries import Entry
from fs.format.hashes import Hash
from fs.format.history import History, create_history
from fs.format.manifest import Manifest
from fs.format.paths import path_key
from fs.format.pkcs7 import SignedMessage
from fs.format.reflog import create_reflog, references
from fs.format.signature import SignedText
from fs.format.symlinks import expand_target
from fs.format.whitelist import Whitelist
from fs.format.xattrs import decode_xattrs

Run = Callable[[bytes], object]

DIGEST = "0123456789abcdef0123456789abcdef01234567"
INFLATED_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """One kind of input."""

    run: Run
    seeds: list[bytes]
    words: tuple[bytes, ...] = ()  # for the dictionary


# documents


def manifest(data: bytes) -> None:
    with suppress(MalformedError):
        parsed = Manifest.parse(data)
        assert Manifest.parse(parsed.encode()) == parsed


def whitelist(data: bytes) -> None:
    with suppress(MalformedError):
        parsed = Whitelist.parse(data)
        assert Whitelist.parse(parsed.encode()).fingerprints == parsed.fingerprints


def signed_text(data: bytes) -> None:
    with suppress(FsError):
        SignedText.parse(data)


def pkcs7(data: bytes) -> None:
    with suppress(FsError):
        SignedMessage.verify(data)


def blacklist(data: bytes) -> None:
    with suppress(FsError):
        Blacklist.parse(data.split(b"\0")).check_revision("a.test", 7)


def profile(data: bytes) -> None:
    with suppress(MalformedError):
        for read in parse_profile(data):
            assert read.path.startswith(b"/") or read.path == b""


def symlink(data: bytes) -> None:
    assert len(expand_target(data, {b"A": b"x"})) <= 2 * len(data) + 2


def xattrs(data: bytes) -> None:
    with suppress(ValueError, MalformedError):
        decode_xattrs(data)


# databases


class Choices:
    """Bytes as a series of decisions; zeros when they run out."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def is_over(self) -> bool:
        return self._position >= len(self._data)

    def byte(self) -> int:
        value = self._data[self._position] if not self.is_over else 0
        self._position += 1
        return value

    def take(self, count: int) -> bytes:
        part = self._data[self._position : self._position + count]
        self._position += count
        return part

    def value(self) -> int | bytes | str | float | None:
        """What a column can hold."""
        kinds: list[Callable[[], int | bytes | str | float | None]] = [
            lambda: None,
            lambda: int.from_bytes(self.take(8), "little", signed=True),
            lambda: self.byte() - 128,
            lambda: 1 << (self.byte() % 63),
            lambda: self.take(self.byte()),
            lambda: self.take(self.byte()).decode("latin-1"),
            lambda: float(struct.unpack("<d", self.take(8).ljust(8, b"\0"))[0]),
            lambda: self.take(20).ljust(20, b"\0"),
            lambda: DIGEST,
        ]
        return kinds[self.byte() % len(kinds)]()


_PLACES = [
    (table, column)
    for table, columns in {
        "catalog": "md5path_1 md5path_2 parent_1 parent_2 hardlinks hash size mode mtime mtimens flags name symlink uid"
        " gid xattr",
        "chunks": "md5path_1 md5path_2 offset size hash",
        "nested_catalogs": "path sha1 size",
        "bind_mountpoints": "path sha1 size",
        "statistics": "counter value",
        "properties": "key value",
    }.items()
    for column in columns.split()
]

_OTHERS = ", ".join(column for table, column in _PLACES if table == "catalog" and column != "name")
_HOSTILE = [
    "ALTER TABLE catalog ADD COLUMN more",
    "DROP TABLE statistics",
    "DROP TABLE chunks",
    "ALTER TABLE catalog DROP COLUMN xattr",
    "ALTER TABLE catalog RENAME TO hidden; CREATE VIEW catalog AS SELECT * FROM hidden",
    f"DROP TABLE catalog; CREATE TABLE catalog ({_OTHERS}, name AS (hex(zeroblob(400000000))))",
    "DROP TABLE catalog; CREATE VIRTUAL TABLE catalog USING fts5(md5path_1, md5path_2, hash, name)",
    "CREATE TABLE unpackd_links AS SELECT md5path_1, md5path_2, 'x' AS link_group, -1 AS linkcount FROM catalog",
    "DROP TABLE catalog; CREATE TABLE catalog (md5path_1 PRIMARY KEY) WITHOUT ROWID",
    "ALTER TABLE catalog RENAME TO old; CREATE TABLE catalog AS SELECT * FROM old",
    "DROP TABLE nested_catalogs; CREATE TABLE nested_catalogs AS SELECT 1 << 40 AS path, 1 << 40 AS sha1, 'x' AS size",
    "DROP TABLE statistics; CREATE TABLE statistics (counter, value); INSERT INTO statistics VALUES (1 << 40, 9e999)",
    "DROP TABLE properties; CREATE TABLE properties (key, value); INSERT INTO properties VALUES (NULL, NULL)",
    "UPDATE properties SET value = '1.0' WHERE key = 'schema'",
]

_PATHS = [b"", b"/d", b"/d/f", b"/large", b"/link", b"/n", b"/n/x", b"/absent"]


def _fresh_catalog() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(SCHEMA + "INSERT INTO properties VALUES ('schema', '2.5'), ('TTL', '60');")
    directory = Entry(name=b"", mode=stat.S_IFDIR | 0o755, uid=0, gid=0, size=4096, mtime_ns=1)
    regular = Entry(name=b"", mode=stat.S_IFREG | 0o644, uid=0, gid=0, size=3, mtime_ns=1, hash=Hash.parse(DIGEST))
    link = Entry(name=b"", mode=stat.S_IFLNK | 0o777, uid=0, gid=0, size=0, mtime_ns=1, target=b"$(A:-b)/c")
    entries = {b"": directory, b"/d": directory, b"/d/f": regular, b"/large": regular, b"/link": link, b"/n": directory}
    for path, entry in entries.items():
        connection.execute(INSERT_ENTRY, entry_row(path, entry))
    connection.execute("UPDATE catalog SET flags = flags | 64, hash = NULL WHERE name = 'large'")
    connection.execute(INSERT_CHUNK, (*path_key(b"/large"), 0, 3, bytes(20)))
    connection.execute("INSERT INTO nested_catalogs VALUES ('/n', ?, 10)", (DIGEST,))
    connection.execute("INSERT INTO statistics VALUES ('self_dir', 3)")
    return connection


def _read_catalog(connection: sqlite3.Connection) -> None:
    with suppress(CatalogError):
        catalog = Catalog(connection)
        for path in _PATHS:
            with suppress(CatalogError):
                entry = catalog.lookup(path)
                if entry is not None and entry.is_regular:
                    catalog.content(path, entry)
                    catalog.link_key(path, entry)
            with suppress(CatalogError):
                catalog.listing(path)
            with suppress(CatalogError):
                for name in catalog.names(path, after=-1, most=10):
                    catalog.at(name.rowid)
            with suppress(CatalogError):
                catalog.nested_holding(path)
        for ask in (catalog.counters, catalog.nested, lambda: list(catalog.objects()), lambda: list(catalog.entries())):
            with suppress(CatalogError):
                ask()
        for name in ("revision", "last_modified_unix_s", "ttl_s", "previous"):
            with suppress(CatalogError):
                getattr(catalog, name)


def catalog_values(data: bytes) -> None:
    """A catalog of which some values, and perhaps the schema, are hostile."""
    choices = Choices(data)
    connection = _fresh_catalog()
    try:
        schema = choices.byte()
        with suppress(sqlite3.Error):
            if schema < len(_HOSTILE):
                connection.executescript(_HOSTILE[schema])
        for _ in range(20):
            if choices.is_over:
                break
            table, column = _PLACES[choices.byte() % len(_PLACES)]
            with suppress(sqlite3.Error):
                where = f"WHERE rowid = {choices.byte() % 8}"
                connection.execute(f"UPDATE {table} SET {column} = ? {where}", (choices.value(),))
        secure(connection)
        _read_catalog(connection)
    finally:
        connection.close()


def _serialized(connection: sqlite3.Connection) -> bytes:
    try:
        return connection.serialize()
    finally:
        connection.close()


def catalog_file(data: bytes) -> None:
    """A file of which somebody changed bytes."""
    with suppress(CatalogError):
        connection = connect_bytes(data)
        try:
            _read_catalog(connection)
        finally:
            connection.close()


def history(data: bytes) -> None:
    with suppress(CatalogError):
        connection = connect_bytes(data)
        try:
            with suppress(MalformedError):
                tags = History(connection)
                tags.tags()
                tags.branches()
        finally:
            connection.close()


def reflog(data: bytes) -> None:
    with suppress(CatalogError):
        connection = connect_bytes(data)
        try:
            with suppress(MalformedError):
                references(connection)
        finally:
            connection.close()


# objects


def inflated(data: bytes) -> None:
    with suppress(CorruptError, RefusedError):
        assert len(inflate(data, limit_bytes=INFLATED_LIMIT_BYTES)) <= INFLATED_LIMIT_BYTES


def received(data: bytes) -> None:
    """An object of which the catalog says a size and a compression, right or wrong."""
    choices = Choices(data)
    flags, stated = choices.byte(), choices.byte() << 8 | choices.byte()
    stored = data[3:]
    ref = ObjectRef(
        Hash.of(stored),
        compression=Compression.NONE if flags & 1 else Compression.ZLIB,
        size=None if flags & 2 else stated,
        limit_bytes=INFLATED_LIMIT_BYTES,
    )
    sink = WindowSink(0, 1 << 30)

    async def receive() -> None:
        receiver = ObjectReceiver(ref, sink)
        for start in range(0, len(stored), 1000):
            await receiver.feed(stored[start : start + 1000])
        await receiver.finish()

    try:
        anyio.run(receive, backend="trio")
    except FsError:
        assert len(sink.content) <= INFLATED_LIMIT_BYTES + (1 << 20)
    else:
        assert ref.size is None or len(sink.content) == ref.size


# messages


_PARSERS: tuple[Run, ...] = (
    wire.parse_init,
    wire.parse_name,
    wire.parse_forget,
    wire.parse_forgets,
    wire.parse_read,
    wire.parse_getxattr,
    wire.parse_listxattr,
)


def wire_message(data: bytes) -> None:
    with suppress(wire.MessageError):
        request = wire.parse(data)
        for parse in _PARSERS:
            with suppress(wire.MessageError):
                parse(request.body)


def journal(data: bytes) -> None:
    remembered = Remembered()
    with suppress(struct.error, KeyError, ValueError, FsError):  # what the loader takes for damage
        catalogs: dict[int, Any] = {}
        for body in _bodies(io.BytesIO(data)):
            _take(body, remembered, catalogs)


class _Stream:
    """One request on a socket; remembers the answer."""

    def __init__(self, request: bytes) -> None:
        self._pieces = [request[start : start + 500] for start in range(0, len(request), 500)]
        self.answer = b""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return

    async def receive(self) -> bytes:
        if not self._pieces:
            raise anyio.EndOfStream
        return self._pieces.pop(0)

    async def send(self, data: bytes) -> None:
        self.answer += data


async def _echo(request: Mapping[str, Any]) -> object:
    return {"paths": list(map(str, request.get("paths", []))), "job": int(request.get("job", 0))}


def control(data: bytes) -> None:
    stream = _Stream(data)

    async def answer() -> None:
        await answer_control(stream, {"prefetch": _echo})  # type: ignore[arg-type]  # what of a stream is used here

    anyio.run(answer, backend="trio")
    if stream.answer:
        assert {"ok", "error"} & json.loads(stream.answer).keys()


def _history_file() -> bytes:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    create_history(connection, "a.test")
    connection.execute("INSERT INTO tags VALUES ('one', ?, 3, 7, 0, 'd', 9, '')", (DIGEST,))
    return _serialized(connection)


def _reflog_file() -> bytes:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    create_reflog(connection, "a.test")
    connection.execute("INSERT INTO refs VALUES (?, 0, 7)", (DIGEST,))
    return _serialized(connection)


def _message(operation: int, body: bytes) -> bytes:
    return struct.pack("=IIQQIIIHH", 40 + len(body), operation, 7, 1, 0, 0, 0, 0, 0) + body


def _record(body: bytes) -> bytes:
    return struct.pack("=II", len(body), zlib.crc32(body)) + body


_FINGERPRINT = b":".join([b"AB"] * 20)

_BOMB = zlib.compress(bytes(8 << 20))
_MANIFEST = b"C%s\nB100\nRd41d8cd98f00b204e9800998ecf8427e\nD240\nS42\nNa.test\nX%s\nH%s\nT1700000000\nGyes\nAno\n"
_WHITELIST = b"20260101000000\nE20260201000000\nNexample.org\n" + _FINGERPRINT + b"\n"
_PROFILE = b'{"version": 1, "reads": [{"path": "/a", "chunks": [1, 2]}]}'
_JOURNAL = [
    b"R" + DIGEST.encode(),
    struct.pack("=cIB", b"C", 0, 40) + DIGEST.encode() + b"/n",
    struct.pack("=cQ16sIIB", b"N", 300, bytes(16), 0, 0, 1) + b"/n",
    struct.pack("=cQ", b"F", 300),
]
_MESSAGES = [
    _message(1, b"name\0"),
    _message(26, struct.pack("=IIII", 7, 45, 1, 1)),
    _message(42, struct.pack("=IIQQ", 1, 0, 5, 1)),
    _message(15, struct.pack("=QQI20x", 0, 0, 4096)),
    _message(22, struct.pack("=II", 10, 0) + b"user.x\0"),
]
_CONTROL = [b'{"command": "prefetch", "paths": ["/a"], "job": 3}\n', b'{"command": 1}\n']

TARGETS: dict[str, Target] = {
    "manifest": Target(manifest, [_MANIFEST % ((DIGEST.encode(),) * 3)], (b"-rmd160", b"\nC", b"\nS", b"\n--\n")),
    "whitelist": Target(whitelist, [_WHITELIST], (_FINGERPRINT, b"-rmd160", b"\nE")),
    "signed_text": Target(signed_text, [b"text\n--\n" + DIGEST.encode() + b"\n" + bytes(128)], (b"\n--\n",)),
    "pkcs7": Target(pkcs7, [b"-----BEGIN PKCS7-----\nMIIB\n-----END PKCS7-----\n"], (b"-----BEGIN PKCS7-----", b"MII")),
    "blacklist": Target(blacklist, [_FINGERPRINT + b"\n<a.test 9\n# comment\n"], (b"<", b"\n", b"a.test")),
    "profile": Target(profile, [_PROFILE, b"/a\n/b/c\n"], (b'"version": 1', b'"reads"', b'"path"', b"..", b"\\ud800")),
    "symlink": Target(symlink, [b"/x/$(A)/$(B:-c$(A))", b"$(A"], (b"$(", b":-", b")", b"A")),
    "xattrs": Target(xattrs, [b"\1\1\5\3user.aabc"]),
    "catalog_values": Target(
        catalog_values, [bytes([255, 0, 1, 2, 3]), *(bytes([one]) for one in range(len(_HOSTILE)))]
    ),
    "catalog_file": Target(catalog_file, [_serialized(_fresh_catalog())]),
    "history": Target(history, [_history_file()]),
    "reflog": Target(reflog, [_reflog_file()]),
    "inflated": Target(inflated, [zlib.compress(b"content" * 100), _BOMB, zlib.compress(b"x")[:-3]]),
    "received": Target(received, [b"\0\2\274" + zlib.compress(b"content" * 100), b"\2\0\0" + _BOMB]),
    "wire_message": Target(wire_message, _MESSAGES),
    "journal": Target(journal, [b"".join(map(_record, _JOURNAL))]),
    "control": Target(control, _CONTROL, (b'"command"', b'"prefetch"', b'"job"')),
}
