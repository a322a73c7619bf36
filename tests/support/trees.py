"""Comparing directory trees entry by entry: everything ``lstat``, ``listxattr`` and ``read`` can tell."""

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fs.format.tree import Content, Node

READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Described:
    """What is compared of one entry. Directories have no size, and only files have contents."""

    mode: int
    uid: int
    gid: int
    size: int | None
    mtime_ns: int
    nlink: int
    rdev: int
    target: bytes | None
    sha256: str | None
    xattrs: tuple[tuple[str, bytes], ...]
    same_inode_as: bytes | None  # first path, in byte order, of the inode if it has several names here


def describe(root: Path) -> dict[bytes, Described]:
    """Every entry below *root*, *root* itself as the empty path, by path with a leading slash."""
    statuses = {path: os.lstat(os.fsencode(root) + path) for path in _paths(os.fsencode(root))}
    names: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    for path, status in statuses.items():
        if not stat.S_ISDIR(status.st_mode):
            names[status.st_dev, status.st_ino].append(path)
    described = {}
    for path, status in statuses.items():
        same = names.get((status.st_dev, status.st_ino), [])
        first = min(same) if len(same) > 1 else None
        described[path] = _describe(os.fsencode(root) + path, status, first)
    return described


def _paths(root: bytes) -> Iterator[bytes]:
    yield b""
    pending = [b""]
    while pending:
        path = pending.pop()
        with os.scandir(root + path) as entries:
            found = list(entries)
        for entry in found:
            below = path + b"/" + entry.name
            yield below
            if entry.is_dir(follow_symlinks=False):
                pending.append(below)


def _describe(path: bytes, status: os.stat_result, first_name: bytes | None) -> Described:
    kind = stat.S_IFMT(status.st_mode)
    attributes = os.listxattr(path, follow_symlinks=False)
    return Described(
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        size=None if kind == stat.S_IFDIR else status.st_size,
        mtime_ns=status.st_mtime_ns,
        nlink=status.st_nlink,
        rdev=status.st_rdev,
        target=os.readlink(path) if kind == stat.S_IFLNK else None,
        sha256=_sha256(path) if kind == stat.S_IFREG else None,
        xattrs=tuple(sorted((name, os.getxattr(path, name, follow_symlinks=False)) for name in attributes)),
        same_inode_as=first_name,
    )


def _sha256(path: bytes) -> str:
    hasher = hashlib.sha256()
    with open(path, "rb") as stream:
        while part := stream.read(READ_BYTES):
            hasher.update(part)
    return hasher.hexdigest()


def differences(expected: dict[bytes, Described], found: dict[bytes, Described]) -> list[str]:
    """One line for each path and field that differs; empty if the trees are the same."""
    lines = [f"missing: {path!r}" for path in sorted(expected.keys() - found.keys())]
    lines += [f"unexpected: {path!r}" for path in sorted(found.keys() - expected.keys())]
    for path in sorted(expected.keys() & found.keys()):
        wanted, got = expected[path], found[path]
        if wanted != got:
            fields = [name for name in Described.__slots__ if getattr(wanted, name) != getattr(got, name)]
            lines += [f"{path!r}: {name} is {getattr(got, name)!r}, not {getattr(wanted, name)!r}" for name in fields]
    return lines


def load(root: Path, add: Callable[[bytes, Node], None] = lambda _path, _node: None) -> Node:
    """The tree below *root* as nodes; of contents only the sizes are right, but *add* is told of each regular file."""
    top = os.fsencode(root)
    made = {_key(top): _node(top, add)}
    pending = [(top, made[_key(top)])]
    while pending:
        path, directory = pending.pop()
        for name in os.listdir(path):
            below = path + b"/" + name
            key = _key(below)
            if key not in made:
                made[key] = _node(below, add)
                if made[key].is_directory:
                    pending.append((below, made[key]))
            directory.children[name] = made[key]
    return made[_key(top)]


def _key(path: bytes) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _node(path: bytes, add: Callable[[bytes, Node], None]) -> Node:
    status = os.lstat(path)
    node = Node(mode=status.st_mode, uid=status.st_uid, gid=status.st_gid, mtime_ns=status.st_mtime_ns)
    node.rdev = status.st_rdev
    names = os.listxattr(path, follow_symlinks=False)
    node.xattrs = {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}
    if stat.S_ISREG(status.st_mode):
        node.content = Content(status.st_size, None)
        add(path, node)
    elif stat.S_ISLNK(status.st_mode):
        node.target = os.readlink(path)
    return node
