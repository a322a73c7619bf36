"""Messages of /dev/fuse: what the kernel may send is read, what it never sends is refused, answers have its layout."""

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs.client import wire_messages as wire
from fs.client.holder import Inheritance, kernel_can_resume
from fs.client.inodes import Inode
from fs.client.operations import Attributes, Statistics
from fs.client.wire_messages import Hello, MessageError, Offer

ATTRIBUTES = Attributes(Inode(300), 0o100644, 2, 1000, 1001, 0x0103, 5000, -1_500_000_000)
EVERYTHING = (1 << 64) - 1


def message(operation: int, body: bytes, *, unique: int = 7, inode: int = 1, extra: bytes = b"") -> bytes:
    length = 40 + len(body) + len(extra)
    return struct.pack("=IIQQIIIHH", length, operation, unique, inode, 0, 0, 0, len(extra) // 8, 0) + body + extra


def test_a_request_without_its_extensions() -> None:
    request = wire.parse(message(1, b"name\0", extra=bytes(16)))
    assert (request.operation, request.unique, request.inode, request.body) == (1, 7, 1, b"name\0")
    assert wire.parse_name(request.body) == b"name"


@pytest.mark.parametrize(
    "broken",
    [b"", bytes(39), message(1, b"name\0")[:-1], message(1, b"") + b"x", struct.pack("=IIQQIIIHH", 40, *[0] * 6, 9, 0)],
)
def test_a_message_that_does_not_add_up(broken: bytes) -> None:
    with pytest.raises(MessageError):
        wire.parse(broken)


@pytest.mark.parametrize("body", [b"", b"\0", b"a", b"a\0b", b"a/b\0", b"a\0\0", b"x" * 256 + b"\0"])
def test_no_proper_name(body: bytes) -> None:
    with pytest.raises(MessageError):
        wire.parse_name(body)


def test_only_what_is_wanted_is_taken_from_the_offers() -> None:
    answer = wire.init_answer(Hello(7, 45, 131072, EVERYTHING))
    fields = struct.unpack("=IIIIHHIIHHI28x", answer)
    taken = Offer(fields[3] | fields[10] << 32)
    assert len(answer) == 64
    assert fields[:2] == (7, 41)
    assert fields[8] == 256  # pages in a read
    assert taken == sum(Offer)
    assert not taken & (1 << 16)  # writeback cache: attributes would be asked for after every closing


def test_a_kernel_that_does_not_open_without_messages_is_refused() -> None:
    with pytest.raises(MessageError, match="Linux"):
        wire.init_answer(Hello(7, 31, 0, EVERYTHING & ~Offer.NO_OPENDIR_SUPPORT))
    with pytest.raises(MessageError, match=r"7\.20"):
        wire.init_answer(Hello(7, 20, 0, EVERYTHING))


def test_both_words_of_offers() -> None:
    body = struct.pack("=IIIII44x", 7, 45, 4096, Offer.INIT_EXT | Offer.ASYNC_READ, 1 << 7)
    assert wire.parse_init(body).offers == Offer.INIT_EXT | Offer.ASYNC_READ | Offer.HAS_RESEND
    assert wire.parse_init(body[:16]).offers == Offer.INIT_EXT | Offer.ASYNC_READ


def test_a_list_of_what_is_forgotten_has_its_length() -> None:
    body = struct.pack("=IIQQQQ", 2, 0, 300, 1, 301, 5)
    assert wire.parse_forgets(body) == [(300, 1), (301, 5)]
    with pytest.raises(MessageError):
        wire.parse_forgets(body + bytes(16))
    with pytest.raises(MessageError):
        wire.parse_forgets(struct.pack("=II", EVERYTHING & 0xFFFFFFFF, 0))


def test_a_read_is_bounded() -> None:
    assert wire.parse_read(struct.pack("=QQIIQII", 0, 4096, 1 << 20, 0, 0, 0, 0)) == (4096, 1 << 20)
    with pytest.raises(MessageError):
        wire.parse_read(struct.pack("=QQIIQII", 0, 0, (1 << 20) + 1, 0, 0, 0, 0))


def test_attributes_as_the_kernel_lays_them_out() -> None:
    answer = wire.entry_answer(ATTRIBUTES, 3600)
    inode, generation, entry_s, attributes_s, *nanoseconds = struct.unpack_from("=QQQQII", answer)
    fields = struct.unpack_from("=QQQqqqIIIIIIIIII", answer, 40)
    assert (len(answer), inode, generation, entry_s, attributes_s, nanoseconds) == (128, 300, 0, 3600, 3600, [0, 0])
    assert fields[:4] == (300, 5000, 10, -2)
    assert fields[6] == 500_000_000
    assert fields[9:16] == (0o100644, 2, 1000, 1001, 0x0103, 4096, 0)
    assert wire.attributes_answer(ATTRIBUTES, 60)[16:] == answer[40:]
    assert len(wire.attributes_answer(ATTRIBUTES, 60)) == 104


def test_other_answers_have_their_sizes() -> None:
    assert len(wire.absent_answer(60)) == 128
    assert len(wire.statfs_answer(Statistics(4, 3, 2, 1))) == 80
    assert wire.error_answer(7, 2) == struct.pack("=IiQ", 16, -2, 7)
    assert wire.answer_header(7, 100) == struct.pack("=IiQ", 116, 0, 7)
    assert wire.resend() == struct.pack("=IiQ", 16, 7, 0)
    assert wire.invalidate_entry(9, b"ab") == struct.pack("=IiQQII", 35, 3, 0, 9, 2, 0) + b"ab\0"
    assert wire.invalidate_pages(9) == struct.pack("=IiQQqq", 40, 2, 0, 9, 0, 0)


@pytest.mark.parametrize("name", [b"a", b"12345678", b"123456789", b"x" * 255])
def test_records_of_listings_are_aligned(name: bytes) -> None:
    record = wire.directory_entry(300, 5, 0o120777, name)
    inode, offset, length, kind = struct.unpack_from("=QQII", record)
    assert (inode, offset, length, kind, len(record) % 8) == (300, 5, len(name), 0o12, 0)
    assert record[24 : 24 + length] == name
    assert len(wire.full_directory_entry(None, record)) == 128 + len(record)


@given(st.binary(max_size=100))
def test_no_message_raises_anything_else(body: bytes) -> None:
    parsers = [
        wire.parse, wire.parse_name, wire.parse_init, wire.parse_forget, wire.parse_forgets, wire.parse_read,
        wire.parse_getxattr, wire.parse_listxattr, lambda one: wire.init_answer(wire.parse_init(one)),
    ]  # fmt: skip
    for parser in parsers:
        with suppress(MessageError):
            parser(body)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("release", "can"),
    [
        ("6.9.0", True),
        ("6.18.44-x", True),
        ("7.0", True),
        ("6.8.12", False),
        ("5.15.0-91-generic", False),
        ("x", False),
    ],
)
def test_which_kernels_ask_again(release: str, can: bool) -> None:
    assert kernel_can_resume(release) is can


def test_what_a_daemon_inherits_can_be_said_in_an_argument() -> None:
    inherited = Inheritance(3, 4, -1, is_resumed=True)
    assert Inheritance.parse(str(inherited)) == inherited
    for text in ("", "{}", "[1]", '{"device": 3}'):
        with pytest.raises(ValueError):  # noqa: PT011  # the message is the text
            Inheritance.parse(text)
