"""Metadata images of whole root file systems: copied here, tried, mounted once each, unmounted when nobody needs them.

An image is read from the repository once, through the client that verifies it, and mounted from the copy: names are
there then whatever becomes of a FUSE server. What is mounted at ``m/<number>`` is a complete root file system, an
overlay of the image over its data, so containers get a lower directory like any other: containerd's clients read it,
too, and know nothing of layers without names. Overlays keep what they were mounted with, whatever happens to the mount
here, so unmounting never harms a container.

Locking: ``_table`` guards ``_mounted`` and what is mounted at ``m/<number>``; while it is held only local calls are
made, and rows are read. A number's turn (``_turns``) makes the calls for one image wait for each other; a thread
that was left behind in a hanging call does not hold it any more, so every step can be done by two threads at once.
"""

import json
import os
import shutil
import stat
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import RawIOBase
from pathlib import Path
from typing import IO

import anyio
import structlog

from fs.errors import MountingError
from fs.rootfs.mounting import bind, mount_root, probe, try_root, unmount
from fs.runtime.files import sync_directory, write_atomically
from snapshotter.config import RootForm
from snapshotter.directories import Directories
from snapshotter.errors import ConfigurationError
from snapshotter.filesystem import LayerFilesystem, RootImage
from snapshotter.hanging import PatientThreads
from snapshotter.mountinfo import is_seen_outside
from snapshotter.mounts import OverlayTraits
from snapshotter.snapshots import LayerSource

_log = structlog.get_logger()
_TIMEOUT_S = 30.0
_RETRY_S = 10.0
_THREADS = 16
_LIMIT_BYTES = 1 << 30
_PIECE_BYTES = 1 << 20

