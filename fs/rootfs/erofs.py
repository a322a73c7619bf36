"""EROFS images that hold the metadata of a tree: names, attributes, extended attributes, directories; files are holes.

Mounted as the upper lower layer of an overlay whose data-only layer has the contents, such an image lets the kernel
answer every ``stat``, ``readdir`` and ``getxattr`` of a root file system by itself. An image can hold the data of some
files, too: those are read without the data-only layer.

Layout: block 0 holds the superblock; inodes follow from block 1 on, each with its extended attributes and its inline
data; blocks of directories and files that do not fit inline stand behind all inodes. All numbers are little-endian.

Superblock (at offset 1024, 128 bytes), as far as it is not zero:

======  =====  =============================================
offset  bytes  meaning
======  =====  =============================================
0       4      magic
8       4      compatible features
12      1      log2 of the block size
14      2      number of the root's inode slot
16      8      number of inodes
36      4      number of blocks
40      4      block at which inode slot 0 begins
48      16     UUID
80      4      incompatible features
======  =====  =============================================

Inode (64 bytes, in slots of 32): see ``_INODE``. Source: Linux, fs/erofs/erofs_fs.h and
Documentation/filesystems/erofs.rst.
"""

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fs.errors import RefusedError
from fs.format.tree import Node

BLOCK_BITS = 12
BLOCK = 1 << BLOCK_BITS
_SLOT = 32
_META_BLOCK = 1
_MAGIC = 0xE0F5E1E2
_SUPER_OFFSET = 1024
_SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x")
_INODE = struct.Struct("<HHHHQIIIIQII16x")  # format, xattrs, mode, -, size, union, ino, uid, gid, mtime, ns, links
_DIRENT = struct.Struct("<QHBx")
_XATTR_HEADER = struct.Struct("<IB7x")
_XATTR_ENTRY = struct.Struct("<BBH")

_COMPAT_MTIME = 2  # the times of compact inodes are modification times, too
_INCOMPAT_CHUNKED = 4

_EXTENDED = 1
_PLAIN = 0 << 1
_INLINE = 2 << 1
_CHUNKED = 4 << 1
_WHOLE_FILE_CHUNK = 31  # log2 of blocks in a chunk: one chunk covers any file
_HOLE = b"\xff\xff\xff\xff"

_FILE_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
_XATTR_PREFIXES = (
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
)
_LONGEST_NAME = 255
_LONGEST_VALUE = 0xFFFF

LARGEST_HELD_BYTES = 1 << 16
"""Larger files are left to the data-only layer: there pages are shared between images, and parts can be fetched."""

METACOPY = b"trusted.overlay.metacopy"
REDIRECT = b"trusted.overlay.redirect"


@dataclass(slots=True)
class _Inode:
    node: Node
    path: bytes  # of the first name
    number: int = 0  # in order of walking, from 1
    links: int = 0
    parent: "_Inode | None" = None
    names: dict[bytes, "_Inode"] = field(default_factory=dict)  # of a directory
    xattrs: bytes = b""
    held: bytes | None = None  # the content of a regular file that is not a hole
    data_bytes: int = 0  # of a directory: all its blocks; of a symlink: its target; of a file: what is held
    slot: int = 0
    block: int = 0  # where whole blocks begin
    inline: int = 0  # bytes that stand behind the inode


def build_metadata_image(
    root: Node,
    data_path: Callable[[bytes, Node], bytes | None],
    held: Callable[[Node], bytes | None] = lambda _node: None,
) -> bytes:
    """The image of tree *root*; the same arguments give the same bytes.

    Args:
        root: the tree; hard links are Nodes with several names.
        data_path: called with the path and node of each regular file; gives the absolute path of its data within the
            data-only layer, or None for a file without data.
        held: called with the node of each regular file; gives its content if the image shall hold it.

    Raises:
        RefusedError: a name, an attribute or a link count that the format cannot hold.
    """
    inodes = _collect(root)
    for inode in inodes:
        if stat.S_ISREG(inode.node.mode):
            inode.held = held(inode.node)
        _measure(inode, data_path)
    slots, blocks = _place(inodes)
    image = bytearray(slots * _SLOT + _META_BLOCK * BLOCK)
    image += bytes(-len(image) % BLOCK)
    image += bytes(blocks * BLOCK)
    for inode in inodes:
        _write(image, inode)
    _write_superblock(image, inodes)
    return bytes(image)


