"""Objects on arrival: hashed as stored, decompressed, measured, and only then believed."""

from dataclasses import dataclass
from typing import Protocol

import anyio.to_thread

from fs.errors import CorruptError, FsError, RefusedError
from fs.format.compression import Compression, Inflater
from fs.format.hashes import Hash, Suffix
from fs.store.reading import Part, Request

_BATCH_BYTES = 1 << 18
"""As much is hashed and decompressed at once; a thread is not worth the trouble for less."""

_STORED_SLACK_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """An object and what a catalog says about it."""

    hash: Hash
    suffix: Suffix = Suffix.PLAIN
    compression: Compression = Compression.ZLIB
    size: int | None = None  # uncompressed bytes; None if nobody knows
    limit_bytes: int = 4 << 30  # of the uncompressed bytes where the size is not known
    external: str | None = None  # percent-encoded path of an external file that holds it
    part: Part | None = None  # of that file

    def request(self) -> Request:
        """What to ask a reader for."""
        if self.external is not None:
            return Request(self.external, self.part)
        return Request(self.hash.object_path(self.suffix))


class Sink(Protocol):
    """Where the uncompressed bytes go. ``write`` may be called from a worker thread."""

    def restart(self) -> None:
        """Forget what was written."""

    def write(self, piece: bytes) -> None:
        """The next bytes. May raise OSError."""


class SinkFailedError(FsError):
    """The sink did not take a piece: nothing that another server could do better."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class WindowSink:
    """Keeps one part of an object in memory; the rest only passes by to be verified."""

    def __init__(self, offset: int, size: int) -> None:
        self._offset = offset
        self._size = size
        self._position = 0
        self._kept = bytearray()

    @property
    def content(self) -> bytes:
        """The part that was kept."""
        return bytes(self._kept)

    def restart(self) -> None:
        """See Sink.restart."""
        self._position = 0
        self._kept.clear()

    def write(self, piece: bytes) -> None:
        """See Sink.write."""
        start = max(0, self._offset - self._position)
        self._kept += piece[start : max(start, self._offset + self._size - self._position)]
        self._position += len(piece)


class MemorySink:
    """Keeps a whole small object."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    @property
    def content(self) -> bytes:
        """Everything that was written."""
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def restart(self) -> None:
        """See Sink.restart."""
        self._parts.clear()

    def write(self, piece: bytes) -> None:
        """See Sink.write."""
        self._parts.append(piece)


class ObjectReceiver:
    """A Receiver that verifies one object and passes its uncompressed bytes on."""

    def __init__(self, ref: ObjectRef, sink: Sink) -> None:
        self._ref = ref
        self._sink = sink
        self._name = str(ref.hash) + ref.suffix.value
        most = ref.limit_bytes if ref.size is None else ref.size
        self._limit_bytes = most
        self._stored_limit_bytes = most + most // 64 + _STORED_SLACK_BYTES  # what zlib adds to hopeless data at most
        self.begin()

    @property
    def stored_bytes(self) -> int:
        """How much came in the last attempt."""
        return self._stored_bytes

    def begin(self) -> None:
        """See Receiver.begin."""
        self._hasher = self._ref.hash.algorithm.hasher()
        self._inflater = Inflater(self._name) if self._ref.compression is Compression.ZLIB else None
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._stored_bytes = 0
        self._plain_bytes = 0
        self._sink.restart()

    async def feed(self, piece: bytes) -> None:
        """See Receiver.feed."""
        self._pending.append(piece)
        self._pending_bytes += len(piece)
        self._stored_bytes += len(piece)
        if self._stored_bytes > self._stored_limit_bytes:
            raise CorruptError(self._name, f"it goes on after {self._stored_limit_bytes} bytes")
        if self._pending_bytes >= _BATCH_BYTES:
            await anyio.to_thread.run_sync(self._digest, self._take())

    async def finish(self) -> None:
        """See Receiver.finish."""
        self._digest(self._take())
        if Hash.finish(self._hasher, self._ref.hash.algorithm) != self._ref.hash:
            raise CorruptError(self._name)
        if self._inflater is not None:
            self._inflater.finish()
        if self._ref.size is not None and self._plain_bytes != self._ref.size:
            raise CorruptError(self._name, f"it has {self._plain_bytes} bytes; the catalog says {self._ref.size}")

    def _take(self) -> bytes:
        data = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        return data

    def _digest(self, stored: bytes) -> None:
        self._hasher.update(stored)
        for piece in (stored,) if self._inflater is None else self._inflater.feed(stored):
            self._plain_bytes += len(piece)
            if self._plain_bytes > self._limit_bytes:
                self._refuse_length()
            try:
                self._sink.write(piece)
            except OSError as error:
                raise SinkFailedError(error) from error

    def _refuse_length(self) -> None:
        if self._ref.size is None:
            raise RefusedError(f"object {self._name} decompresses to more than {self._limit_bytes} bytes")
        raise CorruptError(self._name, f"it is longer than the {self._ref.size} bytes that the catalog says")
