"""Bundles: many small objects in one answer of a server. See docs/format/bundle.md.

A bundle is asked for by the names of its objects, separated by commas, below ``bundle/``. The answer has one part for
each name, in their order:

=====  =====================================================
bytes  meaning
=====  =====================================================
4      length, little-endian; ``FFFFFFFF``: it is not given
length the object as it is stored
=====  =====================================================

Nothing in a bundle is believed because it is in there: each object is verified against its name.
"""

import re
from collections.abc import Iterable, Sequence

from fs.errors import MalformedError

PREFIX = "bundle/"
MOST_OBJECTS = 64
MOST_BYTES = 4 << 20
"""As much is in one bundle; what does not fit is not given."""
MOST_OBJECT_BYTES = 1 << 18
"""A larger object is not given."""

_NAME = re.compile(r"[0-9a-f]{40}(?:-rmd160|-shake128)?[CHLMPX]?")
_NOT_GIVEN = 0xFFFFFFFF
_LENGTH_BYTES = 4


def bundle_path(names: Sequence[str]) -> str:
    """Where the bundle of the objects *names* is, below the repository's root."""
    return PREFIX + ",".join(names)


def parse_bundle_path(path: str) -> list[str]:
    """Inverse of ``bundle_path``. Raises MalformedError."""
    names = path.removeprefix(PREFIX).split(",")
    if not path.startswith(PREFIX) or len(names) > MOST_OBJECTS or not all(map(_NAME.fullmatch, names)):
        raise MalformedError("not the names of objects, or too many")
    return names


def object_path(name: str) -> str:
    """Where the object called *name* is, below the repository's root."""
    return f"data/{name[:2]}/{name[2:]}"


def encode_bundle(parts: Iterable[bytes | None]) -> bytes:
    """The bundle of *parts*; None is what is not given."""
    pieces: list[bytes] = []
    for part in parts:
        pieces.append((_NOT_GIVEN if part is None else len(part)).to_bytes(_LENGTH_BYTES, "little"))
        pieces.append(part or b"")
    return b"".join(pieces)


def decode_bundle(bundle: bytes, count: int) -> list[bytes | None]:
    """Inverse of ``encode_bundle`` for *count* parts. Raises MalformedError."""
    parts: list[bytes | None] = []
    position = 0
    for _ in range(count):
        start = position + _LENGTH_BYTES
        length = int.from_bytes(bundle[position:start], "little")
        if start > len(bundle):
            raise MalformedError("a bundle ends within a length")
        position = start
        if length == _NOT_GIVEN:
            parts.append(None)
            continue
        position += length
        if position > len(bundle):
            raise MalformedError("a bundle ends within an object")
        parts.append(bundle[start:position])
    if position != len(bundle):
        raise MalformedError("something follows the last object of a bundle")
    return parts