_Identity = tuple[int, int, int]  # size and time of the published file, which may be replaced; device of its data
_TAKEN_OVER: _Identity = (-1, -1, -1)  # mounted by an earlier process


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How root file systems are given to containers on this machine, and why."""

    setting: RootForm
    form: RootForm
    reason: str

    def store(self, path: Path) -> None:
        """Write it down for ``unpackd doctor``."""
        write_atomically(path, json.dumps(asdict(self)).encode(), durable=False)

    @classmethod
    def load(cls, path: Path) -> "Decision | None":
        """Inverse of ``store``; None if there is none."""
        try:
            document = json.loads(path.read_bytes())
            return cls(
                setting=RootForm(document["setting"]), form=RootForm(document["form"]), reason=str(document["reason"])
            )
        except (OSError, ValueError, TypeError, KeyError):
            return None


def decide(setting: RootForm, scratch: Path, traits: OverlayTraits) -> Decision:
    """Decide by trying in a folder of its own below *scratch*, which lies where upper directories will.

    Raises:
        ConfigurationError: *setting* asks for what does not work here.
    """
    if setting is RootForm.FUSE:
        return Decision(setting=setting, form=RootForm.FUSE, reason="the configuration says so")
    folder = Path(tempfile.mkdtemp(prefix="probe-", dir=scratch))
    reason = ""
    if traits.userxattr:
        reason = "this is a user namespace"
    elif not is_seen_outside(scratch):
        reason = "what is mounted here is not seen outside of this mount namespace"
    try:
        found = None if reason else probe(folder)
    except (MountingError, OSError) as error:
        found, reason = None, str(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if found is not None:
        return Decision(setting=setting, form=RootForm.EROFS, reason=f"tried: images are mounted from a {found}")
    if setting is RootForm.EROFS:
        raise ConfigurationError(f'rootfs = "erofs" does not work on this machine: {reason}')
    return Decision(setting=setting, form=RootForm.FUSE, reason=reason)


class RootImages:
    """The metadata images in the state directory.

    Args:
        directories: the state directory, locked by the caller.
        layers: says where images are in the repository.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        directories: Directories,
        layers: LayerFilesystem,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._directories = directories
        self._layers = layers
        self._clock = clock
        self._threads = PatientThreads(limit=_THREADS, timeout_s=_TIMEOUT_S)
        self._table = threading.Lock()
        self._mounted: dict[int, _Identity] = {}
        self._turns: defaultdict[int, anyio.Lock] = defaultdict(anyio.Lock)
        self._again_at_s: dict[int, float] = {}

    @property
    def count(self) -> int:
        """How many are mounted."""
        return len(self._mounted)

    def restore(self, needed: Iterable[int]) -> None:
        """Take over what an earlier process has mounted and is needed; unmount the rest.

        Looks at nothing in the repository, which need not be there yet; what is missing is mounted when asked for.
        """
        for leftover in (self._directories.path / "e").glob(".*"):
            leftover.unlink(missing_ok=True)
        wanted = {self._directories.image_mount(number): number for number in needed}
        for point in self._directories.mounted_images():
            number = wanted.get(point)
            if number is None or number in self._mounted:
                self._unmount(point)
            else:
                self._mounted[number] = _TAKEN_OVER
        for folder in (self._directories.path / "m").iterdir():
            with suppress(OSError):  # what is mounted stays
                folder.rmdir()

    async def lower(self, number: int, source: LayerSource) -> Path | None:
        """The root file system *source* of the snapshot *number* as a mounted image; None if it is to be used as it is.

        Until the snapshot that needs it is in the metastore, ``release`` may take the image away: ask again then.
        """
        image = self._layers.root_image(source)
        if image is None:
            return None
        async with self._turns[number]:
            if self._clock() < self._again_at_s.get(number, float("-inf")):
                return None
            try:
                return await self._threads.run(lambda: self._bring(number, image))
            except (MountingError, OSError) as error:  # TimeoutError is an OSError
                self._again_at_s[number] = self._clock() + _RETRY_S
                reason = str(error) or f"not read within {_TIMEOUT_S:g} s"
                _log.info("root_image_not_used", source=str(source), reason=reason)
                return None

    def release(self, in_use: Callable[[], Mapping[int, LayerSource]]) -> None:
        """Unmount the images of all snapshots that *in_use* does not name."""
        with self._table:
            needed = in_use()
            for number in [number for number in self._mounted if number not in needed]:
                self._take_away(number)

    def _bring(self, number: int, image: RootImage) -> Path:
        """Copy, mount and try what is not yet; hangs for as long as the repository does."""
        status = image.file.lstat()
        data = image.shared_data if image.shared_data.is_dir() else image.data
        identity = (status.st_size, status.st_mtime_ns, data.stat().st_dev)
        point = self._directories.image_mount(number)
        copy = self._directories.image(number)
        is_copied = _identity_of_copy(copy) == identity[:2]
        if is_copied and self._mounted.get(number) in (identity, _TAKEN_OVER):
            with suppress(MountingError):  # else its data are gone, and it is mounted anew
                self._try(number)
                self._mounted[number] = identity
                return point
        if not is_copied:
            _copy(image.file, copy, identity[0], identity[1])
        fresh = Path(tempfile.mkdtemp(prefix=f".{number}.", dir=self._directories.path / "m"))
        try:
            mount_root(copy, self._directories.data(data), fresh)
            with self._table:
                self._take_away(number)
                point.mkdir(mode=0o700, exist_ok=True)
                bind(fresh, point)
                self._mounted[number] = identity
        finally:
            self._unmount(fresh)
        try:
            self._try(number)
        except MountingError:
            with self._table:
                self._take_away(number)
            raise
        _log.info("root_image_mounted", number=number, path=str(image.file), size_bytes=identity[0])
        return point

    def _try(self, number: int) -> None:
        with tempfile.TemporaryDirectory(prefix="try-", dir=self._directories.path / "m") as scratch:
            try_root(self._directories.image_mount(number), Path(scratch))

    def _take_away(self, number: int) -> None:
        """Unmount an image if it is mounted. With the table held."""
        if self._mounted.pop(number, None) is not None:
            self._unmount(self._directories.image_mount(number))

    @staticmethod
    def _unmount(point: Path) -> None:
        try:
            unmount(point)
            point.rmdir()
        except (MountingError, OSError) as error:
            _log.warning("root_image_stays_mounted", path=str(point), reason=str(error))


def _identity_of_copy(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return (status.st_size, status.st_mtime_ns)


def _copy(source: Path, target: Path, size_bytes: int, mtime_ns: int) -> None:
    """Copy a file of that size and time; the copy has them too, and is complete and on the disk when it has its name.

    Raises:
        MountingError: it is not such a file.
        OSError: a read or write error.
    """
    if size_bytes > _LIMIT_BYTES:
        raise MountingError(f"{source} is larger than {_LIMIT_BYTES} bytes")
    with os.fdopen(os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0) as reader:
        if not stat.S_ISREG(os.fstat(reader.fileno()).st_mode):
            raise MountingError(f"{source} is not a regular file")
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "wb") as writer:
                _pour(reader, writer, size_bytes)
            os.utime(temporary, ns=(mtime_ns, mtime_ns))
            Path(temporary).rename(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    sync_directory(target.parent)


def _pour(reader: RawIOBase, writer: IO[bytes], size_bytes: int) -> None:
    """Write the first *size_bytes* of *reader* to the disk. Raises MountingError if there are fewer."""
    remaining = size_bytes
    while remaining and (piece := reader.read(min(remaining, _PIECE_BYTES))):
        writer.write(piece)
        remaining -= len(piece)
    if remaining:
        raise MountingError("the metadata image ends too early")
    writer.flush()
    os.fsync(writer.fileno())
