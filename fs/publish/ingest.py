"""File contents become objects: hash, compress, cut into chunks, store once.

An object's name is the hash of its *compressed* bytes, so deduplication by name would depend on the encoder. The writer
therefore keeps an index from the plain content to the object that holds it; a hit also saves the compression. The index
may be lost or stale: an object is only referred to after it was seen in the store with its length, and claimed there.
"""

import hashlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from fs.errors import FsError, RefusedError
from fs.format.chunking import DEFAULT_SIZES, ChunkSizes, next_cut
from fs.format.compression import FAST_LEVEL, Compression, Encoder, deflate
from fs.format.hashes import Algorithm, Hash, Suffix
from fs.format.tree import Chunk, Content
from fs.store.base import Buffer, ObjectWriter, Store

EMPTY_OBJECT = bytes.fromhex("789c030000000001")
"""The zlib stream of no bytes, the same in every repository. Source: CernVM-FS 2.12, catalog_balancer_impl.h."""

_REMEMBERED_AT_ONCE = 512
_BUSY_S = 5.0
_SELECT = "SELECT key, hash, algorithm, stored_bytes FROM contents WHERE key IN ({})"
_READ_BYTES = 1 << 20
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Codec:
    """How contents are stored."""

    algorithm: Algorithm = Algorithm.SHA1
    compression: Compression = Compression.ZLIB
    encoder: Encoder = Encoder.ISAL
    level: int = FAST_LEVEL
    chunk_sizes: ChunkSizes = DEFAULT_SIZES

    def __post_init__(self) -> None:
        """Raises RefusedError."""
        self.encoder.check(self.level)

    @classmethod
    def parse(cls, text: str, *, chunk_sizes: ChunkSizes = DEFAULT_SIZES) -> Self:
        """The codec that users call ``ENCODER``, ``ENCODER:LEVEL`` or ``none``. Raises RefusedError."""
        if text == "none":
            return cls(compression=Compression.NONE, chunk_sizes=chunk_sizes)
        word, colon, level = text.partition(":")
        try:
            encoder = Encoder(word)
            chosen = int(level) if colon else encoder.usual_level
        except ValueError as error:
            known = ", ".join(each.value for each in Encoder)
            raise RefusedError(f"{text!r} is no codec: {known}, each with :LEVEL at will, or none") from error
        return cls(encoder=encoder, level=chosen, chunk_sizes=chunk_sizes)


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a plain content was stored."""

    hash: Hash
    stored_bytes: int


class DedupIndex:
    """Plain content (SHA-256, kind, compression) to the object that holds it. Thread-safe; processes may share it.

    SHA-256 and not the format's SHA-1: two contents made to collide must not become one file. Losing the index costs
    time and space, nothing else; so damage is logged and the index begins anew.
    """

    def __init__(self, path: Path | None) -> None:
        """Open or make the database at *path*; None keeps the index in memory."""
        self._lock = threading.Lock()
        self._path = path
        self._pending: dict[bytes, tuple[bytes, str, int]] = {}
        try:
            self._db = _open_index(path)
        except sqlite3.DatabaseError as error:
            self._db = self._begin_anew(error)

    def find(self, keys: Sequence[bytes]) -> dict[bytes, _Stored]:
        """Where the contents called *keys* are said to be; those that are not known are left out."""
        with self._lock:
            rows = {key: self._pending[key] for key in keys if key in self._pending}
            rows |= self._select([key for key in keys if key not in rows])
        return {key: _Stored(Hash(row[0], Algorithm(row[1])), row[2]) for key, row in rows.items()}

    def remember(self, found: Mapping[bytes, _Stored]) -> None:
        """Record where contents are, by what they are called; written in batches."""
        with self._lock:
            for key, stored in found.items():
                self._pending[key] = (stored.hash.digest, stored.hash.algorithm.value, stored.stored_bytes)
            if len(self._pending) >= _REMEMBERED_AT_ONCE:
                self._write()

    def flush(self) -> None:
        """Write what is remembered, so that other processes find it."""
        with self._lock:
            self._write()

    def close(self) -> None:
        """Write what is remembered and close the database."""
        self.flush()
        self._db.close()

    def _select(self, keys: Sequence[bytes]) -> dict[bytes, tuple[bytes, str, int]]:
        try:
            rows = self._db.execute(_SELECT.format(",".join("?" * len(keys))), keys).fetchall()
        except sqlite3.OperationalError:
            return {}  # busy
        except sqlite3.DatabaseError as error:
            self._db = self._begin_anew(error)
            return {}
        return {key: (digest, algorithm, size) for key, digest, algorithm, size in rows}

    def _write(self) -> None:
        rows = [(key, *value) for key, value in self._pending.items()]
        self._pending.clear()
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany("INSERT OR REPLACE INTO contents VALUES (?, ?, ?, ?)", rows)
        except sqlite3.OperationalError as error:
            _log.warning("contents_not_indexed", count=len(rows), reason=str(error))
        except sqlite3.DatabaseError as error:
            self._db = self._begin_anew(error)

    def _begin_anew(self, error: sqlite3.DatabaseError) -> sqlite3.Connection:
        _log.warning("content_index_lost", path=str(self._path), reason=str(error))
        if self._path is not None:
            for ending in ("", "-wal", "-shm"):
                self._path.with_name(self._path.name + ending).unlink(missing_ok=True)
        return _open_index(self._path)


def _open_index(path: Path | None) -> sqlite3.Connection:
    connection = sqlite3.connect(path or ":memory:", timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=OFF")  # what a power cut costs here is compressed anew
    connection.execute(
        "CREATE TABLE IF NOT EXISTS contents"
        " (key BLOB PRIMARY KEY, hash BLOB, algorithm TEXT, stored_bytes INTEGER) WITHOUT ROWID"
    )
    return connection


class Ingester:
    """Adds file contents to a store. Thread-safe; one a process is enough.

    A call needs at most about four times ``chunk_sizes.most`` of memory, however large the file is.
    """

    def __init__(self, store: Store, index: DedupIndex, codec: Codec | None = None) -> None:
        self._store = store
        self._index = index
        self.codec = codec or Codec()
        kind = f"{self.codec.compression.value}{self.codec.algorithm.value}"
        self._kinds = {suffix: f"{kind}{suffix.value}".encode() for suffix in Suffix}

    def add_bytes(self, data: Buffer) -> Content:
        """Store a whole file; large ones are chunked as ``add_stream`` does."""
        if len(data) > self.codec.chunk_sizes.least:
            position = 0
            view = memoryview(data)

            def read(count: int) -> bytes:
                nonlocal position
                part = bytes(view[position : position + count])
                position += len(part)
                return part

            return self.add_stream(read, len(data))
        return self._whole(data)

    def add_many(self, files: Sequence[bytes]) -> list[Content]:
        """Store whole files as ``add_bytes`` does; looking them up together is what makes many small ones quick."""
        names = iter(self._objects([data for data in files if self._is_one_object(data)], Suffix.PLAIN))
        return [
            Content(len(data), next(names), (), self.codec.compression)
            if self._is_one_object(data)
            else self.add_bytes(data)
            for data in files
        ]

    def _is_one_object(self, data: bytes) -> bool:
        return 0 < len(data) <= self.codec.chunk_sizes.least

    def add_stream(self, read: Callable[[int], bytes], size: int) -> Content:
        """Store a file of exactly *size* bytes that *read* gives piece by piece.

        Args:
            read: gives up to that many bytes, fewer at will, none only at the end.
            size: how many bytes are read, no more and no fewer.

        Raises:
            FsError: *read* ends before *size* bytes.
        """
        pieces = self._pieces(read, size)
        piece: tuple[int, bytes] | None = next(pieces)
        if piece is not None and len(piece[1]) == size:
            return self._whole(piece[1])
        chunks: list[Chunk] = []
        with ThreadPoolExecutor(1, "chunks") as storing:
            while piece is not None:
                offset, data = piece
                name = storing.submit(self._object, data, Suffix.CHUNK)
                piece = next(pieces, None)  # is read and cut while the one before is compressed and written
                chunks.append(Chunk(offset, len(data), name.result()))
        return Content(size, None, tuple(chunks), self.codec.compression)

    def _pieces(self, read: Callable[[int], bytes], size: int) -> Iterator[tuple[int, bytes]]:
        """What a file is cut into, each with its offset; one at least."""
        sizes = self.codec.chunk_sizes
        rest = bytearray()
        remaining = size
        offset = 0
        while True:
            remaining -= _fill(rest, read, min(sizes.most - len(rest), remaining))
            length = next_cut(rest, sizes)
            with memoryview(rest) as view:
                yield offset, bytes(view[:length])
            del rest[:length]
            offset += length
            if offset == size:
                return

    def flush(self) -> None:
        """Let other processes know what was stored."""
        self._index.flush()

    def _whole(self, data: Buffer) -> Content:
        if not data:
            return self.empty()
        return Content(len(data), self._object(data, Suffix.PLAIN), (), self.codec.compression)

    def empty(self) -> Content:
        """The content of no bytes: one object that all repositories share, compressed whatever the codec."""
        return store_empty(self._store, self.codec.algorithm)

    def _object(self, data: Buffer, suffix: Suffix) -> Hash:
        return self._objects([data], suffix)[0]

    def _objects(self, contents: Sequence[Buffer], suffix: Suffix) -> list[Hash]:
        """The names of the objects that hold *contents*, which are stored if they are not there."""
        keys = [hashlib.sha256(data).digest() + self._kinds[suffix] for data in contents]
        known = self._index.find(keys)
        sound: dict[bytes, Hash] = {}
        new: dict[bytes, _Stored] = {}
        for key, data in zip(keys, contents, strict=True):
            if key in sound:
                continue
            there = known.get(key)
            if there is not None and self._store.claim(there.hash, suffix, stored_bytes=there.stored_bytes):
                sound[key] = there.hash
                continue
            made = self._made(data, suffix)
            sound[key], new[key] = made.hash, made
        self._index.remember(new)
        return [sound[key] for key in keys]

    def _made(self, data: Buffer, suffix: Suffix) -> _Stored:
        codec = self.codec
        stored: Buffer = data
        if codec.compression is Compression.ZLIB:
            stored = deflate(data, level=codec.level, encoder=codec.encoder)
        name = Hash.of(stored, codec.algorithm)
        self._store.put(name, suffix, stored)
        return _Stored(name, len(stored))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._index.flush()


def store_empty(writer: ObjectWriter, algorithm: Algorithm) -> Content:
    """Put the object of no bytes into a store."""
    name = Hash.of(EMPTY_OBJECT, algorithm)
    writer.put(name, Suffix.PLAIN, EMPTY_OBJECT)
    return Content(0, name)


def _fill(rest: bytearray, read: Callable[[int], bytes], count: int) -> int:
    """Append *count* bytes of *read* to *rest*; gives *count*."""
    missing = count
    while missing:
        part = read(min(missing, _READ_BYTES))
        if not part:
            raise FsError(f"a file ended {missing} bytes before its stated size")
        if len(part) > missing:
            raise RefusedError("a file gave more bytes than it was asked for")
        rest += part
        missing -= len(part)
    return count
