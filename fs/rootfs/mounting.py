"""Mounting metadata images, and trying whether the kernel can use them. Linux; needs the right to mount."""

import ctypes
import errno
import os
import stat
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from fs.errors import MountingError
from fs.format.tree import Content, Node
from fs.rootfs.erofs import LARGEST_HELD_BYTES, build_metadata_image
from fs.rootfs.overlay import METADATA_ONLY, lowerdir

_T = TypeVar("_T")
_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS = 0x00020000
_MS_RDONLY = 1
_MS_NOSUID = 2
_MS_NODEV = 4
_MS_REMOUNT = 0x20
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_SLAVE = 1 << 19
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_LOOP_TIMEOUT_S = 20.0
_LOOKED_AT_LIMIT = 2000
_TEXT = b"data"


class Backing(StrEnum):
    """How the kernel reads an image."""

    FILE = "file"
    """From the file itself: Linux 6.12 or newer."""
    LOOP = "loop"
    """Through a loop device, which goes when the image is unmounted."""


def mount(kind: str, source: str, point: Path, flags: int, options: str) -> None:
    """Mount *source* at *point* by the system call. Raises OSError."""
    arguments = (source.encode(), os.fsencode(point), kind.encode(), ctypes.c_ulong(flags), options.encode())
    if _libc.mount(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(point))


def bind(source: Path, point: Path) -> None:
    """Show what is at *source* at *point*, too. Raises OSError."""
    mount("none", str(source), point, _MS_BIND, "")


def bind_read_only(source: Path, point: Path) -> None:
    """Show what is at *source* at *point*, too: read-only, no set-user-ID, no devices. Raises OSError.

    Nobody sees it with other options: they are set before it is at *point*.
    """
    with tempfile.TemporaryDirectory(prefix=".bind-") as name:
        bind(source, Path(name))
        try:
            mount("none", "none", Path(name), _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV, "")
            bind(Path(name), point)
        finally:
            unmount(Path(name))


def mount_image(image: Path, point: Path) -> Backing:
    """Mount the EROFS *image*, a file on a local file system, read-only. Raises MountingError."""
    try:
        mount("erofs", str(image), point, _MS_RDONLY, "")
    except OSError as error:
        if error.errno != errno.ENOTBLK:  # the answer of kernels that want a block device
            raise MountingError(f"EROFS image: {error.strerror}") from error
    else:
        return Backing.FILE
    command = ["mount", "-t", "erofs", "-o", "ro,loop", str(image), str(point)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LOOP_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise MountingError(f"EROFS image through a loop device: {error.stderr.strip()}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MountingError(f"EROFS image through a loop device: {error}") from error
    return Backing.LOOP


def unmount(point: Path) -> None:
    """Take the uppermost mount away from *point*; overlays that stand on it keep it. Nothing happens if none is there.

    Never forced: that would be felt by others. Raises MountingError.
    """
    if _libc.umount2(os.fsencode(point), _MNT_DETACH | _UMOUNT_NOFOLLOW) != 0:
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOENT):
            raise MountingError(f"{point} cannot be unmounted: {os.strerror(number)}")


def in_own_namespace(function: Callable[[], _T]) -> _T:
    """Result of *function*, run in a thread with a mount namespace of its own: whatever it mounts goes with it.

    Raises:
        MountingError: such a namespace is not to be had.
    """
    outcome: list[Callable[[], _T]] = []

    def work() -> None:
        try:
            _leave_namespace()
            value = function()
        except BaseException as error:  # noqa: BLE001  # carried to the caller, whatever it is
            failure = error

            def fail() -> _T:
                raise failure

            outcome.append(fail)
        else:
            outcome.append(lambda: value)

    thread = threading.Thread(target=work, name="mounting", daemon=True)
    thread.start()
    thread.join()
    return outcome[0]()


def _leave_namespace() -> None:
    """Give the calling thread a copy of the mount namespace; what it mounts is not for others."""
    if _libc.unshare(_CLONE_NEWNS) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise MountingError(f"no mount namespace of its own: {reason}")
    mount("none", "none", Path("/"), _MS_REC | _MS_SLAVE, "")


def probe(folder: Path) -> Backing:
    """Try all that is needed on this machine, in the empty *folder*: an image over data, and a container over both.

    Raises:
        MountingError: something does not work; the message says what.
    """
    root = Node(mode=stat.S_IFDIR | 0o755)
    root.children[b"file"] = Node(mode=stat.S_IFREG | 0o644, content=Content(len(_TEXT), None))
    image, data, upper, work, merged, point = (
        folder / name for name in ("image", "data", "upper", "work", "merged", "point")
    )
    for made in (data, upper, work, merged, point):
        made.mkdir()
    image.write_bytes(build_metadata_image(root, lambda _path, _node: b"/object"))
    (data / "object").write_bytes(_TEXT)

    def attempt() -> Backing:
        backing = mount_root(image, data, point)
        try:
            mount("overlay", "overlay", merged, 0, f"upperdir={upper},workdir={work},{lowerdir([point])}")
            with (merged / "file").open("ab") as stream:
                stream.write(_TEXT)
            read = (merged / "file").read_bytes()
        except OSError as error:
            raise MountingError(f"overlay over a mounted image: {error.strerror}") from error
        if read != 2 * _TEXT:
            raise MountingError("overlay over a mounted image shows other bytes")
        return backing

    return in_own_namespace(attempt)


def mount_root(image: Path, data: Path, point: Path) -> Backing:
    """Mount a whole root file system, read-only: the EROFS *image* over its *data*. Nothing is mounted if that fails.

    What lies at *point* afterwards is one mount, which holds both. Hangs for as long as *data* does.

    Raises:
        MountingError: the kernel refuses it.
    """
    backing = mount_image(image, point)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{point.name}.", dir=point.parent) as name:
            merged = Path(name)
            mount("overlay", "overlay", merged, _MS_RDONLY, ",".join((*METADATA_ONLY, lowerdir([point], data))))
            try:
                unmount(point)
                bind(merged, point)
            finally:
                unmount(merged)
    except OSError as error:
        unmount(point)
        raise MountingError(f"overlay over an EROFS image with a data-only layer: {error.strerror}") from error
    return backing


def try_root(root: Path, point: Path) -> None:
    """Try what is mounted at *root* as the lower layer of a container: can a file be opened?

    Args:
        root: where ``mount_root`` has mounted.
        point: an empty directory; nobody else sees what is mounted there.

    Raises:
        MountingError: no; the message says why. Hangs for as long as the data do.
    """

    def attempt() -> None:
        try:
            mount("overlay", "overlay", point, _MS_RDONLY, lowerdir([root, point]))
            file = _file_with_data(point)
            if file is not None:
                os.close(os.open(file, os.O_RDONLY))  # looks for the data, and reads none
        except OSError as error:
            raise MountingError(f"{error.filename or root}: {error.strerror}") from error

    in_own_namespace(attempt)


def _file_with_data(root: Path) -> str | None:
    """A regular file that is not empty, if one is among the first names: best one whose data no image holds."""
    pending = deque([str(root)])
    looked_at = 0
    found: str | None = None
    while pending and looked_at < _LOOKED_AT_LIMIT:
        with suppress(NotADirectoryError), os.scandir(pending.popleft()) as entries:
            for entry in entries:
                looked_at += 1
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    size = entry.stat(follow_symlinks=False).st_size
                    if size > LARGEST_HELD_BYTES:
                        return entry.path
                    found = found or (entry.path if size else None)
    return found
