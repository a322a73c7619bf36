"""What is mounted where, and where the daemon of a mount can be spoken to."""

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import select
import socket
import stat
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from fs.errors import AbsentError, FsError, LockedError, RefusedError

_log = structlog.get_logger()

FILESYSTEM = "unpackd"
_MOUNTINFO = Path("/proc/self/mountinfo")
_UID_MAP = Path("/proc/self/uid_map")
_UNMOUNT_TIMEOUT_S = 60.0
_BUSY_ATTEMPTS = 5
_BUSY_PAUSE_S = 0.1
_END_TIMEOUT_S = 10.0
_CREDENTIALS = struct.Struct("3i")  # process, user, group
_USER_ID = re.compile(r"user_id=(\d+)")


_FORCE_AND_DETACH = 1 | 2  # MNT_FORCE: whoever waits for an answer gets an error; MNT_DETACH


class MountError(FsError):
    """The kernel or FUSE refuses; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One of our mounts in the mount table."""

    mountpoint: Path
    name: str  # of the repository
    uid: int  # who mounted it
    device: str = ""  # major and minor number of the file system, as 0:42


def absolute(mountpoint: str | os.PathLike[str]) -> Path:
    """The mount point without symlinks in the way to it; the mount itself is not asked, it may not answer."""
    path = Path(os.path.abspath(mountpoint))  # noqa: PTH100  # resolve() would ask the mount
    return path.parent.resolve() / path.name if path.name else path


def find_mount(mountpoint: Path) -> Mount | None:
    """The topmost mount of ours at *mountpoint*, dead or alive; None if there is none."""
    found: Mount | None = None
    for line in _MOUNTINFO.read_text("utf-8", "surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        where = _unescape(fields.split(" ")[4])
        kind, source, options = rest.split(" ")[:3]
        if where == str(mountpoint):
            user = _USER_ID.search(options)
            is_ours = kind == f"fuse.{FILESYSTEM}"
            uid = int(user[1]) if user else 0
            found = Mount(mountpoint, source.partition(":")[2], uid, fields.split(" ")[2]) if is_ours else None
    return found


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def user_behind(uid: int) -> int:
    """Who *uid* is outside of this process's user namespace, where root may be anybody."""
    try:
        lines = _UID_MAP.read_text().splitlines()
    except OSError:
        return uid
    for inside, outside, count in (map(int, line.split()) for line in lines):
        if inside <= uid < inside + count:
            return outside + uid - inside
    return uid


def runtime_directory(uid: int) -> Path:
    """Where the sockets of the mounts of user *uid* lie: ``/run/unpackd``, or the same per user."""
    uid = user_behind(uid)
    if uid == 0:
        return Path("/run/unpackd")
    own = Path(f"/run/user/{uid}")
    return own / "unpackd" if own.is_dir() else Path(f"/tmp/unpackd-{uid}")  # noqa: S108  # checked before use


def control_socket(mountpoint: Path, uid: int) -> Path:
    """The socket of the daemon that serves *mountpoint*."""
    key = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:20]
    return runtime_directory(uid) / f"{key}.sock"


