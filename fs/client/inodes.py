"""Inode numbers: what they stand for, and what the kernel knows.

A number is derived from what it stands for. A directory's number follows from its path: its content changes with the
revision. Any other file's follows from everything that can be seen of it: path, attributes, content; so what the
kernel keeps under a number never becomes wrong, the same file has the same number in every revision and every life of
the client, and a changed file has a new one. The members of a hard link group share the group's number.
"""

import hashlib
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NewType, Protocol

import structlog

from fs.client.catalogs import Found
from fs.client.dormants import Dormant, Dormants
from fs.format.catalog import Catalog
from fs.format.entries import Entry, Flag

_log = structlog.get_logger()

Inode = NewType("Inode", int)

MOST_AWAKE = 1 << 15
_REST_AT_ONCE = 1 << 10

ROOT = Inode(1)
_BITS = 52  # overlayfs wants the upper bits for itself, and JSON readers the range of a double
_LEAST = 256
_FIELDS = struct.Struct("<IIIQqQQI")
KEY_BYTES = 16


def directory_key(path: bytes) -> bytes:
    """What identifies the directory at *path*."""
    return hashlib.blake2b(b"d" + path, digest_size=KEY_BYTES).digest()


def needs_catalog(entry: Entry) -> bool:
    """True if what identifies *entry* is not all in its row."""
    return bool(entry.link_group or entry.has(Flag.CHUNKED))


def file_key(catalog: Catalog | None, path: bytes, entry: Entry) -> bytes:
    """What identifies the file *entry* at *path*, as *catalog*, which holds it, describes it.

    The catalog is not looked at unless ``needs_catalog``.
    """
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
    if catalog is not None and entry.has(Flag.CHUNKED):
        parts += [chunk.hash.digest for chunk in catalog.chunks(path, entry.algorithm)]
    for name in sorted(entry.xattrs):
        parts += [name, entry.xattrs[name]]
    if catalog is not None and entry.link_group:
        parts += [catalog.mountpoint, struct.pack("<qq", *catalog.link_key(path, entry))]
    else:
        parts.append(path)
    text = b"".join([len(part).to_bytes(4, "little") + part for part in parts])
    return hashlib.blake2b(text, digest_size=KEY_BYTES).digest()


@dataclass(slots=True, eq=False)
class Node:
    """What an inode number that the kernel knows stands for."""

    inode: Inode
    key: bytes
    found: Found
    generation: int  # of the view in which *found* was found or confirmed
    lookups: int = 0
    paths: set[bytes] = field(default_factory=set)  # under which the kernel may know it


def _asleep(node: Node) -> Dormant:
    found = node.found
    paths = tuple(node.paths) or (found.path,)  # of an open file whose name is gone
    return Dormant(node.key, found.home, found.inside, found.entry.is_directory, paths, node.lookups)


class Recorder(Protocol):
    """Keeps for a later life what the kernel knows."""

    def known(self, inode: Inode, key: bytes, found: Found) -> None:
        """The kernel will know *inode* by the path of *found*, for the first time by that."""

    def told(self, inode: Inode) -> None:
        """The kernel will be told of *inode* once more."""

    def forgotten(self, inode: Inode, lookups: int) -> None:
        """The kernel has forgotten *lookups* of the times that it was told of *inode*."""


