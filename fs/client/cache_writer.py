"""Writing one object into the cache, piece by piece."""

import os
from types import TracebackType
from typing import Protocol, Self

from fs.client.object_file import Checksums
from fs.errors import FsError


class CacheFullError(FsError):
    """The cache cannot take an object now (disk full, read-only, failing); it has to be served past it."""


class Place(Protocol):
    """Where finished files go."""

    def adopt(self, text: str, temporary: str, file_bytes: int) -> None:
        """Put the finished file *temporary* in its place. Raises OSError."""

    def full(self, error: OSError) -> CacheFullError:
        """The error to raise for a write that failed."""


class CacheWriter:
    """An object on its way into the cache: write, then commit; leaving the context without commit removes it."""

    def __init__(self, cache: Place, name: str, path: str, descriptor: int) -> None:
        self._cache = cache
        self._name = name
        self._path = path
        self._descriptor = descriptor
        self._checksums = Checksums()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            os.unlink(self._path)  # noqa: PTH108  # one system call

    @property
    def size_bytes(self) -> int:
        """What was written so far."""
        return self._checksums.size_bytes

    def restart(self) -> None:
        """Forget what was written."""
        if not self._checksums.size_bytes:
            return
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._checksums = Checksums()

    def write(self, piece: bytes) -> None:
        """The next bytes of the uncompressed object. May run in a worker thread. Raises OSError."""
        self._checksums.update(piece)
        self._write(piece)

    def _write(self, piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def commit(self) -> None:
        """Everything was written and verified: the object is in the cache from now on. Raises CacheFullError."""
        size = self._checksums.size_bytes
        trailer = self._checksums.trailer(self._name)
        try:
            self._write(trailer)
            self._cache.adopt(self._name, self._path, size + len(trailer))
        except OSError as error:
            raise self._cache.full(error) from error
        os.close(self._descriptor)
        self._descriptor = -1
