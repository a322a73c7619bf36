"""The snapshotter's own directory: writable layers, short names of lower layers, garbage.

======================  ==============================================================================
``metadata.db``         the metastore
``s/<number>/fs``       content of an ordinary snapshot; ``work`` beside it is the overlay's work directory
``l/<number>``          symlink to the content of a committed snapshot, here or in the repository
``e/<number>``          local copy of the metadata image of a whole root file system
``m/<number>``          where that image is mounted
``d<digits>``           symlink to the data that metadata images name
``rootfs.json``         how root file systems are given to containers, for ``unpackd doctor``
``t/``                  what is being made, and what is to be deleted
``lock``                held while a snapshotter uses the directory
======================  ==============================================================================

Lower layers are always given as ``l/<number>``: mount(2) takes one page of options, and containerd can shorten paths
that share a directory. A symlink is only a file: nothing has to be mounted again after a restart.

Numbers come from the metastore. A directory is complete when it has its number as name; whatever happens before is
garbage in ``t/``.
"""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePath
from typing import IO

import structlog

from fs.runtime.files import sync_directory
from snapshotter.errors import ConfigurationError, StateError, StateLockedError
from snapshotter.labels import RootOwner
from snapshotter.mountinfo import mount_points
from snapshotter.snapshots import Usage

_log = structlog.get_logger()
_OWN = re.compile(r"[slemt]|d[0-9a-f]*|lock|metadata\.db.*|\.?rootfs\.json.*")
_BLOCK_BYTES = 512  # unit of st_blocks
_UNUSABLE = frozenset(":,\\\n ")  # would end or split an overlay option


class MeasuringCancelledError(Exception):
    """Nobody waits for the size any more."""


