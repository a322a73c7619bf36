"""Mounts that show other owners (ID-mapped mounts), and trying whether a directory's file system allows them. Linux.

Source: Linux, mount_setattr(2), open_tree(2), move_mount(2); Documentation/filesystems/idmappings.rst.
"""

import ctypes
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fs.errors import MountingError

_libc = ctypes.CDLL(None, use_errno=True)
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # the same on every machine but Alpha
_OPEN_TREE_CLONE = 1
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_MOVE_FROM_EMPTY_PATH = 4
_ATTRIBUTE_IDMAP = 0x00100000
_ATTRIBUTES = struct.Struct("=QQQQ")  # to set, to clear, propagation, user namespace


@contextmanager
def user_namespace(uids: tuple[int, int, int], gids: tuple[int, int, int]) -> Iterator[int]:
    """A user namespace that maps IDs, each triple as (inside, outside, count); gives a descriptor of it.

    Raises:
        MountingError: it cannot be made.
    """
    command = ["unshare", "--user", "sh", "-c", "echo; read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        try:
            if holder.stdout is None or not holder.stdout.readline():
                raise MountingError("no user namespace can be made")
            for kind, triple in (("uid", uids), ("gid", gids)):
                Path(f"/proc/{holder.pid}/{kind}_map").write_text("{} {} {}\n".format(*triple), "ascii")
            descriptor = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise MountingError(f"no user namespace can be made: {error.strerror}") from error
        finally:
            holder.kill()
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def mapped_clone(source: Path, namespace: int, *, is_recursive: bool = False) -> int:
    """A mount of *source* that shows its owners as *namespace* maps them, not attached; a descriptor, to be closed.

    Raises:
        MountingError: the file system, or the kernel, does not allow it.
    """
    depth = _AT_RECURSIVE if is_recursive else 0
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | depth
    tree = _call(_OPEN_TREE, -1, ctypes.c_char_p(os.fsencode(source)), flags, doing=f"open {source}")
    attributes = ctypes.create_string_buffer(_ATTRIBUTES.pack(_ATTRIBUTE_IDMAP, 0, 0, namespace))
    try:
        arguments = (tree, ctypes.c_char_p(b""), _AT_EMPTY_PATH | depth, attributes, _ATTRIBUTES.size)
        _call(_MOUNT_SETATTR, *arguments, doing=f"map the owners of {source}")
    except MountingError:
        os.close(tree)
        raise
    return tree


def attach(tree: int, point: Path) -> None:
    """Mount what ``mapped_clone`` gave at *point*. Raises MountingError."""
    target = ctypes.c_char_p(os.fsencode(point))
    _call(_MOVE_MOUNT, tree, ctypes.c_char_p(b""), -100, target, _MOVE_FROM_EMPTY_PATH, doing=f"mount at {point}")


def try_mapping(directory: Path) -> None:
    """Try whether the owners of *directory* can be mapped. Hangs for as long as its file system does.

    Raises:
        MountingError: no; the message says why.
    """
    with user_namespace((0, 100_000, 65_536), (0, 100_000, 65_536)) as namespace:
        os.close(mapped_clone(directory, namespace))


def _call(number: int, *arguments: object, doing: str) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise MountingError(f"cannot {doing}: {os.strerror(ctypes.get_errno())}")
    return result
