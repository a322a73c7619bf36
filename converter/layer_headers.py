"""Headers of tar archives as layers have them: ustar, GNU, pax. PURE.

======  =====  ===========================================  ======  =====  ================================
offset  bytes  field                                        offset  bytes  field
======  =====  ===========================================  ======  =====  ================================
0       100    name                                         156     1      type
100     8      mode                                         157     100    link name
108     8      uid                                          257     8      magic and version
116     8      gid                                          265     64     user and group name (not used)
124     12     size                                         329     8      device major
136     12     mtime                                        337     8      device minor
148     8      checksum                                     345     155    prefix of the name (ustar only)
======  =====  ===========================================  ======  =====  ================================

Numbers are octal text, or base-256 if the first bit is set. Sources: POSIX.1-2017, pax, "ustar Interchange Format" and
"pax Extended Header"; GNU tar manual, "Basic Tar Format" and "Storing Sparse Files".
"""

import base64
import binascii
import struct
from typing import NamedTuple
from urllib.parse import unquote_to_bytes
from zlib import adler32

from converter.errors import LayerError

BLOCK_BYTES = 512

_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155s12x")
_USTAR_MAGIC = b"ustar\x0000"
_CHECKSUM = slice(148, 156)
_CHECKSUM_AS_BLANKS = 8 * 0x20
_ADLER = 0xFFFF
_STAR_TRAILER = (slice(508, 512), b"tar\0", 131)  # schily's star keeps two times behind a shorter prefix
_LONGEST_LENGTH = 20  # digits of a pax record's length that are looked at
_NANOSECOND_DIGITS = 9
_BINARY_NEGATIVE, _BINARY_POSITIVE = 0xFF, 0x80
_MAX_MAJOR, _MAX_MINOR = 0xFFF, 0xFFFFF


class Header(NamedTuple):
    """One header block. A tuple, not a dataclass: one is made for every member, and this is five times as quick."""

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    kind: bytes
    link: bytes
    major: bytes  # of device nodes only, so parsed only for them
    minor: bytes


def parse_header(block: bytes) -> Header:
    """The header in *block*, which is BLOCK_BYTES long.

    Raises:
        LayerError: the checksum or a number is wrong.
    """
    name, mode, uid, gid, size, mtime, checksum, kind, link, magic, major, minor, prefix = _FIELDS.unpack(block)
    name = name.partition(b"\0")[0]
    # The low half of Adler-32 is one more than the sum of the bytes while that is below 65,521: half a block always is.
    total = (adler32(block[:256]) & _ADLER) + (adler32(block[256:]) & _ADLER) - 2
    try:
        stated = parse_number(checksum)
        if stated != total - sum(checksum) + _CHECKSUM_AS_BLANKS and stated != _signed_checksum(block):
            raise LayerError("its tar header has a wrong checksum", name)
        if magic == _USTAR_MAGIC and prefix[0]:
            where, trailer, length = _STAR_TRAILER
            prefix = (prefix[:length] if block[where] == trailer else prefix).partition(b"\0")[0]
            name = prefix + b"/" + name
        return Header(
            name,
            parse_number(mode),
            parse_number(uid),
            parse_number(gid),
            parse_number(size),
            parse_number(mtime),
            kind,
            link.partition(b"\0")[0],
            major,
            minor,
        )
    except ValueError as error:
        raise LayerError(f"its tar header has a malformed number ({error})", name) from error


def parse_number(field: bytes) -> int:
    """A number: octal text, or base-256, which may be negative. Raises ValueError."""
    digits = field.rstrip(b"\0 ")
    if digits.isdigit():
        return int(digits, 8)
    if not digits:
        return 0
    if digits[0] & 0x80:
        return _base_256(field)
    digits = field.strip(b"\0 ").partition(b"\0")[0].rstrip(b" ")
    if not digits.isdigit():  # int() also takes signs, underscores and prefixes; tar does not
        raise ValueError(repr(field))
    return int(digits, 8)


