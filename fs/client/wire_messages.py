"""The messages of ``/dev/fuse``: bytes to requests, values to answers. Nothing here does I/O.

All numbers are in the byte order of the machine. Source: Linux, include/uapi/linux/fuse.h, protocol 7.31 to 7.45.

======  ======  =============================================
offset  bytes   header of a request
======  ======  =============================================
0       4       length of the whole message
4       4       operation
8       8       number of the request; answers repeat it
16      8       inode
24      12      user, group, process
36      4       length of extensions, padding
40              the body
======  ======  =============================================
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from fs.client.operations import BLOCK_BYTES, Attributes, Statistics
from fs.errors import MalformedError

MAJOR = 7
LEAST_MINOR = 31
MOST_MINOR = 41  # what was read; a newer kernel speaks it too

READ_LIMIT_BYTES = 1 << 20
MESSAGE_BYTES = 16 << 10
"""What one ``read`` takes: nothing that a read-only mount is sent is longer, and lists of what is forgotten are cut."""
NAME_LIMIT_BYTES = 255
_XATTR_NAME_LIMIT_BYTES = 255
_BACKGROUND = 64
_CONGESTION = 48
_TIME_GRAIN_NS = 1
_WRITE_BYTES = 4096

_U32 = 0xFFFFFFFF
_U64 = 0xFFFFFFFFFFFFFFFF
_SECOND_NS = 1_000_000_000


class Operation(IntEnum):
    """What the kernel asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    GETXATTR = 22
    LISTXATTR = 23
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    ACCESS = 34
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    BATCH_FORGET = 42
    READDIRPLUS = 44


class Offer(IntFlag):
    """What both sides of a session can do; both words of flags as one number."""

    ASYNC_READ = 1 << 0
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    INIT_EXT = 1 << 30
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40  # mounts of it may show other owners; needs default_permissions, and so Linux checks them


WANTED = sum(Offer)  # each of the above, and nothing else: the inverse of none would be every bit
NEEDED = Offer.NO_OPEN_SUPPORT | Offer.NO_OPENDIR_SUPPORT  # files have no handles here


class Notice(IntEnum):
    """What the kernel is told without having asked."""

    INVALIDATE_INODE = 2
    INVALIDATE_ENTRY = 3
    RESEND = 7


_HEADER = struct.Struct("=IIQQIIIHH")
_ANSWER = struct.Struct("=IiQ")
_INIT_IN = struct.Struct("=IIII")
_INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
_ATTRIBUTES = "QQQQQQIIIIIIIIII"
_ATTRIBUTES_OUT = struct.Struct("=QII" + _ATTRIBUTES)
_ENTRY_OUT = struct.Struct("=QQQQII" + _ATTRIBUTES)
_FORGET_IN = struct.Struct("=Q")
_FORGET_ONE = struct.Struct("=QQ")
_READ_IN = struct.Struct("=QQI20x")
_XATTR_IN = struct.Struct("=II")
_STATFS_OUT = struct.Struct("=QQQQQIII28x")
_DIRENT = struct.Struct("=QQII")
_INVALIDATE_INODE = struct.Struct("=Qqq")
_INVALIDATE_ENTRY = struct.Struct("=QII")
_UNKNOWN_ENTRY = bytes(_ENTRY_OUT.size)


class MessageError(MalformedError):
    """A message that the kernel never sends."""


@dataclass(frozen=True, slots=True)
class Request:
    """One message of the kernel."""

    operation: int
    unique: int
    inode: int
    body: bytes


def parse(message: bytes) -> Request:
    """Raises MessageError."""
    if len(message) < _HEADER.size:
        raise MessageError(f"a message of {len(message)} bytes")
    length, operation, unique, inode, _, _, _, extensions, _ = _HEADER.unpack_from(message)
    end = length - extensions * 8
    if length != len(message) or end < _HEADER.size:
        raise MessageError(
            f"a message of {len(message)} bytes says that it has {length}, {extensions * 8} of them extra"
        )
    return Request(operation, unique, inode, message[_HEADER.size : end])


@dataclass(frozen=True, slots=True)
class Hello:
    """What the kernel says first."""

    major: int
    minor: int
    readahead_bytes: int
    offers: int


def _unpack(layout: struct.Struct, body: bytes) -> tuple[int, ...]:
    if len(body) < layout.size:
        raise MessageError(f"a body of {len(body)} bytes where {layout.size} are needed")
    return layout.unpack_from(body)


def parse_init(body: bytes) -> Hello:
    """Raises MessageError."""
    major, minor, readahead, flags = _unpack(_INIT_IN, body)
    if flags & Offer.INIT_EXT and len(body) >= _INIT_IN.size + 4:
        flags |= int.from_bytes(body[_INIT_IN.size : _INIT_IN.size + 4], "little" if _IS_LITTLE else "big") << 32
    return Hello(major, minor, readahead, flags)


_IS_LITTLE = struct.pack("=H", 1) == b"\x01\x00"


def init_answer(hello: Hello) -> bytes:
    """Take all that is wanted and offered. Raises MessageError: the kernel is too old, or speaks another protocol."""
    if hello.major != MAJOR or hello.minor < LEAST_MINOR or NEEDED & ~hello.offers:
        raise MessageError(f"the kernel speaks FUSE {hello.major}.{hello.minor}; 7.31 (Linux 5.4) or later is needed")
    taken = WANTED & hello.offers
    return _INIT_OUT.pack(
        MAJOR,
        min(hello.minor, MOST_MINOR),
        max(hello.readahead_bytes, READ_LIMIT_BYTES),
        taken & _U32,
        _BACKGROUND,
        _CONGESTION,
        _WRITE_BYTES,
        _TIME_GRAIN_NS,
        READ_LIMIT_BYTES // BLOCK_BYTES,
        0,
        taken >> 32,
    )