def _collect(root: Node) -> list[_Inode]:
    first = _Inode(root, b"")
    first.parent = first
    found: dict[int, _Inode] = {id(root): first}
    order = [first]
    for directory in order:  # grows while it is walked: breadth first
        for name in sorted(directory.node.children):
            node = directory.node.children[name]
            inode = found.get(id(node))
            if inode is None:
                inode = _Inode(node, directory.path + b"/" + name, parent=directory)
                found[id(node)] = inode
                order.append(inode)
            inode.links += 1
            directory.names[name] = inode
    for number, inode in enumerate(order, start=1):
        inode.number = number
        if inode.node.is_directory:
            inode.links = 2 + sum(child.node.is_directory for child in inode.names.values())
    return order


def _measure(inode: _Inode, data_path: Callable[[bytes, Node], bytes | None]) -> None:
    node = inode.node
    attributes = dict(node.xattrs)
    kind = stat.S_IFMT(node.mode)
    if inode.held is not None:
        inode.data_bytes = len(inode.held)
        inode.inline = inode.data_bytes % BLOCK
    elif kind == stat.S_IFREG:
        inode.inline = len(_HOLE)
        source = data_path(inode.path, node)
        if source is not None:
            attributes |= {METACOPY: b"", REDIRECT: source}
    elif kind == stat.S_IFLNK:
        inode.data_bytes = inode.inline = len(node.target)
    elif kind == stat.S_IFDIR:
        sizes = [used for used, _ in _directory_blocks(inode)]
        inode.data_bytes = (len(sizes) - 1) * BLOCK + sizes[-1]
        inode.inline = sizes[-1]
    inode.xattrs = _encode_xattrs(attributes, inode.path)
    if _INODE.size + len(inode.xattrs) + inode.inline > BLOCK:
        is_hole = kind == stat.S_IFREG and inode.held is None
        inode.inline = 0  # it does not fit behind its inode, and must not cross a block
        if is_hole or _INODE.size + len(inode.xattrs) > BLOCK:
            raise RefusedError(f"the attributes of {inode.path!r} are longer than a block")


def _encode_xattrs(attributes: Mapping[bytes, bytes], path: bytes) -> bytes:
    if not attributes:
        return b""
    blob = bytearray(_XATTR_HEADER.pack(0, 0))
    for key in sorted(attributes):
        value = attributes[key]
        prefix, index = next(((p, i) for p, i in _XATTR_PREFIXES if key.startswith(p)), (b"", 0))
        name = key[len(prefix) :]
        if index == 0 or len(name) > _LONGEST_NAME or len(value) > _LONGEST_VALUE:
            raise RefusedError(f"attribute {key!r} of {path!r} cannot be stored in an EROFS image")
        blob += _XATTR_ENTRY.pack(len(name), index, len(value)) + name + value
        blob += bytes(-len(blob) % 4)
    return bytes(blob)


def _entries(inode: _Inode) -> list[tuple[bytes, _Inode]]:
    assert inode.parent is not None  # noqa: S101  # set for every directory when it is found
    return sorted([(b".", inode), (b"..", inode.parent), *inode.names.items()])


