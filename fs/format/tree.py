"""Where a file's bytes are, and the tree of nodes that is handed to the publisher."""

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from fs.format.compression import Compression
from fs.format.hashes import Hash


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a large file, stored as an object of its own (letter ``P``)."""

    offset: int  # in the uncompressed file
    size: int  # uncompressed bytes
    hash: Hash


@dataclass(frozen=True, slots=True)
class Content:
    """A regular file's bytes: one object, or chunks that are contiguous from 0 and add up to the size."""

    size: int  # uncompressed bytes
    hash: Hash | None  # None if and only if there are chunks
    chunks: tuple[Chunk, ...] = ()
    compression: Compression = Compression.ZLIB


@dataclass(slots=True, kw_only=True, eq=False)
class Node:
    """One inode of a tree to be published.

    A hard link is one Node that is reachable under several names; link counts follow from the tree. Nodes compare by
    identity. ``children`` is used by directories, ``content`` by regular files, ``target`` by symlinks, ``rdev``
    (as ``os.makedev`` gives it) by devices. A hidden node is found by its name, but is in no listing.
    """

    mode: int  # with the type bits, as in st_mode
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    content: Content | None = None
    target: bytes = b""
    rdev: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    children: dict[bytes, "Node"] = field(default_factory=dict)
    is_hidden: bool = False

    @property
    def is_directory(self) -> bool:
        """True for a directory."""
        return stat.S_ISDIR(self.mode)


def walk(root: Node, path: bytes = b"") -> Iterator[tuple[bytes, Node]]:
    """Every path and node of the tree, parents before children, names in byte order; *path* is the root's own."""
    pending = [(path, root)]
    while pending:
        here, node = pending.pop()
        yield here, node
        pending.extend((here + b"/" + name, node.children[name]) for name in sorted(node.children, reverse=True))


def resolve(root: Node, path: bytes) -> Node | None:
    """The node at canonical *path* below *root*; symlinks are not followed."""
    node: Node | None = root
    for name in path.split(b"/")[1:]:
        node = node.children.get(name) if node is not None else None
    return node