class Directories:
    """The directory *root*, made with mode 0700 if it is not there.

    Raises:
        ConfigurationError: the path cannot be part of mount options.
        StateError: there are snapshots but no metastore, and beginning anew would lose them; or it holds other files.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        if _UNUSABLE.intersection(str(self._root)):
            raise ConfigurationError(f"{self._root}: no blank, comma, colon or backslash may be in the path")
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        foreign = [name for name in _entries(self._root) if _OWN.fullmatch(name) is None]
        if foreign:
            raise StateError(f"{self._root} holds {foreign[0]!r}, which is not ours: give a directory of its own")
        self._root.chmod(0o700)  # set-uid programs in layers are not for the users of this machine
        for name in ("s", "l", "e", "m", "t"):
            (self._root / name).mkdir(mode=0o700, exist_ok=True)
        if not self.metadata.exists() and any(_entries(self._root / "s")):
            raise StateError(
                f"{self._root} holds snapshots but {self.metadata.name} is gone: put it back, or move the directory"
                " away if no container needs it",
            )

    @property
    def metadata(self) -> Path:
        """The metastore's file."""
        return self._root / "metadata.db"

    @property
    def path(self) -> Path:
        """The directory itself."""
        return self._root

    @property
    def scratch(self) -> Path:
        """For what is made and thrown away at once."""
        return self._root / "t"

    @property
    def form(self) -> Path:
        """Where it is said how root file systems are given to containers."""
        return self._root / "rootfs.json"

    def image(self, number: int) -> Path:
        """Local copy of a metadata image."""
        return self._root / "e" / str(number)

    def image_mount(self, number: int) -> Path:
        """Where a metadata image is mounted."""
        return self._root / "m" / str(number)

    def mounted_images(self) -> tuple[Path, ...]:
        """Where something is mounted now of what metadata images are mounted at; deepest and latest first."""
        return tuple(point.path for point in reversed(mount_points()) if point.path.is_relative_to(self._root / "m"))

    def data(self, place: Path) -> Path:
        """The short name of the data at *place*."""
        digits = hashlib.blake2b(os.fsencode(place), digest_size=4).hexdigest()
        return _linked(self._root / f"d{digits}", str(place))

    def lock(self) -> IO[str]:
        """Take the directory for this process until the given file is closed. Raises StateLockedError."""
        stream = (self._root / "lock").open("w")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.close()
            raise StateLockedError(f"{self._root} is used by another snapshotter") from error
        return stream

    def content(self, number: int) -> Path:
        """Content of an ordinary snapshot; the upper directory of an Active one."""
        return self._root / "s" / str(number) / "fs"

    def work(self, number: int) -> Path:
        """Work directory of an Active snapshot."""
        return self._root / "s" / str(number) / "work"

    def create(self, number: int, owner: RootOwner | None) -> None:
        """Make the directory of a new snapshot, root owned by *owner*; durable when this returns.

        Must be called inside the write transaction that gives *number*: a directory of that name can then only be
        left from a transaction that did not end, and is garbage.
        """
        temporary = self._garbage("new")
        temporary.mkdir(mode=0o700)
        content = temporary / "fs"
        content.mkdir()
        content.chmod(0o755)  # whatever the umask is
        if owner is not None:
            os.chown(content, owner.uid, owner.gid)
        (temporary / "work").mkdir(mode=0o711)
        sync_directory(temporary)
        final = self.content(number).parent
        with suppress(FileNotFoundError):
            final.rename(self._garbage("stale"))
        temporary.rename(final)
        sync_directory(final.parent)

    def owner_of(self, number: int) -> RootOwner:
        """Owner of the root directory of an ordinary snapshot."""
        status = self.content(number).stat()
        return RootOwner(uid=status.st_uid, gid=status.st_gid)

    def lower(self, number: int, place: PurePath | None) -> Path:
        """The short name of a lower layer, made or corrected if need be; *place* is None for an ordinary one."""
        return _linked(self._root / "l" / str(number), f"../s/{number}/fs" if place is None else str(place))

    def measure(self, number: int, cancelled: threading.Event) -> Usage:
        """Disk space of an ordinary snapshot: blocks in use, hard links once.

        Raises:
            MeasuringCancelledError: *cancelled* was set.
        """
        seen: set[tuple[int, int]] = set()
        size_bytes = 0
        for status in _walk(self.content(number)):
            if cancelled.is_set():
                raise MeasuringCancelledError
            identity = (status.st_dev, status.st_ino)
            if identity not in seen:
                seen.add(identity)
                size_bytes += status.st_blocks * _BLOCK_BYTES
        return Usage(size_bytes=size_bytes, inodes=len(seen))

    def set_aside(self, kept: frozenset[int]) -> tuple[Path, ...]:
        """Move everything that belongs to no number of *kept* out of the way; gives all garbage.

        Must be called while nobody else writes to the metastore: then nothing in ``t/`` is being made.
        """
        known = {str(number) for number in kept}
        for folder in ("l", "e"):
            for name in _entries(self._root / folder):
                if name not in known and not name.startswith("."):  # those are being made
                    (self._root / folder / name).unlink(missing_ok=True)
        for name in _entries(self._root / "s"):
            if name not in known:
                (self._root / "s" / name).rename(self._garbage("gone"))
        return tuple(self._root / "t" / name for name in _entries(self._root / "t"))

    def delete(self, garbage: tuple[Path, ...]) -> None:
        """Delete what was set aside. What cannot be deleted now stays garbage."""
        mounted = mount_points()
        for path in garbage:
            if any(point.path.is_relative_to(path) for point in mounted):
                _log.warning("garbage_is_mounted", path=str(path))  # deleting would reach into what is mounted
                continue
            try:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            except FileNotFoundError:
                continue  # two cleanups at once
            except OSError as error:
                _log.warning("garbage_stays", path=str(path), error=str(error))

    def _garbage(self, purpose: str) -> Path:
        return self._root / "t" / f"{purpose}-{secrets.token_hex(8)}"


def _linked(link: Path, target: str) -> Path:
    """*link* as a symlink to *target*."""
    while True:  # two calls may do this at once, and agree
        try:
            if os.readlink(link) == target:  # noqa: PTH115  # compared as text
                return link
            link.unlink(missing_ok=True)  # the repository is mounted elsewhere now
        except FileNotFoundError:
            with suppress(FileExistsError):
                link.symlink_to(target)


def _entries(path: Path) -> list[str]:
    return os.listdir(path)  # noqa: PTH208  # names are what is wanted


def _walk(root: Path) -> Iterator[os.stat_result]:
    """Attributes of *root* and of everything below it on the same file system; what vanishes meanwhile is skipped."""
    top = root.lstat()
    yield top
    pending = [root]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    yield status
                    if stat.S_ISDIR(status.st_mode) and status.st_dev == top.st_dev:
                        pending.append(root / entry.path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