def prepare_runtime_directory(uid: int) -> Path:
    """Make the directory of the sockets; it must belong to *uid* alone. Raises RefusedError."""
    path = runtime_directory(uid)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise RefusedError(f"{path} cannot be made: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid or status.st_mode & 0o022:
        raise RefusedError(f"{path} must be a directory that only user {uid} can write")
    return path


def check_mountpoint(mountpoint: Path) -> None:
    """Make sure that something can be mounted at *mountpoint*.

    Raises:
        AbsentError: it is no directory.
        LockedError: something of ours is mounted there.
        MountError: the daemon of an earlier mount died.
    """
    try:
        status = mountpoint.stat()
    except FileNotFoundError as error:
        raise AbsentError(f"the mount point {mountpoint} does not exist") from error
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise _dead(mountpoint) from error
        raise MountError(f"the mount point {mountpoint} cannot be used: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise AbsentError(f"the mount point {mountpoint} is not a directory")
    mounted = find_mount(mountpoint)
    if mounted is not None and not is_served(mounted):
        raise _dead(mountpoint)
    if mounted is not None:
        raise LockedError(f"{mounted.name} is already mounted at {mountpoint}")


def is_served(mounted: Mount) -> bool:
    """True if the daemon of *mounted* listens. The mount itself is not asked: the kernel answers for a dead daemon."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(control_socket(mounted.mountpoint, mounted.uid)))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True  # it is there and busy, or it is not ours to speak to
    return True


def _dead(mountpoint: Path) -> MountError:
    return MountError(f"the daemon that served {mountpoint} is gone; run 'unpackd umount {mountpoint}' and mount again")


def unmount(mountpoint: Path, *, is_lazy: bool) -> Mount:
    """Unmount *mountpoint* and wait, if it was not busy, until its daemon has ended.

    Args:
        mountpoint: absolute.
        is_lazy: detach it now and let those who still use it go on.

    Raises:
        AbsentError: nothing of ours is mounted there.
        LockedError: it is in use.
        MountError: the kernel refuses.
    """
    mounted = find_mount(mountpoint)
    if mounted is None:
        raise AbsentError(f"no repository is mounted at {mountpoint}")
    if os.geteuid() == 0:
        command = ["umount", *(["-l"] if is_lazy else []), "--", str(mountpoint)]
    else:
        command = ["fusermount3", "-u", *(["-z"] if is_lazy else []), "--", str(mountpoint)]
    daemon = None if is_lazy else _process_of_daemon(mounted)
    try:
        _unmount_now(command, mountpoint)
        if daemon is not None:
            select.select((daemon,), (), (), _END_TIMEOUT_S)
    finally:
        if daemon is not None:
            os.close(daemon)
    if not is_served(mounted):
        control_socket(mountpoint, mounted.uid).unlink(missing_ok=True)  # a daemon that was killed left it
    return mounted


def _process_of_daemon(mounted: Mount) -> int | None:
    """A descriptor that can be read when the daemon of *mounted* has ended; None if there is none, or it is hidden."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(control_socket(mounted.mountpoint, mounted.uid)))
            process, _, _ = _CREDENTIALS.unpack(
                probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            return os.pidfd_open(process) if process > 0 else None
        except OSError:
            return None


def _unmount_now(command: list[str], mountpoint: Path) -> None:
    """Raises LockedError, MountError."""
    done = _run(command, mountpoint)
    for _ in range(_BUSY_ATTEMPTS):
        if done.returncode == 0 or "busy" not in done.stderr:
            break
        time.sleep(_BUSY_PAUSE_S)  # a profile may be at work, which has a file open for a moment now and then
        done = _run(command, mountpoint)
    if done.returncode != 0:
        if "busy" in done.stderr:
            raise LockedError(f"{mountpoint} is in use; stop what uses it (fuser -vm {mountpoint}), or say --lazy")
        raise MountError(f"{mountpoint} could not be unmounted: {done.stderr.strip()}")


def _run(command: list[str], mountpoint: Path) -> subprocess.CompletedProcess[str]:
    """Raises MountError."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_UNMOUNT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MountError(f"{mountpoint} could not be unmounted: {error}") from error


def own_file(state: Path, mountpoint: Path, kind: str) -> Path:
    """The file below *state* that belongs to the mount at *mountpoint* alone: its log, journal, lock."""
    return state / f"mount-{hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:8]}.{kind}"


def take_lock(path: Path, mountpoint: Path, *, timeout_s: float = 5.0) -> int:
    """Make sure that one daemon serves *mountpoint* with what is kept beside the file *path*; gives its descriptor.

    Raises:
        LockedError: another daemon does.
        RefusedError: the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RefusedError(f"the cache directory {path.parent} cannot be used: {error.strerror}") from error
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise LockedError(f"another daemon still serves {mountpoint}, or has not ended yet") from None
            time.sleep(0.05)
        else:
            return descriptor


def tear_down(mountpoint: Path) -> None:
    """End the file system at *mountpoint* for everybody, whatever they have open.

    Only root can; the daemons of others can only end, which has the same effect as long as nobody holds their session.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), _FORCE_AND_DETACH) != 0:
        _log.warning("not_torn_down", mountpoint=str(mountpoint), reason=os.strerror(ctypes.get_errno()))
