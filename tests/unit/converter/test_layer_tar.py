"""Members of tars: all dialects, cut and damaged archives, limits."""

import io
import stat
import tarfile
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import LayerError, LimitError
from converter.limits import Limits
from tests.support.tars import BLOCK, END, binary, entry, header, members, octal, padded, pax

A = entry(b"a", b"data of a")


def by_tarfile(file_format: int, **fields: object) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=file_format) as archive:
        info = tarfile.TarInfo()
        info.name = "dir/file"
        for key, value in fields.items():
            setattr(info, key, value)
        archive.addfile(info, io.BytesIO(b"x" * info.size))
    return stream.getvalue()


@pytest.mark.parametrize("file_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_tarfile_writes_is_read(file_format: int) -> None:
    [(member, data)] = members(by_tarfile(file_format, size=700, mode=0o4755, uid=7, gid=8, mtime=1_700_000_000))

    assert member.name == b"dir/file"
    assert (member.mode, member.uid, member.gid, member.size) == (stat.S_IFREG | 0o4755, 7, 8, 700)
    assert member.mtime_ns == 1_700_000_000 * 10**9
    assert data == b"x" * 700


@pytest.mark.parametrize("file_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_links(file_format: int) -> None:
    name, link = "d" * 90 + "/" + "n" * 150, "l" * 200

    [(member, _)] = members(by_tarfile(file_format, name=name, linkname=link, type=tarfile.SYMTYPE))

    assert (member.name, member.link) == (name.encode(), link.encode())


def test_ustar_prefix() -> None:
    [(member, _)] = members(header(b"name", prefix=b"pre/fix") + END)

    assert member.name == b"pre/fix/name"


def test_old_gnu_header_has_no_prefix() -> None:
    [(member, _)] = members(header(b"name", magic=b"ustar  \0", prefix=b"0123") + END)

    assert member.name == b"name"


def test_base_256_numbers() -> None:
    block = header(b"f", uid=binary(3_000_000_000, 8), mtime=binary(-5, 12))

    [(member, _)] = members(block + END)

    assert (member.uid, member.mtime_ns) == (3_000_000_000, -5 * 10**9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"1.5", 1_500_000_000),
        (b"-1.5", -1_500_000_000),
        (b"-0.25", -250_000_000),
        (b"12", 12_000_000_000),
        (b"1700000000.1234567891", 1_700_000_000_123_456_789),
    ],
)
def test_pax_times(text: bytes, expected: int) -> None:
    [(member, _)] = members(pax((b"mtime", text)) + A + END)

    assert member.mtime_ns == expected


def test_pax_size_counts_and_moves_the_reader_on() -> None:
    archive = pax((b"size", b"600")) + header(b"f", size=0) + padded(b"y" * 600) + A

    found = members(archive)

    assert [(member.name, data) for member, data in found] == [(b"f", b"y" * 600), (b"a", b"data of a")]


def test_extended_attributes_of_both_dialects() -> None:
    records = (
        (b"SCHILY.xattr.user.a", b"\0\n="),
        (b"LIBARCHIVE.xattr.user.b%3d", b"AQI"),
        (b"LIBARCHIVE.xattr.user.a", b"AQI"),
    )

    [(member, _)] = members(pax(*records) + A)

    assert member.xattrs == {b"user.a": b"\0\n=", b"user.b=": b"\1\2"}


def test_empty_pax_value_takes_the_record_back() -> None:
    [(member, _)] = members(pax((b"path", b"")) + A)

    assert member.name == b"a"


def test_global_header_changes_nothing() -> None:
    found = members(pax((b"path", b"evil"), kind=b"g") + A)

    assert [member.name for member, _ in found] == [b"a"]


def test_directories_links_and_devices_have_no_data_whatever_their_size_says() -> None:
    archive = (
        header(b"d/", b"5", size=512) + header(b"l", b"1", size=9, link=b"a") + header(b"c", b"3", device=(1, 3)) + A
    )

    found = members(archive)

    assert [member.name for member, _ in found] == [b"d/", b"l", b"c", b"a"]
    assert [member.size for member, _ in found] == [0, 0, 0, 9]


