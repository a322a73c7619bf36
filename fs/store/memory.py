"""A store in memory, for tests and for trying things out."""

import io
import threading
from typing import BinaryIO

from fs.errors import AbsentError, CorruptError, RefusedError
from fs.format.hashes import Hash, Suffix
from fs.store.base import Buffer


class MemoryStore:
    """A Store that lives as long as the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[str, bytes] = {}
        self._named: dict[str, bytes] = {}

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
            if path in self._objects:
                return False
            self._objects[path] = bytes(stored)
            return True

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

    def _stored(self, name: Hash, suffix: Suffix) -> bytes:
        stored = self._objects.get(name.object_path(suffix))
        if stored is None:
            raise AbsentError(f"object {name}{suffix.value} is not in the store")
        return stored
