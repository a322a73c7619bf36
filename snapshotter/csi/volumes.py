"""Volumes as bind mounts of what lies in mounted repositories.

Nothing is kept but the mounts themselves, so a plugin that starts again knows all that it has to. A volume that is
mounted stays as it is when it is asked for again, unless it cannot be read any more because the repository was mounted
anew: then it is made again. Calls may hang for as long as the repository does; the caller bounds them.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import structlog

from fs.rootfs.mounting import bind_read_only, unmount
from snapshotter.csi.errors import (
    VolumeAbsentError,
    VolumeConflictError,
    VolumeRequestError,
    VolumeUnavailableError,
)
from snapshotter.csi.requests import VolumeSource
from snapshotter.mountinfo import MountPoint, mount_points

_log = structlog.get_logger()
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_MOST_MOUNTS = 64  # over each other, at one place


@dataclass(frozen=True, slots=True)
class Usage:
    """What statvfs says of a volume, in bytes and in inodes, and whether it can be read."""

    total_bytes: int
    available_bytes: int
    total_inodes: int
    available_inodes: int
    problem: str  # empty if it can be read


@dataclass(frozen=True, slots=True)
class Volumes:
    """Makes and takes away mounts; *repositories* is the directory below which repositories are mounted."""

    repositories: Path

    def stage(self, source: VolumeSource, staging: Path) -> None:
        """Show *source* at *staging*, for all pods of this machine that will use the volume.

        Raises:
            VolumeAbsentError: there is no such repository or path.
            VolumeUnavailableError: it cannot be read now.
            VolumeConflictError: something else is mounted there.
        """
        self._show(self.repositories / source.repository, source, staging)

    def publish(self, source: VolumeSource, staging: Path | None, target: Path) -> None:
        """Show *source* at *target*: what is staged, if that can be read, so that pods agree on where a link leads.

        Raises:
            VolumeAbsentError: there is no such repository or path.
            VolumeUnavailableError: it cannot be read now.
            VolumeConflictError: something else is mounted there.
        """
        if staging is not None and _mount_at(staging) is not None and _problem_of(staging) is None:
            self._show(staging, replace(source, path=PurePosixPath()), target)
        else:
            self._show(self.repositories / source.repository, source, target)

    def hide(self, target: Path) -> None:
        """Take away what is shown at *target*, and the directory; nothing happens if there is nothing.

        Raises:
            MountingError: it stays mounted.
            VolumeRequestError: there is something that is no volume.
        """
        for _ in range(_MOST_MOUNTS):
            if _mount_at(target) is None:
                break
            unmount(target)
        try:
            target.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            raise VolumeRequestError(f"{target} is not a volume: {error.strerror}") from error

    def usage(self, target: Path) -> Usage:
        """How large the volume at *target* is. Raises VolumeAbsentError if there is none."""
        if _mount_at(target) is None:
            raise VolumeAbsentError(f"no volume is mounted at {target}")
        problem = _problem_of(target)
        if problem is not None:
            return Usage(0, 0, 0, 0, problem)
        size = os.statvfs(target)
        return Usage(
            total_bytes=size.f_blocks * size.f_frsize,
            available_bytes=size.f_bavail * size.f_frsize,
            total_inodes=size.f_files,
            available_inodes=size.f_favail,
            problem="",
        )

    def is_ready(self) -> bool:
        """True if repositories can be here."""
        return self.repositories.is_dir()

    def _show(self, root: Path, source: VolumeSource, target: Path) -> None:
        with _directory(root, source) as descriptor:
            shown = _mount_at(target)
            if shown is not None and self._stays(shown, descriptor, target):
                return
            target.mkdir(mode=0o750, exist_ok=True)
            bind_read_only(Path(f"/proc/self/fd/{descriptor}"), target)
        _log.info("volume_shown", repository=source.repository, path=str(source.path), target=str(target))

    @staticmethod
    def _stays(shown: MountPoint, descriptor: int, target: Path) -> bool:
        """True if what is *shown* at *target* is of the repository of *descriptor*; it goes if it cannot be read."""
        problem = _problem_of(target)
        if problem is not None:
            _log.warning("volume_made_again", target=str(target), reason=problem)
            unmount(target)
            return False
        if target.stat().st_dev == os.fstat(descriptor).st_dev:
            return True
        wanted = _mount_of(Path(f"/proc/self/fd/{descriptor}").readlink())
        if wanted is not None and (wanted.kind, wanted.source) == (shown.kind, shown.source):
            return True  # an earlier mount of the repository, which still answers
        raise VolumeConflictError(f"{shown.source} ({shown.kind}) is mounted at {target}")


@contextmanager
def _directory(root: Path, source: VolumeSource) -> Iterator[int]:
    """A descriptor of the directory *source*, which is below *root* wherever its links lead.

    Raises:
        VolumeAbsentError: there is none.
        VolumeUnavailableError: it cannot be read now.
    """
    name = f"{source.repository}:/{source.path if source.path.parts else ''}"
    try:
        real = Path(os.path.realpath(root / source.path, strict=True))
        if not real.is_relative_to(os.path.realpath(root)):
            raise VolumeAbsentError(f"{name} leads out of the repository")
        descriptor = os.open(real, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _ABSENT:
            raise VolumeAbsentError(f"{name} is not a directory of the repository: {error.strerror}") from error
        raise VolumeUnavailableError(f"{name} cannot be read: {error.strerror}") from error
    try:
        if not os.path.ismount(root):  # asked afterwards: an automounter mounts when the path is looked up
            raise VolumeUnavailableError(f"{root} is not mounted")
        yield descriptor
    finally:
        os.close(descriptor)


def _mount_at(target: Path) -> MountPoint | None:
    """The uppermost mount at *target*. Its parents may be links."""
    place = Path(os.path.realpath(target.parent)) / target.name
    return next((point for point in reversed(mount_points()) if point.path == place), None)


def _mount_of(path: Path) -> MountPoint | None:
    """The mount that *path*, which has no links, is on."""
    above = [point for point in mount_points() if path.is_relative_to(point.path)]
    return max(reversed(above), key=lambda point: len(point.path.parts), default=None)


def _problem_of(target: Path) -> str | None:
    """Why what is mounted at *target* cannot be read; None if it can."""
    try:
        with os.scandir(target) as entries:
            next(entries, None)
    except OSError as error:
        return error.strerror or str(error)
    return None