def test_old_regular_file_with_a_slash_is_a_directory() -> None:
    [(member, _)] = members(header(b"d/", b"\0"))

    assert stat.S_ISDIR(member.mode)


@pytest.mark.parametrize("tail", [b"", bytes(BLOCK), END, END + bytes(9000)])
def test_any_end_will_do(tail: bytes) -> None:
    assert [data for _, data in members(A + tail)] == [b"data of a"]


def test_last_member_without_padding() -> None:
    assert [data for _, data in members(header(b"f", size=3) + b"abc")] == [b"abc"]


@pytest.mark.parametrize("piece", [1, 7, 511, 512, 513])
def test_pieces_of_any_size(piece: int) -> None:
    assert [data for _, data in members(A + A, piece=piece)] == [b"data of a"] * 2


# --- sparse files


def old_sparse(parts: list[tuple[int, int]], size: int, *, more: bytes = b"\0") -> bytes:
    pairs = b"".join(octal(offset, 12) + octal(length, 12) for offset, length in parts)
    return bytes(41) + pairs.ljust(96, b"\0") + more + octal(size, 12)


def test_old_gnu_sparse() -> None:
    block = header(b"s", b"S", size=6, magic=b"ustar  \0", tail=old_sparse([(3, 3), (10, 3)], 15))

    [(member, data)] = members(block + padded(b"abcdef") + A)[:1]

    assert member.size == 15
    assert data == b"\0\0\0abc\0\0\0\0def\0\0"


def test_old_gnu_sparse_with_an_extension() -> None:
    block = header(
        b"s", b"S", size=5, magic=b"ustar  \0", tail=old_sparse([(i * 2, 1) for i in range(4)], 9, more=b"\1")
    )
    extension = padded(octal(8, 12) + octal(1, 12))

    [(_, data), (after, _)] = members(block + extension + padded(b"abcde") + A)

    assert data == b"a\0b\0c\0d\0e"
    assert after.name == b"a"


@pytest.mark.parametrize(
    ("records", "stored"),
    [
        (
            (
                (b"GNU.sparse.size", b"8"),
                (b"GNU.sparse.numblocks", b"2"),
                (b"GNU.sparse.offset", b"1"),
                (b"GNU.sparse.numbytes", b"2"),
                (b"GNU.sparse.offset", b"5"),
                (b"GNU.sparse.numbytes", b"1"),
            ),
            b"abc",
        ),
        (((b"GNU.sparse.size", b"8"), (b"GNU.sparse.map", b"1,2,5,1"), (b"GNU.sparse.name", b"real")), b"abc"),
        (
            (
                (b"GNU.sparse.major", b"1"),
                (b"GNU.sparse.minor", b"0"),
                (b"GNU.sparse.realsize", b"8"),
                (b"GNU.sparse.name", b"real"),
            ),
            padded(b"2\n1\n2\n5\n1\n") + b"abc",
        ),
    ],
    ids=["0.0", "0.1", "1.0"],
)
def test_pax_sparse(records: tuple[tuple[bytes, bytes], ...], stored: bytes) -> None:
    [(member, data), (after, _)] = members(pax(*records) + entry(b"GNUSparseFile.0/s", stored) + A)

    assert data == b"\0ab\0\0c\0\0"
    assert member.size == 8
    assert after.name == b"a"


# --- what is refused


