"""Objects on arrival: what is believed and what is not."""

import zlib
from collections.abc import Callable

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs.client.receiving import ObjectReceiver, ObjectRef, SinkFailedError, WindowSink
from fs.errors import CorruptError, FsError, RefusedError
from fs.format.compression import Compression, deflate
from fs.format.hashes import Algorithm, Hash
from fs.store.reading import Part


class _Sink(WindowSink):
    def __init__(self) -> None:
        super().__init__(0, 1 << 40)


def _receive(ref: ObjectRef, *pieces: bytes, sink: WindowSink | None = None) -> bytes:
    kept = sink or _Sink()

    async def run() -> None:
        receiver = ObjectReceiver(ref, kept)
        await receiver.feed(b"what a failed attempt gave")
        receiver.begin()
        for piece in pieces:
            await receiver.feed(piece)
        await receiver.finish()

    anyio.run(run, backend="trio")
    return kept.content


def _ref(stored: bytes, size: int | None, compression: Compression = Compression.ZLIB, **more: int) -> ObjectRef:
    return ObjectRef(Hash.of(stored), compression=compression, size=size, **more)


@pytest.mark.parametrize("algorithm", list(Algorithm))
@pytest.mark.parametrize("encode", [zlib.compress, deflate], ids=["zlib", "isal"])
def test_every_algorithm_and_encoder(algorithm: Algorithm, encode: Callable[[bytes], bytes]) -> None:
    content = bytes(range(256)) * 4000
    stored = encode(content)
    ref = ObjectRef(Hash.of(stored, algorithm), size=len(content))

    assert _receive(ref, *(stored[start : start + 1000] for start in range(0, len(stored), 1000))) == content


def test_an_object_that_is_not_compressed() -> None:
    assert _receive(_ref(b"plain", 5, Compression.NONE), b"pla", b"in") == b"plain"


def test_nothing_at_all() -> None:
    stored = bytes.fromhex("789c030000000001")
    assert str(Hash.of(stored)) == "e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78"
    assert _receive(_ref(stored, 0), stored) == b""


@given(st.binary(min_size=1, max_size=300), st.data())
def test_no_changed_byte_goes_through(content: bytes, data: st.DataObject) -> None:
    stored = deflate(content)
    position = data.draw(st.integers(0, len(stored) - 1))
    changed = bytearray(stored)
    changed[position] ^= data.draw(st.integers(1, 255))

    with pytest.raises(CorruptError):
        _receive(_ref(stored, len(content)), bytes(changed))


@pytest.mark.parametrize("size", [4, 6])
def test_another_size_than_the_catalog_says(size: int) -> None:
    stored = deflate(b"12345")

    with pytest.raises(CorruptError, match="catalog says"):
        _receive(_ref(stored, size), stored)


def test_a_bomb_of_unknown_size_stops_at_the_limit() -> None:
    stored = deflate(bytes(1 << 22))

    with pytest.raises(RefusedError):
        _receive(_ref(stored, None, limit_bytes=1 << 20), stored)


def test_a_server_that_never_stops_is_stopped() -> None:
    stored = deflate(b"12345")

    with pytest.raises(CorruptError, match="goes on"):
        _receive(_ref(stored, 5), stored, *[bytes(4096)] * 10)


def test_a_sink_that_fails_is_no_fault_of_the_server() -> None:
    class Full(_Sink):
        def write(self, _: bytes) -> None:
            raise OSError(28, "No space left on device")

    stored = deflate(b"12345")
    with pytest.raises(SinkFailedError) as caught:
        _receive(_ref(stored, 5), stored, sink=Full())
    assert caught.value.cause.errno == 28


@given(st.binary(max_size=400), st.integers(0, 500), st.integers(0, 500), st.integers(1, 50))
def test_a_window_keeps_its_part_however_the_pieces_fall(content: bytes, offset: int, size: int, step: int) -> None:
    sink = WindowSink(offset, size)
    for start in range(0, len(content), step):
        sink.write(content[start : start + step])

    assert sink.content == content[offset : offset + size]


@given(st.binary(max_size=64))
def test_whatever_comes_is_an_error_of_ours(stored: bytes) -> None:
    with pytest.raises(FsError):
        _receive(_ref(b"something else", 14), stored)


def test_external_objects_are_asked_for_by_their_path() -> None:
    name = Hash.of(b"x")
    part = Part(5, 10)

    assert ObjectRef(name).request().path == name.object_path()
    request = ObjectRef(name, external="/a/b", part=part).request()
    assert (request.path, request.part) == ("/a/b", part)
