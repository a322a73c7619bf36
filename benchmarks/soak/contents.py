"""Files that prove themselves: every block says which file, version and block it is, and the rest follows from that.

So a reader needs nothing but the bytes to know that they are right, and of which version.
"""

import hashlib
import struct

BLOCK_BYTES = 1 << 16
LEAST_BYTES = 64
_HEAD = struct.Struct("<QQQ")


class WrongBytesError(Exception):
    """What was read is not what was written."""


def size_of(file: int, version: int, around_bytes: int) -> int:
    """How long *file* is in *version*: around *around_bytes*, and seldom the same twice."""
    spread = int.from_bytes(hashlib.blake2b(b"%d %d" % (file, version), digest_size=4).digest(), "little")
    return LEAST_BYTES + around_bytes // 2 + spread % max(1, around_bytes)


def block(file: int, version: int, number: int, length: int) -> bytes:
    """Block *number*, of which the last one of a file has less than BLOCK_BYTES."""
    head = _HEAD.pack(file, version, number)
    return (head + hashlib.shake_128(head).digest(max(0, length - len(head))))[:length]


def content(file: int, version: int, size: int) -> bytes:
    """The whole file."""
    return b"".join(
        block(file, version, start // BLOCK_BYTES, min(BLOCK_BYTES, size - start))
        for start in range(0, size, BLOCK_BYTES)
    )


def check_block(data: bytes, file: int, number: int) -> int:
    """The version that *data*, a whole block of *file*, is of. Raises WrongBytesError."""
    if len(data) < _HEAD.size:
        raise WrongBytesError(f"block {number} has {len(data)} bytes")
    version = _HEAD.unpack_from(data)[1]
    if data != block(file, version, number, len(data)):
        stated = _HEAD.unpack_from(data)
        raise WrongBytesError(f"block {number} of file {file} is not itself; it begins with {stated}")
    return version
