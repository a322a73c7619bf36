"""The schema of file catalogs, and entries as rows of it.

Source: CernVM-FS 2.12, catalog_sql.cc, catalog_sql.h.
"""

import stat
from collections.abc import Sequence
from functools import cache
from typing import Any

from fs.errors import HashSyntaxError
from fs.format.columns import as_bytes
from fs.format.compression import Compression
from fs.format.entries import Entry, Flag, type_flags
from fs.format.hashes import DIGEST_BYTES, Algorithm, Hash
from fs.format.paths import ROOT, name_of, parent_path, path_key
from fs.format.xattrs import decode_xattrs, encode_xattrs

SCHEMA_VERSION = "2.5"
SCHEMA_REVISION = "7"
DEFAULT_TTL_S = 240
NO_PREDECESSOR = "0" * 40
"""``previous_revision`` of a catalog that has none."""

SCHEMA = """
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE catalog (md5path_1 INTEGER, md5path_2 INTEGER, parent_1 INTEGER, parent_2 INTEGER,
  hardlinks INTEGER, hash BLOB, size INTEGER, mode INTEGER, mtime INTEGER, mtimens INTEGER,
  flags INTEGER, name TEXT, symlink TEXT, uid INTEGER, gid INTEGER, xattr BLOB,
  CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2));
CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2);
CREATE TABLE chunks (md5path_1 INTEGER, md5path_2 INTEGER, offset INTEGER, size INTEGER, hash BLOB,
  CONSTRAINT pk_chunks PRIMARY KEY (md5path_1, md5path_2, offset, size),
  FOREIGN KEY (md5path_1, md5path_2) REFERENCES catalog(md5path_1, md5path_2));
CREATE TABLE nested_catalogs (path TEXT, sha1 TEXT, size INTEGER, CONSTRAINT pk_nested_catalogs PRIMARY KEY (path));
CREATE TABLE bind_mountpoints (path TEXT, sha1 TEXT, size INTEGER,
  CONSTRAINT pk_bind_mountpoints PRIMARY KEY (path));
CREATE TABLE statistics (counter TEXT, value INTEGER, CONSTRAINT pk_statistics PRIMARY KEY (counter));
"""

LINKS_SCHEMA = """
CREATE TABLE unpackd_links (md5path_1 INTEGER, md5path_2 INTEGER, link_group INTEGER, linkcount INTEGER,
  CONSTRAINT pk_unpackd_links PRIMARY KEY (md5path_1, md5path_2));
"""
"""What the reference schema cannot express of link counts. The table exists only in catalogs that need it.

Hard links whose names lie in several directories: the rows of ``catalog`` say link count 1 for them, so every other
reader sees independent files with equal content; readers that know this table see one inode. Directories that have
hidden directories in them: the rows of ``catalog`` count those, as the reference's checker demands; here, with the link
group 0, stands the link count without them, which is what readers that know this table show.
"""

INSERT_ENTRY = (
    "INSERT OR REPLACE INTO catalog (md5path_1, md5path_2, parent_1, parent_2, hardlinks, hash, size, mode, mtime,"
    " mtimens, flags, name, symlink, uid, gid, xattr)"
    # names are bytes: bound as blobs, stored as text whatever their encoding
    " VALUES (?,?,?,?,?,?,?,?,?,?,?,CAST(? AS TEXT),CAST(? AS TEXT),?,?,?)"
)
INSERT_CHUNK = "INSERT OR REPLACE INTO chunks (md5path_1, md5path_2, offset, size, hash) VALUES (?,?,?,?,?)"

_NS = 1_000_000_000
_HASH_SHIFT, _HASH_MASK = 8, 7
_COMPRESSION_SHIFT, _COMPRESSION_MASK = 11, 7
_GROUP_SHIFT, _COUNT_MASK = 32, 0xFFFFFFFF

COLUMNS = "{hardlinks}, hash, size, mode, mtime, {mtimens}, flags, name, symlink, {uid}, {gid}, {xattr}, rowid"

ABSENT_COLUMNS = {"hardlinks": "1", "mtimens": "NULL", "uid": "0", "gid": "0", "xattr": "NULL"}
"""What stands for columns that older schemas lack."""

