"""Inode numbers: what they stand for, and what the kernel knows.

A number is derived from what it stands for. A directory's number follows from its path: its content changes with the
revision. Any other file's follows from everything that can be seen of it: path, attributes, content; so what the
kernel keeps under a number never becomes wrong, the same file has the same number in every revision and every life of
the client, and a changed file has a new one. The members of a hard link group share the group's number.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NewType

from fs.client.catalogs import Found
from fs.format.catalog import Catalog, Entry, Flag

Inode = NewType("Inode", int)

ROOT = Inode(1)
_BITS = 52  # overlayfs wants the upper bits for itself, and JSON readers the range of a double
_LEAST = 256
_FIELDS = struct.Struct("<IIIQqQQI")
_KEY_BYTES = 16


def directory_key(path: bytes) -> bytes:
    """What identifies the directory at *path*."""
    return hashlib.blake2b(b"d" + path, digest_size=_KEY_BYTES).digest()


def file_key(catalog: Catalog, path: bytes, entry: Entry) -> bytes:
    """What identifies the file *entry* at *path*, as *catalog*, which holds it, describes it."""
    hasher = hashlib.blake2b(digest_size=_KEY_BYTES)
    fields = _FIELDS.pack(
        entry.mode,
        entry.uid & 0xFFFFFFFF,
        entry.gid & 0xFFFFFFFF,
        entry.size & 0xFFFFFFFFFFFFFFFF,
        entry.mtime_ns // 1_000_000_000,
        entry.mtime_ns % 1_000_000_000,
        entry.rdev & 0xFFFFFFFFFFFFFFFF,
        entry.linkcount & 0xFFFFFFFF,
    )
    parts: list[bytes] = [b"f", fields, entry.target, entry.hash.digest if entry.hash is not None else b""]
    if entry.flags & Flag.CHUNKED:
        parts += [chunk.hash.digest for chunk in catalog.chunks(path, entry.algorithm)]
    for name in sorted(entry.xattrs):
        parts += [name, entry.xattrs[name]]
    if entry.link_group:
        parts += [catalog.mountpoint, struct.pack("<qq", *catalog.link_key(path, entry))]
    else:
        parts.append(path)
    for part in parts:
        hasher.update(len(part).to_bytes(4, "little") + part)
    return hasher.digest()


@dataclass(slots=True, eq=False)
class Node:
    """What an inode number that the kernel knows stands for."""

    inode: Inode
    key: bytes
    found: Found
    generation: int  # of the view in which *found* was found or confirmed
    lookups: int = 0
    paths: set[bytes] = field(default_factory=set)  # under which the kernel may know it


class InodeTable:
    """The inodes that the kernel knows, with its lookup counts."""

    def __init__(self, root: Found, generation: int) -> None:
        self._nodes: dict[Inode, Node] = {}
        self._directories: dict[bytes, Inode] = {}
        node = Node(ROOT, directory_key(b""), root, generation, lookups=1, paths={b""})
        self._nodes[ROOT] = node
        self._directories[b""] = ROOT

    def __len__(self) -> int:
        return len(self._nodes)

    def number(self, key: bytes) -> Inode:
        """The inode number of what *key* identifies; the next free one if another thing has it."""
        if key == self._nodes[ROOT].key:
            return ROOT
        number = int.from_bytes(key[:8], "little") >> (64 - _BITS) | _LEAST
        while (node := self._nodes.get(Inode(number))) is not None and node.key != key:
            number += 1
        return Inode(number)

    def get(self, inode: int) -> Node | None:
        """What *inode* stands for, or None."""
        return self._nodes.get(Inode(inode))

    def remember(self, key: bytes, found: Found, generation: int) -> Node:
        """The kernel is told about *found*: count it."""
        inode = self.number(key)
        node = self._nodes.get(inode)
        if node is None:
            node = self._nodes[inode] = Node(inode, key, found, generation)
            if found.entry.is_directory:
                self._directories[found.path] = inode
        elif generation > node.generation:
            node.found = found
            node.generation = generation
        node.lookups += 1
        node.paths.add(found.path)
        return node

    def forget(self, inode: int, lookups: int) -> None:
        """The kernel forgets *lookups* of what it was told."""
        node = self._nodes.get(Inode(inode))
        if node is None or node.inode == ROOT:
            return
        node.lookups -= lookups
        if node.lookups <= 0:
            del self._nodes[node.inode]
            if self._directories.get(node.found.path) == node.inode:
                del self._directories[node.found.path]

    def directory(self, path: bytes) -> Inode | None:
        """The number of the directory at *path* if the kernel knows it."""
        return self._directories.get(path)

    def known(self) -> Iterator[Node]:
        """All nodes, as they are now."""
        return iter(list(self._nodes.values()))
