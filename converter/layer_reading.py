"""One pass over a layer's blob: unpack, verify the DiffID, parse, store the files, and note what the layer changes.

Three things go on at once, because unpacking, hashing, compressing and writing all leave Python's lock alone: the
calling thread unpacks and hashes the tar, a second one parses it, and a third and a fourth store the small files, in
batches. What is on the way between them is bounded.
"""

import queue
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, Self

from converter.changeset import ChangeSet, ChangeSetBuilder
from converter.errors import CorruptLayerError, LimitError
from converter.layer_streams import unpacked
from converter.layer_tar import TarReader
from converter.limits import Limits
from fs.format.tree import Content
from registry_proxy.oci.digest import Digest

_WHOLE_BYTES = 1 << 20
"""Files up to this size are handed on in one piece, larger ones as a stream."""

_PIECES_AHEAD = 4  # of the tar, up to a MiB each
_BATCH_BYTES, _BATCH_FILES = 1 << 20, 256
_BATCHES_AHEAD = 4
_STORING_THREADS = 2


class ContentStore(Protocol):
    """Where the files' bytes go: the publisher's ingester."""

    def add_many(self, files: Sequence[bytes]) -> list[Content]:
        """Store whole files."""
        ...

    def add_stream(self, read: Callable[[int], bytes], size: int) -> Content:
        """Store a file of *size* bytes that *read* gives piece by piece."""
        ...


def read_layer(  # noqa: PLR0913  # the collaborators of one pass, all by name
    blob: Iterable[bytes],
    *,
    packing: str | None,
    diff_id: Digest,
    store: ContentStore,
    limits: Limits,
    report: Callable[[int], None] = lambda _: None,
) -> ChangeSet:
    """Store the files of a layer and give its change set.

    Nothing refers to what was stored until the change set is published, so that a layer that turns out to be wrong
    leaves nothing that can be seen.

    Args:
        blob: the layer as the registry has it; whoever gives it has verified its digest when it ends.
        packing: how it is packed by its media type, see ``layer_streams``; None if that is not said.
        diff_id: what the image's config says is the digest of the tar.
        store: takes the files' bytes.
        limits: what the layer may cost.
        report: called with the number of entries since the last call.

    Raises:
        LayerError: an entry cannot be part of a file tree.
        LimitError: a limit is exceeded.
        CorruptLayerError: the stream is broken, or is not what *diff_id* says.
    """
    tar = _VerifiedStream(blob, packing, diff_id, limits)
    ahead = _Ahead()
    with ThreadPoolExecutor(1, "parsing") as parsing:
        parsed = parsing.submit(_parse, ahead, store, limits, report)
        ahead.feed(tar.next_piece)
        builder = parsed.result()
    tar.verify()
    return builder.finish(diff_id=str(diff_id), unpacked_bytes=tar.unpacked_bytes)


def _parse(ahead: "_Ahead", store: ContentStore, limits: Limits, report: Callable[[int], None]) -> ChangeSetBuilder:
    """Read the tar that comes through *ahead* to its end. Raises as ``read_layer``, and what *ahead* was fed with."""
    reader = TarReader(ahead.take, limits)
    builder = ChangeSetBuilder()
    try:
        with _Storing(store, builder) as storing:
            while (member := reader.next()) is not None:
                report(1)
                change = builder.accept(member)
                if change is None:
                    continue
                if not stat.S_ISREG(change.mode):
                    builder.add(change)
                elif member.size > _WHOLE_BYTES:
                    builder.add(change._replace(content=store.add_stream(reader.read, member.size)))
                else:
                    storing.add(builder.add(change), reader.read(member.size))
            if not reader.drain():
                builder.warn(b"", "behind the end of the archive is left out: the archive goes on there")
    finally:
        ahead.close()
    return builder