Row = tuple[
    int,
    int,
    int,
    int,
    int,
    bytes | None,
    int,
    int,
    int,
    int | None,
    int,
    bytes,
    bytes,
    int,
    int,
    bytes | None,
]


def entry_row(path: bytes, entry: Entry) -> Row:
    """The row, in the order of INSERT_ENTRY, that stores *entry* at canonical *path*.

    The type bits follow from the mode; a hash algorithm and a compression are written for regular files only.
    """
    flags = int(entry.flags | type_flags(entry.mode))
    if entry.hash is not None or entry.has(Flag.CHUNKED):
        flags |= entry.algorithm.flag_number << _HASH_SHIFT
    if entry.is_regular:
        flags |= entry.compression.value << _COMPRESSION_SHIFT
    seconds, nanoseconds = divmod(entry.mtime_ns, _NS)
    parent = (0, 0) if path == ROOT else path_key(parent_path(path))
    return (
        *path_key(path),
        *parent,
        hardlinks_of(entry),
        entry.hash.digest if entry.hash else None,
        _stored_size(entry),
        entry.mode,
        seconds,
        nanoseconds,
        flags,
        name_of(path),
        entry.target,
        entry.uid,
        entry.gid,
        encode_xattrs(entry.xattrs),
    )


def _stored_size(entry: Entry) -> int:
    if entry.is_symlink:
        return len(entry.target)
    if stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode):
        return entry.rdev
    return entry.size


def entry_of(row: Sequence[Any]) -> Entry:
    """What a row of COLUMNS says.

    Raises:
        TypeError, ValueError, HashSyntaxError: it is no entry.
    """
    hardlinks, digest, size, mode, mtime, mtimens, bits, name, symlink, uid, gid, xattr, rowid = row
    check_numbers(hardlinks, size, mode, mtime, mtimens or 0, bits, uid, gid)
    algorithm = algorithm_of(bits)
    uncompressed = bits >> _COMPRESSION_SHIFT & _COMPRESSION_MASK
    is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
    return Entry(
        name=as_bytes(name),
        mode=mode,
        uid=uid,
        gid=gid,
        size=size if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else 0,
        mtime_ns=mtime * _NS + (mtimens or 0),
        hash=None if digest is None else hash_of(digest, algorithm),
        compression=Compression.NONE if uncompressed else Compression.ZLIB,
        algorithm=algorithm,
        target=as_bytes(symlink),
        rdev=size if is_device else 0,
        linkcount=hardlinks & _COUNT_MASK,
        link_group=hardlinks >> _GROUP_SHIFT,
        xattrs=decode_xattrs(xattr) if xattr is not None else {},
        flags=_flags(bits & _FLAG_BITS),
        rowid=rowid,
    )


def algorithm_of(bits: int) -> Algorithm:
    """The hash algorithm that the column ``flags`` names. Raises HashSyntaxError."""
    return Algorithm.from_flag_number(bits >> _HASH_SHIFT & _HASH_MASK)


def hardlinks_of(entry: Entry) -> int:
    """The column ``hardlinks``."""
    return entry.link_group << _GROUP_SHIFT | entry.linkcount


def check_numbers(*values: int) -> None:
    """Refuse what a hostile database may hold in place of numbers: text, blobs, negative sizes, modes without type."""
    if set(map(type, values)) != _NUMBERS:
        raise TypeError("not a number")
    hardlinks, size, mode, mtime, *others = values
    if min(hardlinks, size, mode, *others) < 0 or mode >> 16 or not stat.S_IFMT(mode) or abs(mtime) >> 40:
        raise ValueError("out of range")


_NUMBERS = {int}
_FLAG_BITS = sum(flag.value for flag in Flag)


@cache
def _flags(bits: int) -> Flag:
    """``Flag(bits)``, of which there are few in use."""
    return Flag(bits)


def hash_of(digest: bytes, algorithm: Algorithm) -> Hash:
    """The name of an object. Raises HashSyntaxError."""
    if not isinstance(digest, bytes) or len(digest) != DIGEST_BYTES:
        raise HashSyntaxError(repr(digest))
    return Hash(digest, algorithm)
