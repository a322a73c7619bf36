"""The blob that holds an entry's extended attributes.

========  =======================================
bytes     meaning
========  =======================================
1         version, 1
1         number of attributes
per one   key length (1), value length (1), key, value
========  =======================================

Keys ascend byte-wise. Source: CernVM-FS 2.12, xattr.h and xattr.cc.
"""

from collections.abc import Mapping

from fs.errors import RefusedError

_VERSION = 1
_LONGEST = 255
_HEADER = 2


def encode_xattrs(attributes: Mapping[bytes, bytes]) -> bytes | None:
    """The blob for *attributes*; None for none at all.

    Raises:
        RefusedError: the format cannot hold one of them.
    """
    if not attributes:
        return None
    if len(attributes) > _LONGEST:
        raise RefusedError(f"{len(attributes)} extended attributes; the format holds {_LONGEST}")
    blob = bytearray((_VERSION, len(attributes)))
    for key in sorted(attributes):
        value = attributes[key]
        if not key or b"\0" in key or len(key) > _LONGEST or len(value) > _LONGEST:
            raise RefusedError(
                f"extended attribute {key!r} of {len(value)} bytes; names and values of 1 to {_LONGEST} bytes fit"
            )
        blob += bytes((len(key), len(value))) + key + value
    return bytes(blob)


def decode_xattrs(blob: bytes | None) -> dict[bytes, bytes]:
    """Inverse of ``encode_xattrs``; an invalid blob holds no attributes, as in the reference client."""
    if blob is None or len(blob) < _HEADER or blob[0] != _VERSION:
        return {}
    attributes: dict[bytes, bytes] = {}
    position = _HEADER
    for _ in range(blob[1]):
        if position + 2 > len(blob):
            return {}
        key_end = position + 2 + blob[position]
        value_end = key_end + blob[position + 1]
        if blob[position] == 0 or value_end > len(blob):
            return {}
        attributes[blob[position + 2 : key_end]] = blob[key_end:value_end]
        position = value_end
    return attributes
