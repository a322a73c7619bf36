"""What catalogs say: entries, references to nested catalogs, counters; as values, whatever holds them.

Source: CernVM-FS 2.12, directory_entry.h, catalog_counters.h.
"""

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntFlag
from typing import NamedTuple

from fs.format.compression import Compression
from fs.format.hashes import Algorithm, Hash

DIRECTORY_SIZE = 4096
"""What directories state as their size."""

_LONGEST_NAME = 255


class Flag(IntFlag):
    """Bits of the column ``flags`` that are not numbers."""

    DIRECTORY = 1
    NESTED_MOUNTPOINT = 2
    FILE = 4
    LINK = 8
    SPECIAL = 16
    NESTED_ROOT = 32
    CHUNKED = 64
    EXTERNAL = 128
    BIND_MOUNTPOINT = 0x4000
    HIDDEN = 0x8000
    DIRECT_IO = 0x10000


NO_FLAGS = Flag(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of a catalog, as a reader wants it.

    ``size`` is what a file's content must have; symlinks and devices have their own fields. The content of a chunked
    file is asked from the catalog (``Catalog.content``).
    """

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    hash: Hash | None = None
    compression: Compression = Compression.ZLIB
    algorithm: Algorithm = Algorithm.SHA1  # of the content, also where hash is None (chunked)
    target: bytes = b""
    rdev: int = 0
    linkcount: int = 1
    link_group: int = 0  # equal numbers in one catalog mean one inode; 0 is none
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    flags: Flag = NO_FLAGS
    rowid: int = 0

    def has(self, flag: Flag) -> bool:
        """True if *flag* is set. Not by ``&``, which makes a new Flag and takes ten times as long."""
        return int.__and__(self.flags, flag) != 0

    @property
    def is_directory(self) -> bool:
        """True for directories, nested and bind mount points included."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        """True for regular files."""
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        """True for symbolic links."""
        return stat.S_ISLNK(self.mode)


class Name(NamedTuple):
    """What a directory lists, without what the row says of it."""

    rowid: int
    name: bytes
    is_shown: bool  # false for hidden entries, and for rows that a look-up by name would not find


def type_flags(mode: int) -> Flag:
    """The type bits that belong to *mode*."""
    match stat.S_IFMT(mode):
        case stat.S_IFDIR:
            return Flag.DIRECTORY
        case stat.S_IFLNK:
            return Flag.FILE | Flag.LINK
        case stat.S_IFREG:
            return Flag.FILE
        case _:
            return Flag.FILE | Flag.SPECIAL


@dataclass(frozen=True, slots=True)
class NestedReference:
    """A row of ``nested_catalogs`` or ``bind_mountpoints``."""

    path: bytes
    hash: Hash
    size: int  # of the uncompressed database; 0 if unknown
    is_bind: bool = False


COUNTER_NAMES = (
    "regular",
    "symlink",
    "special",
    "dir",
    "nested",
    "chunked",
    "chunks",
    "file_size",
    "chunked_size",
    "xattr",
    "external",
    "external_file_size",
)


@dataclass(frozen=True, slots=True)
class Counters:
    """The 24 numbers of the table ``statistics``: of the catalog itself, and of all below it."""

    own: Mapping[str, int]
    subtree: Mapping[str, int]

    @property
    def total(self) -> dict[str, int]:
        """Own plus subtree, by counter."""
        return {name: self.own[name] + self.subtree[name] for name in COUNTER_NAMES}


def count_entry(counters: dict[str, int], entry: Entry, *, chunks: int = 0, sign: int = 1) -> None:
    """Add (*sign* 1) or take away (-1) what *entry* contributes to its catalog's own counters."""
    kind = type_flags(entry.mode)
    if entry.xattrs:
        counters["xattr"] += sign
    if kind & Flag.DIRECTORY:
        counters["dir"] += sign
    elif kind & Flag.LINK:
        counters["symlink"] += sign
    elif kind & Flag.SPECIAL:
        counters["special"] += sign
    else:
        counters["regular"] += sign
        counters["file_size"] += sign * entry.size
        if entry.has(Flag.CHUNKED):
            counters["chunked"] += sign
            counters["chunked_size"] += sign * entry.size
            counters["chunks"] += sign * chunks
        if entry.has(Flag.EXTERNAL):
            counters["external"] += sign
            counters["external_file_size"] += sign * entry.size


def is_name(name: bytes) -> bool:
    """True if a file can have *name*."""
    return name not in (b"", b".", b"..") and b"/" not in name and b"\0" not in name and len(name) <= _LONGEST_NAME
