import io
import random
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from fs.errors import FsError, RefusedError
from fs.format.chunking import ChunkSizes
from fs.format.compression import Compression
from fs.format.hashes import Algorithm, Hash, Suffix
from fs.publish.ingest import Ingester
from fs.publish.packing import Codec, DedupIndex, Packer
from fs.publish.view import read_parts
from fs.store.base import Buffer
from fs.store.memory import MemoryStore

SMALL_CHUNKS = Codec(chunk_sizes=ChunkSizes(1024, 2048, 4096))


class CountingStore(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.puts = 0

    def put(self, name: Hash, suffix: Suffix, stored: Buffer) -> bool:
        self.puts += 1
        return super().put(name, suffix, stored)


def ingester(codec: Codec = SMALL_CHUNKS, store: MemoryStore | None = None) -> tuple[Ingester, MemoryStore]:
    store = store or CountingStore()
    return Ingester(store, Packer(store, DedupIndex(None), codec)), store


def trickle(data: bytes) -> Callable[[int], bytes]:
    """Reads in odd, small pieces."""
    stream, pieces = io.BytesIO(data), random.Random(3)
    return lambda count: stream.read(pieces.randint(1, count))


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("length", [0, 1, 1024, 1025, 4096, 30_000])
def test_what_goes_in_comes_out(length: int, algorithm: Algorithm, compression: Compression) -> None:
    data = random.Random(length).randbytes(length)
    add, store = ingester(Codec(algorithm, compression, chunk_sizes=ChunkSizes(1024, 2048, 4096)))

    whole, streamed = add.add_bytes(data), add.add_stream(trickle(data), length)

    assert whole == streamed
    assert b"".join(read_parts(store, whole)) == data
    assert whole.size == length
    assert (whole.hash is None) == bool(whole.chunks)


def test_an_empty_file_is_the_object_that_all_repositories_share() -> None:
    add, _ = ingester(Codec(compression=Compression.NONE))

    content = add.add_bytes(b"")

    assert str(content.hash) == "e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78"
    assert content.compression is Compression.ZLIB


def test_any_zlib_can_read_an_object() -> None:
    add, store = ingester()

    content = add.add_bytes(b"text " * 100)

    assert content.hash is not None
    assert zlib.decompress(store.get(content.hash, Suffix.PLAIN, limit_bytes=1000)) == b"text " * 100


@pytest.mark.parametrize("codec", ["isal", "isal:0", "isal:3", "zlib", "zlib:9", "libdeflate", "libdeflate:12", "none"])
def test_every_codec_gives_what_all_readers_read(codec: str) -> None:
    data = b"some text, some text " * 200
    add, store = ingester(Codec.parse(codec))

    content = add.add_bytes(data)

    assert b"".join(read_parts(store, content)) == data
    assert content.hash is not None
    stored = store.get(content.hash, Suffix.PLAIN, limit_bytes=10_000)
    assert (stored == data) if codec == "none" else (zlib.decompress(stored) == data)


@pytest.mark.parametrize("codec", ["", "lz4", "isal:4", "isal:-1", "zlib:0", "zlib:x", "libdeflate:13", "none:1"])
def test_codecs_that_are_none_are_refused(codec: str) -> None:
    with pytest.raises(RefusedError):
        Codec.parse(codec)


def test_an_encoder_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fs.format.compression.find_spec", lambda _: None)

    with pytest.raises(RefusedError, match="libdeflate"):
        Codec.parse("libdeflate")


def test_what_is_known_is_not_compressed_again() -> None:
    store = CountingStore()
    add, _ = ingester(store=store)

    first, second = add.add_bytes(b"abc"), add.add_bytes(b"abc")

    assert first == second
    assert store.puts == 1


def test_equal_chunks_of_zeros_are_stored_once() -> None:
    store = CountingStore()
    add, _ = ingester(store=store)

    content = add.add_bytes(bytes(40 * 4096))

    assert len(content.chunks) == 40
    assert store.puts == 1


def test_a_stale_index_cannot_make_a_dangling_reference() -> None:
    index = DedupIndex(None)
    Packer(MemoryStore(), index, SMALL_CHUNKS).objects([b"abc"], Suffix.PLAIN)
    emptied = MemoryStore()

    content = Ingester(emptied, Packer(emptied, index, SMALL_CHUNKS)).add_bytes(b"abc")

    assert b"".join(read_parts(emptied, content)) == b"abc"


@pytest.mark.parametrize("length", [10, 5000])
def test_a_file_that_ends_early_is_an_error(length: int) -> None:
    add, _ = ingester()

    with pytest.raises(FsError, match="ended"):
        add.add_stream(io.BytesIO(bytes(length)).read, length + 1)


def test_a_reader_that_gives_too_much_is_refused() -> None:
    add, _ = ingester()

    with pytest.raises(RefusedError):
        add.add_stream(lambda count: bytes(count + 1), 10)


def test_no_more_than_the_stated_size_is_read() -> None:
    add, _ = ingester()
    stream = io.BytesIO(b"abcdef")

    add.add_stream(stream.read, 4)

    assert stream.read() == b"ef"


def test_threads_share_an_ingester() -> None:
    add, store = ingester()
    contents = [b"%d" % (number % 300) * 20 for number in range(1500)]
    start = threading.Barrier(4)

    def work(part: list[bytes]) -> list[bytes]:
        start.wait(10)
        return [b"".join(read_parts(store, add.add_bytes(data))) for data in part]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, [contents[offset::4] for offset in range(4)]))

    assert results == [contents[offset::4] for offset in range(4)]
