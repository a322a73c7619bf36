"""From what a user calls the storage to the store, and to the writer's private folder."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fs.errors import RefusedError
from fs.store.base import TendedStore
from fs.store.local import LocalStore
from fs.store.s3_place import S3Place

_SYSTEM_STATE = Path("/var/lib/unpackd")
_UNSAFE = re.compile(r"[^A-Za-z0-9.-]+")


@dataclass(frozen=True, slots=True)
class Storage:
    """An opened storage."""

    shown: str  # for people
    store: TendedStore
    private: Path  # lock, index of contents and the like: never served, never shared with other machines

    def prepare(self) -> None:
        """Make, or check, what a writer needs."""
        self.store.prepare()
        self.private.mkdir(mode=0o700, parents=True, exist_ok=True)


def open_storage(storage: str, *, durable: bool = True) -> Storage:
    """The storage that *storage* names: a directory, ``file:///…`` or ``s3://bucket/prefix?endpoint=…&region=…``.

    Args:
        storage: as users write it.
        durable: of directories: sync to disk.

    Raises:
        RefusedError: it is none of these.
    """
    scheme = urlsplit(storage).scheme if "://" in storage else ""
    match scheme:
        case "":
            store = LocalStore(Path(storage), durable=durable)
        case "file":
            store = LocalStore(Path(unquote(urlsplit(storage).path)), durable=durable)
        case "s3":
            return _open_s3(S3Place.parse(storage))
        case _:
            raise RefusedError(f"{storage}: a storage is a directory or s3://BUCKET/PREFIX, not {scheme}://")
    return Storage(str(store.root), store, store.private)


def _open_s3(place: S3Place) -> Storage:
    try:
        from fs.store.s3 import S3Store  # noqa: PLC0415  # an optional dependency that takes a while to load
    except ModuleNotFoundError as error:
        raise RefusedError(f"storage in S3 needs the package {error.name}: pip install 'unpackd[s3]'") from error
    return Storage(place.shown, S3Store(place), state_folder() / "storage" / _folder_name(place))


def state_folder() -> Path:
    """Where this machine keeps what belongs to storages elsewhere."""
    chosen = os.environ.get("XDG_STATE_HOME")
    if chosen:
        return Path(chosen) / "unpackd"
    return _SYSTEM_STATE if os.geteuid() == 0 else Path.home() / ".local/state/unpackd"


def _folder_name(place: S3Place) -> str:
    """Readable and unique: the same bucket name may be at several servers."""
    exact = "\0".join((place.endpoint or "", place.bucket, place.prefix))
    readable = _UNSAFE.sub("-", f"{place.bucket}-{place.prefix}".strip("-"))[:60]
    return f"{readable}-{hashlib.sha256(exact.encode()).hexdigest()[:12]}"
