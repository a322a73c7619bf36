"""Contents become objects: hash, compress, store once.

An object's name is the hash of its *compressed* bytes, so deduplication by name would depend on the encoder. The writer
therefore keeps an index from the plain content to the object that holds it; a hit also saves the compression. The index
may be lost or stale: an object is only referred to after it was seen in the store with its length, and claimed there.
"""

import hashlib
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import structlog

from fs.errors import RefusedError
from fs.format.chunking import DEFAULT_SIZES, ChunkSizes
from fs.format.compression import FAST_LEVEL, Compression, Encoder, deflate
from fs.format.hashes import Algorithm, Hash, Suffix
from fs.store.base import Buffer, ObjectWriter

_REMEMBERED_AT_ONCE = 512
_BUSY_S = 5.0
_SELECT = "SELECT key, hash, algorithm, stored_bytes FROM contents WHERE key IN ({})"
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


class Packing(Protocol):
    """Whatever makes objects of contents. Thread-safe."""

    @property
    def codec(self) -> Codec:
        """How they are stored."""
        ...

    def objects(self, contents: Sequence[Buffer], suffix: Suffix) -> list[Hash]:
        """The names of the objects that hold *contents*, which are stored if they are not there."""
        ...

    def flush(self) -> None:
        """Let other processes know what was stored."""
        ...

    def close(self) -> None:
        """Give back what it holds; it is not to be used any more."""
        ...


class Packer:
    """Makes objects in the thread that asks for them."""

    def __init__(self, store: ObjectWriter, index: DedupIndex, codec: Codec) -> None:
        self.store = store
        self._index = index
        self.codec = codec
        kind = f"{codec.compression.value}{codec.algorithm.value}"
        self._kinds = {suffix: f"{kind}{suffix.value}".encode() for suffix in Suffix}

    def objects(self, contents: Sequence[Buffer], suffix: Suffix) -> list[Hash]:
        """See Packing."""
        keys = [hashlib.sha256(data).digest() + self._kinds[suffix] for data in contents]
        known = self._index.find(keys)
        sound: dict[bytes, Hash] = {}
        new: dict[bytes, _Stored] = {}
        for key, data in zip(keys, contents, strict=True):
            if key in sound:
                continue
            there = known.get(key)
            if there is not None and self.store.claim(there.hash, suffix, stored_bytes=there.stored_bytes):
                sound[key] = there.hash
                continue
            made = self._made(data, suffix)
            sound[key], new[key] = made.hash, made
        self._index.remember(new)
        return [sound[key] for key in keys]

    def flush(self) -> None:
        """See Packing."""
        self._index.flush()

    def close(self) -> None:
        """See Packing."""
        self._index.close()

    def _made(self, data: Buffer, suffix: Suffix) -> _Stored:
        stored: Buffer = data
        if self.codec.compression is Compression.ZLIB:
            stored = deflate(data, level=self.codec.level, encoder=self.codec.encoder)
        name = Hash.of(stored, self.codec.algorithm)
        self.store.put(name, suffix, stored)
        return _Stored(name, len(stored))
