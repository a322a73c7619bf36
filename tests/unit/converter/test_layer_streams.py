"""Blobs become tars: gzip, zstd, plain; broken streams, wrong media types, bombs."""

import gzip
import struct
from collections.abc import Iterator, Sequence

import pytest
import zstandard

from converter.errors import CorruptLayerError, ImageRefusedError, LayerError, LimitError
from converter.layer_reading import read_layer
from converter.layer_streams import GZIP, PIECE_BYTES, PLAIN, ZSTD, unpacked
from converter.limits import Limits
from fs.format.tree import Content
from registry_proxy.oci.digest import Digest
from tests.support.tars import END, MemoryStore, entry

DATA = bytes(range(256)) * 1000
PACKED_GZIP = gzip.compress(DATA, mtime=0)
PACKED_ZSTD = zstandard.ZstdCompressor(write_checksum=True).compress(DATA)
SKIPPABLE = struct.pack("<II", 0x184D2A5F, 3) + b"abc"


def unpack(blob: bytes, expected: str | None = None, *, part: int = 1000) -> bytes:
    return b"".join(unpacked([blob[at : at + part] for at in range(0, len(blob), part)], expected))


@pytest.mark.parametrize(
    ("blob", "data"),
    [
        (DATA, DATA),
        (PACKED_GZIP, DATA),
        (PACKED_GZIP + PACKED_GZIP, DATA * 2),
        (PACKED_GZIP + bytes(700), DATA),
        (PACKED_GZIP + bytes(7) + PACKED_GZIP, DATA * 2),
        (PACKED_ZSTD, DATA),
        (PACKED_ZSTD + SKIPPABLE + PACKED_ZSTD, DATA * 2),
        (SKIPPABLE + PACKED_ZSTD, DATA),
        (b"", b""),
    ],
)
@pytest.mark.parametrize("part", [1, 999, 1 << 20])
def test_all_of_it_comes_out(blob: bytes, data: bytes, part: int) -> None:
    assert unpack(blob, part=part) == data


@pytest.mark.parametrize(
    "blob",
    [
        PACKED_GZIP[:-20],
        PACKED_GZIP[:-8] + b"\1\2\3\4" + PACKED_GZIP[-4:],
        PACKED_GZIP[:-1] + b"\x7f",
        PACKED_GZIP[:50] + b"\xff" * 50 + PACKED_GZIP[100:],
        PACKED_GZIP + b"garbage",
        PACKED_GZIP[:5],
        PACKED_ZSTD + b"garbage",
        PACKED_ZSTD[:-4] + b"\1\2\3\4",
        struct.pack("<IBB", 0xFD2FB528, 0, 0xF8) + b"\1\0\0",
    ],
    ids=["cut", "crc", "length", "damaged", "tail", "header", "zstd tail", "zstd checksum", "zstd window"],
)
def test_broken_streams_are_corrupt(blob: bytes) -> None:
    with pytest.raises(CorruptLayerError):
        unpack(blob)


@pytest.mark.parametrize(("blob", "said"), [(PACKED_GZIP, ZSTD), (PACKED_ZSTD, PLAIN), (DATA, GZIP)])
def test_media_type_must_be_true(blob: bytes, said: str) -> None:
    with pytest.raises(CorruptLayerError, match=f"says {said}"):
        unpack(blob, said)


@pytest.mark.parametrize("blob", [b"\xfd7zXZ\0", b"BZh9"])
def test_other_packings_are_refused(blob: bytes) -> None:
    with pytest.raises(ImageRefusedError, match="xz or bzip2"):
        unpack(blob)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_pieces_are_bounded_however_much_comes_out(pack: object) -> None:
    assert callable(pack)
    pieces = list(unpacked([pack(bytes(50 * PIECE_BYTES))], None))

    assert max(map(len, pieces)) <= PIECE_BYTES
    assert sum(map(len, pieces)) == 50 * PIECE_BYTES


# --- one pass over a layer