def _directory_blocks(inode: _Inode) -> list[tuple[int, list[tuple[bytes, _Inode]]]]:
    """The directory's entries split into blocks, each with the bytes it uses."""
    blocks: list[tuple[int, list[tuple[bytes, _Inode]]]] = []
    used, held = 0, list[tuple[bytes, _Inode]]()
    for name, child in _entries(inode):
        if len(name) > _LONGEST_NAME:
            raise RefusedError(f"the name {name[:40]!r}… is longer than {_LONGEST_NAME} bytes")
        need = _DIRENT.size + len(name)
        if used + need > BLOCK:
            blocks.append((used, held))
            used, held = 0, []
        used += need
        held.append((name, child))
    blocks.append((used, held))
    return blocks


def _place(inodes: list[_Inode]) -> tuple[int, int]:
    """Give every inode its slot, and its blocks to what is not inline; gives the numbers of slots and data blocks."""
    position = 0
    for inode in inodes:
        length = _INODE.size + len(inode.xattrs) + inode.inline
        # neither the inode with its attributes nor its inline data may cross a block
        if position % BLOCK + length > BLOCK:
            position += -position % BLOCK
        inode.slot = position // _SLOT
        position += length
        position += -position % _SLOT
    slots = position // _SLOT
    first_free = _META_BLOCK + -(-slots * _SLOT // BLOCK)
    block = first_free
    for inode in inodes:
        whole = inode.data_bytes - inode.inline
        if whole > 0:
            inode.block = block
            block += -(-whole // BLOCK)
    return slots, block - first_free


def _write(image: bytearray, inode: _Inode) -> None:
    node = inode.node
    kind = stat.S_IFMT(node.mode)
    size, union, layout = 0, 0, _PLAIN
    inline = b""
    if kind == stat.S_IFREG and inode.held is None:
        size = node.content.size if node.content else 0
        union, layout, inline = _WHOLE_FILE_CHUNK, _CHUNKED, _HOLE
    elif kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
        data = inode.held or node.target if kind != stat.S_IFDIR else _directory_data(inode)
        size, union = len(data), inode.block
        layout = _INLINE if inode.inline else _PLAIN
        whole = len(data) - inode.inline
        image[inode.block * BLOCK : inode.block * BLOCK + whole] = data[:whole]
        inline = data[whole:]
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        union = _device(node.rdev)
    seconds, nanoseconds = divmod(node.mtime_ns, 1_000_000_000)
    record = _INODE.pack(
        _EXTENDED | layout,
        (len(inode.xattrs) - _XATTR_HEADER.size) // 4 + 1 if inode.xattrs else 0,
        node.mode,
        0,
        size,
        union,
        inode.number,
        node.uid,
        node.gid,
        seconds & 0xFFFFFFFFFFFFFFFF,
        nanoseconds,
        inode.links,
    )
    start = _META_BLOCK * BLOCK + inode.slot * _SLOT
    written = record + inode.xattrs + inline
    image[start : start + len(written)] = written


def _directory_data(inode: _Inode) -> bytes:
    data = bytearray()
    for _, held in _directory_blocks(inode):
        data += bytes(-len(data) % BLOCK)
        name_offset = len(held) * _DIRENT.size
        for name, child in held:
            data += _DIRENT.pack(child.slot, name_offset, _FILE_TYPES[stat.S_IFMT(child.node.mode)])
            name_offset += len(name)
        data += b"".join(name for name, _ in held)
    return bytes(data)


def _device(rdev: int) -> int:
    """The kernel's 32-bit encoding of a device number."""
    major, minor = os.major(rdev), os.minor(rdev)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def _write_superblock(image: bytearray, inodes: list[_Inode]) -> None:
    record = _SUPER.pack(
        _MAGIC,
        0,  # no checksum: whoever fetched the image knows its hash
        _COMPAT_MTIME,
        BLOCK_BITS,
        0,
        inodes[0].slot,
        len(inodes),
        0,
        0,
        len(image) // BLOCK,
        _META_BLOCK,
        0,
        hashlib.sha256(image).digest()[:16],  # a UUID that follows from the content
        b"",
        _INCOMPAT_CHUNKED,
        *(0,) * 7,
    )
    image[_SUPER_OFFSET : _SUPER_OFFSET + len(record)] = record
