"""Trees that somebody uses: what was read below them is not removed from the cache to make room.

A pin has an owner, who can list and replace what is his, and the path of a directory. It holds the objects and catalogs
that were used below that path while it was there, so it costs nothing beforehand and fetches nothing; their names are
appended to ``<hash of owner and path>`` in a directory of the mount, of which the first line is the pin itself. That
is not synced: after a power cut a pin may hold less, and the rest again when it is used. Pins are kept until they are
taken away, whatever ends in between. All of it belongs to one event loop.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import structlog

from fs.client.cache import ObjectCache
from fs.errors import FsError, MalformedError, RefusedError
from fs.format.hashes import Hash

_log = structlog.get_logger()

_MOST = 10_000
_OWNER_LIMIT = 200


@dataclass(slots=True, eq=False)
class Pin:
    """A tree in use, and what was read of it since this daemon began."""

    owner: str
    path: bytes
    file: Path
    objects: set[str] = field(default_factory=set)
    files_read: int = 0
    bytes_read: int = 0
    journal: IO[str] | None = None


class Pins:
    """The pins of one mount.

    Args:
        cache: started.
        folder: where they are kept; of this mount alone.
    """

    def __init__(self, cache: ObjectCache, folder: Path | None = None) -> None:
        self._cache = cache
        self._folder = folder or cache.directory / "pins"
        self._pins: dict[tuple[str, bytes], Pin] = {}
        self._by_path: dict[bytes, list[Pin]] = {}
        self._depths: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self._pins)

    def load(self, folder: Path | None = None) -> None:
        """Take over what an earlier life has kept, in *folder* from now on. Blocks for the disk."""
        self._folder = folder or self._folder
        try:
            files = sorted(self._folder.iterdir())
        except FileNotFoundError:
            return
        for file in files:
            try:
                head, *names = file.read_text("ascii").split("\n")
                document = json.loads(head)
                pin = Pin(str(document["owner"]), os.fsencode(str(document["path"])), file)
                self._enter(pin)
            except (OSError, ValueError, KeyError, TypeError) as error:
                _log.warning("pin_unreadable", path=str(file), reason=str(error))
                continue
            for name in names[:-1]:  # behind the last line break is what a kill has cut off, or nothing
                self._hold(pin, name)

    def add(self, owner: str, path: bytes) -> Pin:
        """Pin *path* for *owner*; nothing changes if it is.

        Raises:
            MalformedError: not a path, or not a name for an owner.
            RefusedError: too many pins, or the disk does not take it.
        """
        known = self._pins.get((owner, path))
        if known is not None:
            return known
        if not path.startswith(b"/") or path.endswith(b"/") or not 0 < len(owner) <= _OWNER_LIMIT:
            raise MalformedError("a pin needs an owner and an absolute path without a slash at the end")
        if len(self._pins) >= _MOST:
            raise RefusedError(f"there are {_MOST} pins already")
        name = hashlib.blake2b(owner.encode() + b"\0" + path, digest_size=16).hexdigest()
        pin = Pin(owner, path, self._folder / name)
        head = json.dumps({"owner": owner, "path": os.fsdecode(path)})
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            pin.file.write_text(head + "\n", "ascii")
        except OSError as error:
            raise RefusedError(f"a pin cannot be kept: {error.strerror}") from error
        self._enter(pin)
        return pin

    def _enter(self, pin: Pin) -> None:
        self._pins[pin.owner, pin.path] = pin
        self._by_path.setdefault(pin.path, []).append(pin)
        self._measure()

    def _measure(self) -> None:
        self._depths = tuple(sorted({path.count(b"/") for path in self._by_path}))

    def remove(self, owner: str, path: bytes) -> bool:
        """Take a pin away; false if there is none."""
        pin = self._pins.pop((owner, path), None)
        if pin is None:
            return False
        self._by_path[path].remove(pin)
        if not self._by_path[path]:
            del self._by_path[path]
        self._measure()
        if pin.journal is not None:
            pin.journal.close()
        pin.file.unlink(missing_ok=True)
        for name in pin.objects:
            self._cache.release(name)
        return True

    def replace(self, owner: str, paths: Iterable[bytes]) -> list[Pin]:
        """Have *owner* pin exactly *paths*. Raises as ``add``."""
        wanted = set(paths)
        for pin in self.all():
            if pin.owner == owner and pin.path not in wanted:
                self.remove(owner, pin.path)
        return [self.add(owner, path) for path in sorted(wanted)]

    def all(self) -> list[Pin]:
        """All pins, as they are now."""
        return list(self._pins.values())

    def over(self, path: bytes) -> list[Pin]:
        """The pins at or above *path*."""
        found: list[Pin] = []
        parts = path.split(b"/")
        for depth in self._depths:
            if depth < len(parts):
                found += self._by_path.get(b"/".join(parts[: depth + 1]), ())
        return found

    def used(self, pin: Pin, objects: Iterable[Hash]) -> None:
        """*objects* are used below *pin*."""
        for name in objects:
            text = str(name)
            if text not in pin.objects:
                self._hold(pin, text)
                self._write(pin, text)

    def _hold(self, pin: Pin, name: str) -> None:
        try:
            Hash.parse(name)
        except FsError:
            return
        if name not in pin.objects:
            pin.objects.add(name)
            self._cache.hold(name)

    def _write(self, pin: Pin, name: str) -> None:
        try:
            if pin.journal is None:
                pin.journal = pin.file.open("a", encoding="ascii", buffering=1)
            pin.journal.write(name + "\n")
        except OSError as error:
            _log.debug("pin_not_written", path=str(pin.file), reason=error.strerror)

    def close(self) -> None:
        """Close all files; the pins stay for the next life."""
        for pin in self._pins.values():
            if pin.journal is not None:
                pin.journal.close()
                pin.journal = None
