"""Canonical paths and their MD5 keys.

A canonical path starts with a slash and has none at its end; the root is empty. Bytes are not normalised.
Source: CernVM-FS 2.12, crypto/hash.h (``Md5::ToIntPair``), catalog_sql.h.
"""

import hashlib
import struct

from fs.errors import RefusedError

ROOT = b""
_PAIR = struct.Struct("<qq")


def path_key(path: bytes) -> tuple[int, int]:
    """The two little-endian signed 64-bit halves of the MD5 of canonical *path*: ``md5path_1``, ``md5path_2``."""
    first, second = _PAIR.unpack(hashlib.md5(path, usedforsecurity=False).digest())
    return first, second


def parent_path(path: bytes) -> bytes:
    """The directory that holds *path*; the root's is the root."""
    return path.rpartition(b"/")[0]


def name_of(path: bytes) -> bytes:
    """The last component of *path*; the root's is empty."""
    return path.rpartition(b"/")[2]


def components(path: bytes) -> list[bytes]:
    """The names along canonical *path*; none for the root."""
    return path.split(b"/")[1:]


def is_below(path: bytes, ancestor: bytes) -> bool:
    """True if *path* is *ancestor* or lies below it."""
    return path == ancestor or path.startswith(ancestor + b"/")


def canonical(text: str | bytes) -> bytes:
    """The canonical form of an absolute or relative path given by a user.

    Raises:
        RefusedError: it holds ``.``, ``..`` or a NUL.
    """
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    names = [name for name in raw.split(b"/") if name]
    if any(name in (b".", b"..") or b"\0" in name for name in names):
        raise RefusedError(f"{raw!r} is not a path inside a repository")
    return b"".join(b"/" + name for name in names)
