"""Making a connection to the kernel a mount, with mount(2) or, without privileges, through ``fusermount3``."""

import array
import ctypes
import errno
import os
import socket
import subprocess
from pathlib import Path

import structlog

from fs.client.mountpoints import FILESYSTEM, MountError

_log = structlog.get_logger()

_READ_ONLY = 1  # MS_RDONLY; devices and set-user-id files count: root file systems of containers are made of this
_DETACH = 2  # MNT_DETACH
_HELPER = "fusermount3"
_HELPER_TIMEOUT_S = 20.0
_NOT_ALLOWED = frozenset({errno.EPERM, errno.EACCES})


def mount_device(device: int, name: str, mountpoint: Path, *, allows_other: bool) -> bool:
    """Mount the connection *device*, which was opened and not mounted; False if that is not allowed here.

    Raises:
        MountError: the kernel refuses for another reason.
    """
    options = f"fd={device},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},default_permissions"
    if allows_other:
        options += ",allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    source, kind = f"{FILESYSTEM}:{name}", f"fuse.{FILESYSTEM}"
    if libc.mount(source.encode(), os.fsencode(mountpoint), kind.encode(), _READ_ONLY, options.encode()) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NOT_ALLOWED:
        return False
    raise MountError(f"{mountpoint} could not be mounted: {os.strerror(code)}")


def mount_with_helper(name: str, mountpoint: Path, *, allows_other: bool) -> int:
    """Let ``fusermount3`` mount; gives the connection that it opened.

    Source: libfuse, util/fusermount.c: the descriptor comes as SCM_RIGHTS over the socket ``_FUSE_COMMFD``.

    Raises:
        MountError: it refuses, or is not there.
    """
    options = f"fsname={FILESYSTEM}:{name},subtype={FILESYSTEM},ro,default_permissions"
    if allows_other:
        options += ",allow_other"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            done = subprocess.run(
                [_HELPER, "-o", options, "--", str(mountpoint)],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=(theirs.fileno(),),
                capture_output=True,
                text=True,
                timeout=_HELPER_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _refused(mountpoint, str(error)) from error
        if done.returncode != 0:
            raise _refused(mountpoint, done.stderr.strip())
        theirs.close()
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(array.array("i", [0]).itemsize), socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            return array.array("i", data)[0]
    raise _refused(mountpoint, f"{_HELPER} gave no connection")


def _refused(mountpoint: Path, reason: str) -> MountError:
    return MountError(f"{mountpoint} could not be mounted: {reason}; 'unpackd doctor' says what this machine lacks")


def detach(mountpoint: Path) -> None:
    """Unmount lazily what is mounted at *mountpoint*; a failure is logged."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), _DETACH) == 0:
        return
    reason = os.strerror(ctypes.get_errno())
    if os.geteuid() != 0:
        done = subprocess.run(
            [_HELPER, "-u", "-z", "--", str(mountpoint)],
            capture_output=True, text=True, timeout=_HELPER_TIMEOUT_S, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            return
        reason = done.stderr.strip()
    _log.warning("not_unmounted", reason=reason)