def parse_name(body: bytes) -> bytes:
    """The name that a look-up is for. Raises MessageError."""
    name, end, rest = body.partition(b"\0")
    if not end or rest or not name or len(name) > NAME_LIMIT_BYTES or b"/" in name:
        raise MessageError("a look-up without a proper name")
    return name


def parse_forget(body: bytes) -> int:
    """How many look-ups of one inode are forgotten. Raises MessageError."""
    return _unpack(_FORGET_IN, body)[0]


def parse_forgets(body: bytes) -> list[tuple[int, int]]:
    """Inodes, and how many look-ups of each are forgotten. Raises MessageError."""
    count, _ = _unpack(_XATTR_IN, body)
    if len(body) != _XATTR_IN.size + count * _FORGET_ONE.size:
        raise MessageError(f"{count} inodes to forget in {len(body)} bytes")
    return list(_FORGET_ONE.iter_unpack(body[_XATTR_IN.size :]))


def parse_read(body: bytes) -> tuple[int, int]:
    """Offset and size; of READDIR and READDIRPLUS too. Raises MessageError."""
    _, offset, size = _unpack(_READ_IN, body)
    if size > READ_LIMIT_BYTES:
        raise MessageError(f"a read of {size} bytes")
    return offset, size


def parse_getxattr(body: bytes) -> tuple[int, bytes]:
    """Room for the value, and the attribute's name. Raises MessageError."""
    size, _ = _unpack(_XATTR_IN, body)
    name, end, rest = body[_XATTR_IN.size :].partition(b"\0")
    if not end or rest or not name or len(name) > _XATTR_NAME_LIMIT_BYTES:
        raise MessageError("an attribute without a proper name")
    return size, name


def parse_listxattr(body: bytes) -> int:
    """Room for the names. Raises MessageError."""
    return _unpack(_XATTR_IN, body)[0]


def answer_header(unique: int, body_bytes: int) -> bytes:
    """What goes before the body of an answer."""
    return _ANSWER.pack(_ANSWER.size + body_bytes, 0, unique)


def error_answer(unique: int, code: int) -> bytes:
    """The whole answer to a request that fails with errno *code*."""
    return _ANSWER.pack(_ANSWER.size, -code, unique)


def _fields(attributes: Attributes) -> tuple[int, ...]:
    seconds, rest_ns = divmod(attributes.mtime_ns, _SECOND_NS)
    seconds &= _U64  # the kernel takes it as signed
    return (
        attributes.inode,
        attributes.size & _U64,
        attributes.blocks & _U64,
        seconds,
        seconds,
        seconds,
        rest_ns,
        rest_ns,
        rest_ns,
        attributes.mode & _U32,
        attributes.nlink & _U32,
        attributes.uid & _U32,
        attributes.gid & _U32,
        attributes.rdev & _U32,
        BLOCK_BYTES,
        0,
    )


def attributes_answer(attributes: Attributes, valid_s: int) -> bytes:
    """Body of the answer to GETATTR."""
    return _ATTRIBUTES_OUT.pack(valid_s, 0, 0, *_fields(attributes))


def entry_answer(attributes: Attributes, valid_s: int) -> bytes:
    """Body of the answer to LOOKUP."""
    return _ENTRY_OUT.pack(attributes.inode, 0, valid_s, valid_s, 0, 0, *_fields(attributes))


def absent_answer(valid_s: int) -> bytes:
    """Body of the answer to LOOKUP that says that there is nothing, and that this may be kept."""
    return struct.pack("=QQQ", 0, 0, valid_s) + _UNKNOWN_ENTRY[24:]


def statfs_answer(numbers: Statistics) -> bytes:
    """Body of the answer to STATFS."""
    return _STATFS_OUT.pack(
        numbers.blocks,
        numbers.free_blocks,
        numbers.free_blocks,
        numbers.files,
        numbers.free_files,
        BLOCK_BYTES,
        NAME_LIMIT_BYTES,
        BLOCK_BYTES,
    )


def xattr_size_answer(size: int) -> bytes:
    """Body of the answer to GETXATTR and LISTXATTR that ask how long the answer would be."""
    return _XATTR_IN.pack(size, 0)


def directory_entry(inode: int, offset: int, mode: int, name: bytes) -> bytes:
    """One record of READDIR; *offset* is where the listing goes on after it."""
    record = _DIRENT.pack(inode, offset, len(name), mode >> 12) + name
    return record + bytes(-len(record) % 8)


def full_directory_entry(entry: bytes | None, record: bytes) -> bytes:
    """One record of READDIRPLUS: *entry* as in the answer to LOOKUP, None for dots, which are not counted."""
    return (_UNKNOWN_ENTRY if entry is None else entry) + record


def joined_names(names: Iterable[bytes]) -> bytes:
    """Names of attributes as LISTXATTR gives them."""
    return b"".join(name + b"\0" for name in names)


def _notice(code: Notice, body: bytes) -> bytes:
    return _ANSWER.pack(_ANSWER.size + len(body), code, 0) + body


def invalidate_pages(inode: int) -> bytes:
    """Notice: the attributes of *inode* and what is kept of it (of a directory: the listing) have changed."""
    return _notice(Notice.INVALIDATE_INODE, _INVALIDATE_INODE.pack(inode, 0, 0))


def invalidate_entry(parent: int, name: bytes) -> bytes:
    """Notice: *name* in directory *parent* has changed."""
    return _notice(Notice.INVALIDATE_ENTRY, _INVALIDATE_ENTRY.pack(parent, len(name), 0) + name + b"\0")


def resend() -> bytes:
    """Notice: ask again for everything that was read and not answered. Linux 6.9 and later."""
    return _notice(Notice.RESEND, b"")