def test_files_are_stored_and_the_diff_id_is_verified() -> None:
    tar = entry(b"small", b"s") + entry(b"large", b"l" * (3 << 20)) + END
    store = MemoryStore()

    changes = read_layer([tar], packing=PLAIN, diff_id=Digest.of(tar), store=store, limits=Limits())

    assert [change.path for change in changes.entries] == [b"/small", b"/large"]
    assert changes.diff_id == str(Digest.of(tar))
    assert changes.unpacked_bytes == len(tar)
    assert sorted(map(len, store.files.values())) == [1, 3 << 20]


def test_what_follows_the_end_is_warned_of_and_counts_for_the_diff_id() -> None:
    tar = entry(b"a") + END + entry(b"late")

    changes = read_layer([tar], packing=None, diff_id=Digest.of(tar), store=MemoryStore(), limits=Limits())

    assert [change.path for change in changes.entries] == [b"/a"]
    assert "behind the end" in changes.warnings[0]


def test_wrong_diff_id_names_both() -> None:
    tar, wrong = entry(b"a") + END, Digest.of(b"another")

    with pytest.raises(CorruptLayerError) as caught:
        read_layer([tar], packing=None, diff_id=wrong, store=MemoryStore(), limits=Limits())

    assert str(wrong) in str(caught.value)
    assert str(Digest.of(tar)) in str(caught.value)


def test_limit_holds_for_what_no_entry_announces() -> None:
    tar = entry(b"a") + END + bytes(5 << 20)

    with pytest.raises(LimitError, match="MAX_LAYER_BYTES"):
        read_layer(
            [tar], packing=None, diff_id=Digest.of(tar), store=MemoryStore(), limits=Limits(max_layer_bytes=1 << 20)
        )


def test_many_files_keep_their_places_and_contents() -> None:
    tar = b"".join(entry(b"%d" % number, b"content %d" % number * (number % 50)) for number in range(1000)) + END
    store = MemoryStore()

    changes = read_layer([tar], packing=PLAIN, diff_id=Digest.of(tar), store=store, limits=Limits())

    found = {change.path: store.files[change.content.hash] for change in changes.entries if change.content}  # type: ignore[index]
    assert found == {b"/%d" % number: b"content %d" % number * (number % 50) for number in range(1000)}
    assert list(found) == [b"/%d" % number for number in range(1000)]


class FullStore(MemoryStore):
    """A store that takes nothing."""

    def add_many(self, files: Sequence[bytes]) -> list[Content]:
        raise OSError(28, f"No space left on device for {len(files)} files")


@pytest.mark.parametrize("count", [1, 500])
def test_a_store_that_fails_ends_the_pass(count: int) -> None:
    tar = entry(b"a", b"x" * 10_000) * count + END

    with pytest.raises(OSError, match="No space left"):
        read_layer(slices(tar), packing=PLAIN, diff_id=Digest.of(tar), store=FullStore(), limits=Limits())


def test_a_source_that_fails_ends_the_pass_with_its_own_error() -> None:
    def parts() -> Iterator[bytes]:
        yield from slices((entry(b"a", b"x" * 10_000) * 500)[:-700])
        raise ConnectionError("the registry went away")

    with pytest.raises(ConnectionError, match="went away"):
        read_layer(parts(), packing=None, diff_id=Digest.of(b""), store=MemoryStore(), limits=Limits())


def test_a_broken_archive_ends_the_pass_although_more_is_to_come() -> None:
    asked = 0

    def parts() -> Iterator[bytes]:
        nonlocal asked
        yield entry(b"a") + b"\1" * 512
        while True:
            asked += 1
            yield bytes(1 << 20)

    with pytest.raises(LayerError, match="malformed number"):
        read_layer(parts(), packing=None, diff_id=Digest.of(b""), store=MemoryStore(), limits=Limits())

    assert asked < 20


def slices(data: bytes) -> Iterator[bytes]:
    return (data[start : start + 65536] for start in range(0, len(data), 65536))


def test_ratio_of_a_large_layer_is_limited() -> None:
    limits = Limits(max_ratio=100)

    assert not limits.ratio_exceeded(1, 1 << 20)
    assert limits.ratio_exceeded(1 << 20, 2 << 30)
    assert not limits.ratio_exceeded(1 << 30, 2 << 30)