class InodeTable:
    """The inodes that the kernel knows, with its lookup counts.

    Counts are exact over all lives of the client: with a count too low, what the kernel knows would be given up when it
    forgets an earlier time. An answer that a dying daemon counted and did not give leaves one too high.

    A bounded number is awake, that is, has a Node. Of the others only what is needed to find them again is kept; who
    asks for one has to have it recalled (Operations.recall).

    Args:
        root: the root directory.
        generation: of the view in which it was found.
        most_awake: nodes.
    """

    def __init__(self, root: Found, generation: int, *, most_awake: int = MOST_AWAKE) -> None:
        self._nodes: dict[Inode, Node] = {}
        self._dormant = Dormants()
        self._woken: set[Inode] | None = None
        self._most_awake = most_awake
        self.recorder: Recorder | None = None
        self._directories: dict[bytes, Inode] = {}
        node = Node(ROOT, directory_key(b""), root, generation, lookups=1, paths={b""})
        self._nodes[ROOT] = node
        self._directories[b""] = ROOT

    def __len__(self) -> int:
        return len(self._nodes) + len(self._dormant)

    def number(self, key: bytes) -> Inode:
        """The inode number of what *key* identifies; the next free one if another thing has it."""
        if key == self._nodes[ROOT].key:
            return ROOT
        number = int.from_bytes(key[:8], "little") >> (64 - _BITS) | _LEAST
        while (taken := self._key_of(Inode(number))) is not None and taken != key:
            number += 1
        return Inode(number)

    def _key_of(self, inode: Inode) -> bytes | None:
        known: Node | Dormant | None = self._nodes.get(inode) or self._dormant.get(inode)
        return None if known is None else known.key

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
            self._wake(node)
            self._rest()
        elif generation > node.generation:
            node.found = found
            node.generation = generation
        node.lookups += 1
        if found.path not in node.paths:
            node.paths.add(found.path)
            if self.recorder is not None:
                self.recorder.known(inode, key, found)
        elif self.recorder is not None:
            self.recorder.told(inode)
        return node

    def _wake(self, node: Node) -> None:
        dormant = self._dormant.pop(node.inode)
        if dormant is not None:
            node.lookups += dormant.lookups
            node.paths.update(dormant.paths)
            if self._woken is not None:
                self._woken.add(node.inode)

    def _rest(self) -> None:
        """If too many are awake, let some of those sleep that woke first."""
        if len(self._nodes) <= self._most_awake:
            return
        tired = [node for node in islice(self._nodes.values(), _REST_AT_ONCE) if node.inode != ROOT]
        try:
            self._dormant.put((node.inode, _asleep(node)) for node in tired)
        except sqlite3.Error as error:
            _log.error("inodes_not_at_rest", reason=str(error))
            self._most_awake *= 2  # memory is what is left
            return
        for node in tired:
            del self._nodes[node.inode]

    def restore(self, dormants: Dormants) -> None:
        """Take over what an earlier life told the kernel, before this one tells it anything."""
        self._dormant = dormants
        self._dormant.pop(ROOT)
        self._directories.update((path, Inode(inode)) for inode, path in dormants.directories())

    def dormant(self, inode: int) -> Dormant | None:
        """What the kernel was told of *inode*, if it is not awake; None also if nothing is known."""
        return None if inode in self._nodes else self._dormant.get(inode)

    def all_dormant(self) -> Iterator[tuple[int, Dormant]]:
        """All of them; some may wake and others fall asleep meanwhile."""
        return self._dormant.items()

    def wake(self, inode: int, found: Found) -> None:
        """*found* is what the dormant *inode* stands for; whether it is still so, is not known."""
        dormant = self._dormant.get(inode)
        if dormant is not None:
            node = self._nodes[Inode(inode)] = Node(Inode(inode), dormant.key, found, -1)
            self._wake(node)
            self._rest()

    def all_asleep(self) -> Iterator[tuple[int, Dormant]]:
        """All that the kernel knows but the root, as if it were asleep."""
        yield from ((inode, _asleep(node)) for inode, node in self._nodes.items() if inode != ROOT)
        yield from self._dormant.items()

    @contextmanager
    def noting_woken(self) -> Iterator[set[Inode]]:
        """The set grows by those that wake meanwhile: who walks over all, awake and dormant, may miss them."""
        self._woken = set()
        try:
            yield self._woken
        finally:
            self._woken = None

    def forget(self, inode: int, lookups: int) -> None:
        """The kernel forgets *lookups* of what it was told."""
        number = Inode(inode)
        node = self._nodes.get(number)
        dormant = None if node is not None else self._dormant.get(number)
        if number == ROOT or (node is None and dormant is None):
            return
        if node is not None:
            node.lookups -= lookups
            if node.lookups <= 0:
                del self._nodes[number]
                self._forget_directory(node.found.path, number)
        elif dormant is not None:
            self._dormant.pop(number)
            if dormant.lookups > lookups:
                self._dormant.put([(number, replace(dormant, lookups=dormant.lookups - lookups))])
            else:
                self._forget_directory(dormant.paths[-1], number)
        if self.recorder is not None:
            self.recorder.forgotten(number, lookups)

    def _forget_directory(self, path: bytes, number: Inode) -> None:
        if self._directories.get(path) == number:
            del self._directories[path]

    def directory(self, path: bytes) -> Inode | None:
        """The number of the directory at *path* if the kernel knows it."""
        return self._directories.get(path)

    def known(self) -> Iterator[Node]:
        """All nodes, as they are now, those of one catalog after the other."""
        return iter(sorted(self._nodes.values(), key=lambda node: node.found.home.mountpoint))
