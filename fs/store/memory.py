"""A store in memory, for tests and for trying things out."""

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from fs.errors import AbsentError, CorruptError, OvertakenError, RefusedError
from fs.format.hashes import Hash, Suffix
from fs.store.base import Buffer, StoredObject
from fs.store.names import parse_object_path


class MemoryStore:
    """A Store that lives as long as the process."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._objects: dict[str, bytes] = {}
        self._modified: dict[str, float] = {}
        self._named: dict[str, bytes] = {}

    def prepare(self) -> None:
        """See TendedStore.prepare; there is nothing to do."""

    def get(self, name: Hash, suffix: Suffix, *, limit_bytes: int) -> bytes:
        """See ObjectReader.get."""
        stored = self._stored(name, suffix)
        if len(stored) > limit_bytes:
            raise RefusedError(f"object {name}{suffix.value} is larger than {limit_bytes} bytes")
        if Hash.of(stored, name.algorithm) != name:
            raise CorruptError(str(name))
        return stored

    def has(self, name: Hash, suffix: Suffix, *, stored_bytes: int | None = None) -> bool:
        """See ObjectReader.has."""
        stored = self._objects.get(name.object_path(suffix))
        return stored is not None and stored_bytes in (None, len(stored))

    def open(self, name: Hash, suffix: Suffix) -> BinaryIO:
        """See ObjectReader.open."""
        return io.BytesIO(self._stored(name, suffix))

    def put(self, name: Hash, suffix: Suffix, stored: Buffer) -> bool:
        """See ObjectWriter.put."""
        with self._lock:
            path = name.object_path(suffix)
            self._modified[path] = self._clock()
            if path in self._objects:
                return False
            self._objects[path] = bytes(stored)
            return True

    def claim(self, name: Hash, suffix: Suffix, *, stored_bytes: int | None = None) -> bool:
        """See ObjectWriter.claim."""
        with self._lock:
            is_there = self.has(name, suffix, stored_bytes=stored_bytes)
            if is_there:
                self._modified[name.object_path(suffix)] = self._clock()
            return is_there

    def settle(self) -> None:
        """See ObjectWriter.settle; memory survives nothing."""

    def read_named(self, name: str, *, limit_bytes: int) -> bytes:
        """See NamedFiles.read_named."""
        content = self._named.get(name)
        if content is None:
            raise AbsentError(f"there is no {name} in the store")
        if len(content) > limit_bytes:
            raise RefusedError(f"{name} is larger than {limit_bytes} bytes")
        return content

    def replace_named(self, name: str, content: bytes) -> None:
        """See NamedFiles.replace_named."""
        self._named[name] = content

    def swap_named(self, name: str, content: bytes, *, expected: bytes | None) -> None:
        """See NamedFiles.swap_named."""
        with self._lock:
            if self._named.get(name) != expected:
                raise OvertakenError(f"{name} was replaced by another writer")
            self._named[name] = content

    def remove_named(self, name: str) -> None:
        """See NamedFiles.remove_named."""
        self._named.pop(name, None)

    def objects(self) -> Iterator[StoredObject]:
        """See ObjectReaper.objects."""
        for path in list(self._objects):
            parsed = parse_object_path(path)
            found = self.describe(*parsed) if parsed is not None else None
            if found is not None:
                yield found

    def describe(self, name: Hash, suffix: Suffix) -> StoredObject | None:
        """See ObjectReaper.describe."""
        path = name.object_path(suffix)
        with self._lock:
            if path not in self._objects:
                return None
            return StoredObject(name, suffix, len(self._objects[path]), self._modified[path])

    def survey(self, objects: Sequence[StoredObject]) -> list[StoredObject | None]:
        """See ObjectReaper.survey."""
        return [self.describe(each.name, each.suffix) for each in objects]

    def now_unix_s(self) -> float:
        """See ObjectReaper.now_unix_s."""
        return self._clock()

    def remove(self, objects: Sequence[StoredObject]) -> None:
        """See ObjectReaper.remove."""
        with self._lock:
            for each in objects:
                self._objects.pop(each.name.object_path(each.suffix), None)

    def remove_leftovers(self, before_unix_s: float) -> int:  # noqa: ARG002  # the Protocol's
        """See ObjectReaper.remove_leftovers; there are none."""
        return 0

    def _stored(self, name: Hash, suffix: Suffix) -> bytes:
        stored = self._objects.get(name.object_path(suffix))
        if stored is None:
            raise AbsentError(f"object {name}{suffix.value} is not in the store")
        return stored
