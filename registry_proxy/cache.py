"""What the proxy keeps: files named by digest, and an SQLite database that says what they are and who may have them.

Layout of the directory:

* ``content/<algorithm>/<first two digits>/<digits>``: complete and verified, or it is not there.
* ``partial/<algorithm>-<digits>``: being fetched, or left by a download that broke off; the next one goes on there.
* ``cache.db``: sizes, types, last uses; which repository was seen to have which digest; which tag names which digest.
* ``lock``: held while a process uses the directory.

Everything here blocks, and may be called from several threads.
"""

import fcntl
import hashlib
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from fs.runtime.files import sync_directory, write_atomically
from registry_proxy.errors import CacheError, CacheLockedError, DigestSyntaxError
from registry_proxy.oci.digest import Digest

_RESERVE_BYTES = 64 << 20  # of the file system, never filled by blobs
_PARTIAL_AGE_S = 7 * 86400.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS contents (
    digest TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, media_type TEXT, used_unix_s REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS contents_by_use ON contents (used_unix_s);
CREATE TABLE IF NOT EXISTS links (
    upstream TEXT NOT NULL, repository TEXT NOT NULL, digest TEXT NOT NULL,
    PRIMARY KEY (upstream, repository, digest)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tags (
    upstream TEXT NOT NULL, repository TEXT NOT NULL, tag TEXT NOT NULL,
    digest TEXT NOT NULL, checked_unix_s REAL NOT NULL,
    PRIMARY KEY (upstream, repository, tag)
) WITHOUT ROWID;
"""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Place:
    """A repository of an upstream, by the upstream's canonical registry name."""

    upstream: str
    repository: str


@dataclass(frozen=True, slots=True)
class Content:
    """Something complete: how large, and for manifests of which type."""

    digest: Digest
    size_bytes: int
    media_type: str | None


@dataclass(frozen=True, slots=True)
class Tag:
    """What a tag named when its upstream was asked last."""

    digest: Digest
    checked_unix_s: float


class Cache:
    """One directory; see the module's text."""

    def __init__(
        self, directory: Path, *, max_bytes: int, low_mark: float, now: Callable[[], float] = time.time
    ) -> None:
        """Open the cache, making the directory if needed, and bring files and database into agreement.

        Raises:
            CacheError: the directory cannot be used, or another process uses it.
        """
        self._directory = directory
        self._max_bytes = max_bytes
        self._low_bytes = int(max_bytes * low_mark)
        self._now = now
        self._guard = threading.RLock()
        self._used: dict[str, float] = {}  # last uses that are not in the database yet
        self._trusted: set[Digest] = set()  # hashed by this process
        try:
            for folder in (directory, directory / "content", directory / "partial"):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _lock(directory / "lock")
        except OSError as error:
            raise CacheError(f"the cache directory {directory} cannot be used: {error.strerror}") from error
        self._database = sqlite3.connect(directory / "cache.db", check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.executescript(_SCHEMA)
        self._recover()
        self.total_bytes = self._one("SELECT coalesce(sum(size_bytes), 0) FROM contents") or 0

    def close(self) -> None:
        """Write what is not written yet, and let the directory go."""
        with self._guard:
            self._write_uses()
            self._database.close()
            os.close(self._lock)

    def content(self, digest: Digest) -> Content | None:
        """What is known of *digest* if it is complete here; counts as a use."""
        with self._guard:
            row = self._database.execute(
                "SELECT size_bytes, media_type FROM contents WHERE digest = ?", (str(digest),)
            ).fetchone()
            if row is None:
                return None
            self._used[str(digest)] = self._now()
            return Content(digest, row[0], row[1])

    def open(self, digest: Digest) -> int | None:
        """A descriptor to read the content from, which the caller closes; None if it is not here.

        The first time in a process the file is hashed: disks and people change files, too. What differs is removed.
        """
        try:
            descriptor = os.open(self._path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self.drop(digest)
            return None
        if digest in self._trusted:
            return descriptor
        try:
            is_right = _hash_of(descriptor, digest) == digest.hex
        except OSError:
            is_right = False
        if not is_right:
            os.close(descriptor)
            _log.error("content_corrupt", digest=str(digest))
            self.drop(digest)
            return None
        self._trusted.add(digest)
        return descriptor

    def read(self, digest: Digest) -> bytes | None:
        """A small content as a whole, verified; None if it is not here."""
        try:
            body = self._path(digest).read_bytes()
        except OSError:
            self.drop(digest)
            return None
        if digest.matches(body):
            return body
        _log.error("content_corrupt", digest=str(digest))
        self.drop(digest)
        return None

    def put(self, digest: Digest, body: bytes, media_type: str) -> None:
        """Keep a manifest, whose digest the caller has verified.

        Raises:
            OSError: it cannot be written.
        """
        path = self._path(digest)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, body, mode=0o600)
        self._add(digest, len(body), media_type)

    def adopt(self, digest: Digest, size_bytes: int) -> None:
        """Turn the partial file of a blob, which the caller has verified and synced, into its content.

        Raises:
            OSError: it cannot be renamed.
        """
        path = self._path(digest)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.partial_path(digest).rename(path)
        sync_directory(path.parent)
        self._add(digest, size_bytes, None)

    def drop(self, digest: Digest) -> None:
        """Forget a content and remove its file; nothing happens if it is not there."""
        with self._guard:
            size = self._one("SELECT size_bytes FROM contents WHERE digest = ?", str(digest))
            self._database.execute("DELETE FROM contents WHERE digest = ?", (str(digest),))
            self._used.pop(str(digest), None)
            self._trusted.discard(digest)
            self.total_bytes -= size or 0
            self._path(digest).unlink(missing_ok=True)

    def partial_path(self, digest: Digest) -> Path:
        """Where a download of *digest* writes."""
        return self._directory / "partial" / f"{digest.algorithm}-{digest.hex}"

    def has_room(self, size_bytes: int) -> bool:
        """True if a blob of *size_bytes* can be stored: it fits into the cache, and onto the disk with some left."""
        return size_bytes <= self._max_bytes and shutil.disk_usage(self._directory).free - size_bytes > _RESERVE_BYTES

    def evict(self) -> int:
        """Remove the least recently used if the cache is over its size, blobs before manifests; gives how many.

        Files that are being read stay readable for those who have them open.
        """
        with self._guard:
            if self.total_bytes <= self._max_bytes:
                return 0
            self._write_uses()
            rows = self._database.execute(
                "SELECT digest, size_bytes FROM contents ORDER BY media_type IS NOT NULL, used_unix_s"
            )
            victims: list[Digest] = []
            left_bytes = self.total_bytes
            for text, size in rows:
                if left_bytes <= self._low_bytes:
                    break
                victims.append(Digest.parse(text))
                left_bytes -= size
            rows.close()
            for digest in victims:
                self.drop(digest)
            return len(victims)

    def link(self, place: Place, digests: Iterable[Digest]) -> None:
        """Remember that *place* has *digests*: its upstream said so, or a manifest from there names them."""
        with self._transaction():
            self._database.executemany(
                "INSERT OR IGNORE INTO links VALUES (?, ?, ?)",
                [(place.upstream, place.repository, str(digest)) for digest in digests],
            )

    def is_linked(self, place: Place, digest: Digest) -> bool:
        """True if *place* is known to have *digest*, so that it may be given through it without asking."""
        with self._guard:
            return bool(
                self._one(
                    "SELECT 1 FROM links WHERE upstream = ? AND repository = ? AND digest = ?",
                    place.upstream,
                    place.repository,
                    str(digest),
                )
            )

    def tag(self, place: Place, tag: str) -> Tag | None:
        """What *tag* named last; None if that is not known."""
        with self._guard:
            row = self._database.execute(
                "SELECT digest, checked_unix_s FROM tags WHERE upstream = ? AND repository = ? AND tag = ?",
                (place.upstream, place.repository, tag),
            ).fetchone()
            return None if row is None else Tag(Digest.parse(row[0]), row[1])

    def set_tag(self, place: Place, tag: str, digest: Digest) -> None:
        """*tag* names *digest* now."""
        with self._transaction():
            self._database.execute(
                "INSERT OR REPLACE INTO tags VALUES (?, ?, ?, ?, ?)",
                (place.upstream, place.repository, tag, str(digest), self._now()),
            )

    def drop_tag(self, place: Place, tag: str) -> None:
        """*tag* is gone."""
        with self._transaction():
            self._database.execute(
                "DELETE FROM tags WHERE upstream = ? AND repository = ? AND tag = ?",
                (place.upstream, place.repository, tag),
            )

    def _add(self, digest: Digest, size_bytes: int, media_type: str | None) -> None:
        with self._transaction():
            before = self._one("SELECT size_bytes FROM contents WHERE digest = ?", str(digest))
            self._database.execute(
                "INSERT OR REPLACE INTO contents VALUES (?, ?, ?, ?)",
                (str(digest), size_bytes, media_type, self._now()),
            )
            self.total_bytes += size_bytes - (before or 0)
            self._trusted.add(digest)

    def _path(self, digest: Digest) -> Path:
        return self._directory / "content" / digest.algorithm / digest.hex[:2] / digest.hex

    def _one(self, query: str, *values: str) -> int | None:
        row: tuple[int] | None = self._database.execute(query, values).fetchone()
        return None if row is None else row[0]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._guard:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def _write_uses(self) -> None:
        with self._transaction():
            self._database.executemany(
                "UPDATE contents SET used_unix_s = ? WHERE digest = ?",
                [(when, name) for name, when in self._used.items()],
            )
        self._used.clear()

    def _recover(self) -> None:
        """Rows without a file go; files without a row are hashed and adopted or removed; so are old partial files.

        A stray manifest is adopted as a blob without a type; it is fetched again when it is asked for as a manifest.
        """
        rows = self._database.execute("SELECT digest, size_bytes FROM contents").fetchall()
        known = {self._path(Digest.parse(text)): (text, size) for text, size in rows}
        for path, (text, size) in known.items():
            if not path.is_file() or path.stat().st_size != size:
                path.unlink(missing_ok=True)
                self._database.execute("DELETE FROM contents WHERE digest = ?", (text,))
        for path in (self._directory / "content").glob("*/*/*"):
            if path not in known:
                self._adopt_stray(path)
        for path in (self._directory / "partial").iterdir():
            if path.stat().st_mtime < self._now() - _PARTIAL_AGE_S:
                path.unlink()

    def _adopt_stray(self, path: Path) -> None:
        with suppress(OSError, DigestSyntaxError):
            digest = Digest.parse(f"{path.parents[1].name}:{path.name}")
            size = path.stat().st_size
            with path.open("rb") as stream:
                is_right = digest.is_verifiable and _hash_of(stream.fileno(), digest) == digest.hex
            if is_right and path == self._path(digest):
                self._database.execute(
                    "INSERT OR REPLACE INTO contents VALUES (?, ?, NULL, ?)", (str(digest), size, path.stat().st_mtime)
                )
                return
        path.unlink(missing_ok=True)


def _hash_of(descriptor: int, digest: Digest) -> str:
    # a duplicate: the file object closes its own
    with os.fdopen(os.dup(descriptor), "rb", buffering=0) as stream:
        stream.seek(0)
        return hashlib.file_digest(stream, digest.algorithm).hexdigest()


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise CacheLockedError(f"another proxy uses the cache directory {path.parent}") from error
    return descriptor