class _Ahead:
    """Pieces on their way from one thread to another, a few at most."""

    def __init__(self) -> None:
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(_PIECES_AHEAD)
        self._is_closed = threading.Event()

    def feed(self, next_piece: Callable[[], bytes]) -> None:
        """Hand on what *next_piece* gives, the empty one at the end or its error included."""
        while not self._is_closed.is_set():
            try:
                piece: bytes | BaseException = next_piece()
            except BaseException as error:  # noqa: BLE001  # raised again by ``take``
                piece = error
            self._queue.put(piece)
            if not piece or isinstance(piece, BaseException):
                return

    def take(self) -> bytes:
        """The next piece."""
        piece = self._queue.get()
        if isinstance(piece, BaseException):
            raise piece
        if not piece:
            self._queue.put(piece)  # the end stays the end
        return piece

    def close(self) -> None:
        """Let nobody wait who feeds."""
        self._is_closed.set()
        while True:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                return


class _Storing:
    """Small files on their way into a store, in batches."""

    def __init__(self, store: ContentStore, builder: ChangeSetBuilder) -> None:
        self._store = store
        self._builder = builder
        self._pool = ThreadPoolExecutor(_STORING_THREADS, "storing")
        self._free = threading.Semaphore(_BATCHES_AHEAD)
        self._futures: list[Future[list[Content]]] = []
        self._numbers: list[list[int]] = []
        self._batch: list[bytes] = []
        self._batch_numbers: list[int] = []
        self._batch_bytes = 0

    def add(self, number: int, data: bytes) -> None:
        """Store *data*, the content of the entry with that *number*. Raises what storing earlier ones has raised."""
        self._batch.append(data)
        self._batch_numbers.append(number)
        self._batch_bytes += len(data)
        if self._batch_bytes >= _BATCH_BYTES or len(self._batch) >= _BATCH_FILES:
            self._hand_on()

    def _hand_on(self) -> None:
        self._free.acquire()
        if self._futures and self._futures[-1].done():
            self._futures[-1].result()
        self._futures.append(self._pool.submit(self._keep, self._batch))
        self._numbers.append(self._batch_numbers)
        self._batch, self._batch_numbers, self._batch_bytes = [], [], 0

    def _keep(self, batch: list[bytes]) -> list[Content]:
        try:
            return self._store.add_many(batch)
        finally:
            self._free.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._hand_on()
                for numbers, future in zip(self._numbers, self._futures, strict=True):
                    self._builder.complete(numbers, future.result())
        finally:
            self._pool.shutdown(cancel_futures=True)


class _VerifiedStream:
    """The pieces of a tar, hashed and counted on their way."""

    def __init__(self, blob: Iterable[bytes], packing: str | None, diff_id: Digest, limits: Limits) -> None:
        self._pieces = unpacked(self._counted(blob), packing)
        self._limits = limits
        self._diff_id = diff_id
        self._hasher = diff_id.hasher()
        self._packed_bytes = 0
        self.unpacked_bytes = 0

    def _counted(self, blob: Iterable[bytes]) -> Iterator[bytes]:
        for part in blob:
            self._packed_bytes += len(part)
            yield part

    def next_piece(self) -> bytes:
        """The next piece; empty at the end."""
        piece = next(self._pieces, b"")
        self._hasher.update(piece)
        self.unpacked_bytes += len(piece)
        if self.unpacked_bytes > self._limits.max_layer_bytes:
            raise LimitError(
                f"the layer unpacks to more than {self._limits.max_layer_bytes} bytes "
                "(UNPACKD_CONVERTER_LIMITS_MAX_LAYER_BYTES)"
            )
        if self._limits.ratio_exceeded(self._packed_bytes, self.unpacked_bytes):
            raise LimitError(
                f"{self._packed_bytes} bytes of the layer unpack to {self.unpacked_bytes}: more than "
                f"{self._limits.max_ratio} times as many (UNPACKD_CONVERTER_LIMITS_MAX_RATIO)"
            )
        return piece

    def verify(self) -> None:
        """Raises CorruptLayerError unless all that was read has the DiffID that it should have."""
        found = self._hasher.hexdigest()
        if found != self._diff_id.hex:
            raise CorruptLayerError(
                f"the unpacked layer has the DiffID {self._diff_id.algorithm}:{found}, but the image's config says "
                f"{self._diff_id}; the image must be built or pushed again"
            )
