"""File contents become objects, large ones in chunks that are cut where their contents say."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from types import TracebackType
from typing import Self

from fs.errors import FsError, RefusedError
from fs.format.chunking import next_cut
from fs.format.hashes import Algorithm, Hash, Suffix
from fs.format.tree import Chunk, Content
from fs.publish.packing import Packing
from fs.store.base import Buffer, ObjectWriter

EMPTY_OBJECT = bytes.fromhex("789c030000000001")
"""The zlib stream of no bytes, the same in every repository. Source: CernVM-FS 2.12, catalog_balancer_impl.h."""

_READ_BYTES = 1 << 20
_CHUNKS_AHEAD = 2


class Ingester:
    """Adds file contents to a store. Thread-safe; one a process is enough.

    A call needs at most about four times ``chunk_sizes.most`` of memory, however large the file is.
    """

    def __init__(self, store: ObjectWriter, packing: Packing) -> None:
        """Store with *packing*; *store* is what it stores in."""
        self._store = store
        self.packing = packing
        self.codec = packing.codec

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
        names = iter(self.packing.objects([data for data in files if self._is_one_object(data)], Suffix.PLAIN))
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
        first = next(pieces)
        if len(first[1]) == size:
            return self._whole(first[1])
        chunks: list[Chunk] = []
        under_way: deque[tuple[int, int, Future[Hash]]] = deque()

        def finish_one() -> None:
            offset, length, name = under_way.popleft()
            chunks.append(Chunk(offset, length, name.result()))

        with ThreadPoolExecutor(_CHUNKS_AHEAD, "chunks") as storing:
            for offset, data in chain((first,), pieces):  # the next one is cut while others are compressed
                if len(under_way) == _CHUNKS_AHEAD:
                    finish_one()
                under_way.append((offset, len(data), storing.submit(self._object, data, Suffix.CHUNK)))
            while under_way:
                finish_one()
        return Content(size, None, tuple(chunks), self.codec.compression)

    def _pieces(self, read: Callable[[int], bytes], size: int) -> Iterator[tuple[int, bytearray]]:
        """What a file is cut into, each with its offset; one at least."""
        sizes = self.codec.chunk_sizes
        rest = bytearray()
        remaining = size
        offset = 0
        while True:
            remaining -= _fill(rest, read, min(sizes.most - len(rest), remaining))
            length = next_cut(rest, sizes)
            piece, rest = rest, rest[length:]
            del piece[length:]  # which copies nothing
            yield offset, piece
            offset += length
            if offset == size:
                return

    def flush(self) -> None:
        """Let other processes know what was stored."""
        self.packing.flush()

    def _whole(self, data: Buffer) -> Content:
        if not data:
            return self.empty()
        return Content(len(data), self._object(data, Suffix.PLAIN), (), self.codec.compression)

    def empty(self) -> Content:
        """The content of no bytes: one object that all repositories share, compressed whatever the codec."""
        return store_empty(self._store, self.codec.algorithm)

    def _object(self, data: Buffer, suffix: Suffix) -> Hash:
        return self.packing.objects([data], suffix)[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.packing.flush()


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