def _base_256(field: bytes) -> int:
    if field[0] == _BINARY_NEGATIVE or field[0] & 0x40:
        return int.from_bytes(field, "big", signed=True)
    return int.from_bytes(bytes((field[0] ^ _BINARY_POSITIVE,)) + field[1:], "big")


def _signed_checksum(block: bytes) -> int:
    """What old Sun tars wrote: the sum of the bytes as signed ones."""
    rest = block[: _CHECKSUM.start] + block[_CHECKSUM.stop :]
    return sum(rest) - 256 * sum(byte >> 7 for byte in rest) + _CHECKSUM_AS_BLANKS


def device_number(header: Header) -> tuple[int, int]:
    """Major and minor number of a device node.

    Raises:
        LayerError: Linux has no such device.
    """
    try:
        major, minor = parse_number(header.major), parse_number(header.minor)
    except ValueError as error:
        raise LayerError(f"its device number is malformed ({error})", header.name) from error
    if not (0 <= major <= _MAX_MAJOR and 0 <= minor <= _MAX_MINOR):
        raise LayerError(f"Linux has no device {major}:{minor}", header.name)
    return major, minor


def parse_records(body: bytes) -> list[tuple[bytes, bytes]]:
    """Keyword and value of each record of a pax header, in order: length, blank, keyword, ``=``, value, newline.

    Raises:
        LayerError: a record is malformed.
    """
    records = []
    at = 0
    while at < len(body):
        blank = body.find(b" ", at, at + _LONGEST_LENGTH)
        digits = body[at:blank] if blank > at else b""
        end = at + int(digits) if digits.isdigit() else 0
        equals = body.find(b"=", blank + 1, end)
        if end > len(body) or equals <= blank + 1 or body[end - 1 : end] != b"\n":
            raise LayerError("an extended header holds a malformed record")
        records.append((body[blank + 1 : equals], body[equals + 1 : end - 1]))
        at = end
    return records


def parse_decimal(value: bytes, what: str) -> int:
    """A decimal number of a pax record.

    Raises:
        LayerError: it is none, or is longer than any number that makes sense.
    """
    digits = value.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > _LONGEST_LENGTH:
        raise LayerError(f"its {what} is not a number")
    return int(value)


def parse_time_ns(value: bytes) -> int:
    """A time of a pax record, ``[-]seconds[.fraction]``, in nanoseconds; further digits are cut off.

    Raises:
        LayerError: it is none.
    """
    whole, _, fraction = value.partition(b".")
    if fraction and not fraction.isdigit():
        raise LayerError("its mtime is not a number")
    nanoseconds = int(fraction[:_NANOSECOND_DIGITS].ljust(_NANOSECOND_DIGITS, b"0"))
    sign = -1 if whole.startswith(b"-") else 1
    return parse_decimal(whole, "mtime") * 10**9 + sign * nanoseconds


def parse_xattrs(records: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """The extended attributes in *records*; if both dialects hold an attribute, star's counts.

    ``SCHILY.xattr.<name>`` has the bytes themselves; ``LIBARCHIVE.xattr.<name>`` has the name percent-encoded and the
    value in base64 without padding. Sources: star(5), "SCHILY.xattr"; libarchive, tar(5).

    Raises:
        LayerError: an attribute is malformed.
    """
    found: dict[bytes, bytes] = {}
    for key, value in records.items():
        if key.startswith(b"LIBARCHIVE.xattr."):
            name = unquote_to_bytes(key.removeprefix(b"LIBARCHIVE.xattr."))
            try:
                found.setdefault(name, base64.b64decode(value + b"=" * (-len(value) % 4), validate=True))
            except binascii.Error as error:
                raise LayerError("an extended attribute is not base64") from error
        elif key.startswith(b"SCHILY.xattr."):
            found[key.removeprefix(b"SCHILY.xattr.")] = value
    if any(not name or b"\0" in name for name in found):
        raise LayerError("an extended attribute has no name, or a NUL in it")
    return found