@pytest.mark.parametrize(
    ("archive", "named"),
    [
        (header(b"bad", checksum=0o1234), b"bad"),
        (header(b"cut", size=4096) + b"c" * 100, b"cut"),
        (header(b"neg", size=binary(-512, 12)), b"neg"),
        (header(b"huge", size=binary(1 << 62, 12)), b"huge"),
        (entry(b"zed", b"z", b"Z"), b"zed"),
        (header(b"owner", uid=binary(0xFFFF_FFFF, 8)), b"owner"),
        (header(b"owner", gid=binary(-1, 8)), b"owner"),
        (header(b"octal", uid=b"12x4567\0"), b"octal"),
        (header(b"dev", b"3", device=(0o7777777, 0)), b"dev"),
        (pax((b"size", b"-1")) + A, b"a"),
        (pax((b"uid", b"1_0")) + A, b"a"),
        (pax((b"mtime", b"1.x")) + A, b"a"),
        (pax((b"mtime", b"9" * 19)) + A, b"a"),
        (pax((b"path", b"x\0y")) + A, b"x\0y"),
        (pax((b"LIBARCHIVE.xattr.user.a", b"*")) + A, b"a"),
        (pax((b"GNU.sparse.size", b"8"), (b"GNU.sparse.map", b"5,1,1,2")) + A, b"a"),
        (pax((b"GNU.sparse.size", b"8"), (b"GNU.sparse.map", b"1,9")) + A, b"a"),
        (pax((b"GNU.sparse.size", b"8"), (b"GNU.sparse.map", b"1,2")) + A, b"a"),
    ],
)
def test_error_names_the_entry(archive: bytes, named: bytes) -> None:
    with pytest.raises(LayerError) as caught:
        members(archive + END)

    assert caught.value.entry == named


@pytest.mark.parametrize(
    "archive",
    [
        A + header(b"x")[:300],
        A + bytes(BLOCK) + A,
        entry(b"PaxHeaders/x", b"30 path=x\n", b"x") + A,
        entry(b"PaxHeaders/x", b"path=x\n", b"x") + A,
        pax((b"path", b"x")),
        header(b"PaxHeaders/x", b"x", size=200) + b"10",
        b"this is no tar at all, but it is long enough to be a header block" * 10,
    ],
)
def test_broken_archives_are_errors_and_not_ends(archive: bytes) -> None:
    with pytest.raises(LayerError):
        members(archive)


@pytest.mark.parametrize(
    ("archive", "limits", "variable"),
    [
        (A * 3, Limits(max_entries=2), "MAX_ENTRIES"),
        (A, Limits(max_layer_bytes=500), "MAX_LAYER_BYTES"),
        (header(b"zeros", size=1 << 30), Limits(max_layer_bytes=1 << 26), "MAX_LAYER_BYTES"),
        (
            header(b"hole", b"S", magic=b"ustar  \0", tail=old_sparse([], 1 << 30)),
            Limits(max_layer_bytes=1 << 26),
            "MAX_LAYER_BYTES",
        ),
        (header(b"x", b"x", size=1 << 31), Limits(), "MAX_HEADER_BYTES"),
        (header(b"L", b"L", size=1 << 31), Limits(), "MAX_HEADER_BYTES"),
    ],
)
def test_limits_are_named_with_their_variable(archive: bytes, limits: Limits, variable: str) -> None:
    with pytest.raises(LimitError, match=variable):
        members(archive, limits)


WHOLE = (
    pax((b"path", b"p/q"), (b"SCHILY.xattr.user.a", b"v"), (b"mtime", b"1.5"))
    + entry(b"x", b"data")
    + header(b"s", b"S", size=6, magic=b"ustar  \0", tail=old_sparse([(3, 3), (10, 3)], 15))
    + padded(b"abcdef")
    + entry(b"l", kind=b"2", link=b"target")
    + END
)


@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=40), st.booleans())
def test_no_damage_raises_anything_but_layer_error(at: int, damage: bytes, is_summed_again: bool) -> None:
    archive = bytearray(WHOLE[:at] + damage + WHOLE[at + len(damage) :])
    if is_summed_again:  # so that the damage gets past the checksum
        for start in range(0, len(archive) - BLOCK + 1, BLOCK):
            archive[start + 148 : start + 156] = b" " * 8
            archive[start + 148 : start + 156] = b"%06o\0 " % sum(archive[start : start + BLOCK])

    with suppress(LayerError):
        members(bytes(archive), Limits(max_layer_bytes=1 << 20))
