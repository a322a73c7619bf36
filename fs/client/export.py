"""A part of a repository written out: as a directory, or as a tar, with everything that was recorded.

Names are taken as a stranger's: what exists is never written over or through, and a name that is a path is refused.
"""

import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import structlog

from fs.client.library import OpenRepository, Status
from fs.errors import AbsentError, CatalogError, RefusedError

_log = structlog.get_logger()

_PIECE_BYTES = 1 << 20


@dataclass(slots=True)
class ExportCounts:
    """What was written."""

    directories: int = 0
    files: int = 0
    links: int = 0  # symbolic links, and further names of files
    others: int = 0  # devices, pipes, sockets
    bytes: int = 0
    skipped: list[str] = field(default_factory=list)  # what this user may not make here


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a directory gets besides names, contents and permissions."""

    owners: bool = True
    xattrs: bool = True


def _entries(repository: OpenRepository, top: Status) -> Iterator[tuple[str, Status]]:
    """*top* and what is below it, each with its path from there; what a directory holds follows it at once.

    Programs that unpack set the time of a directory when they see the first entry outside of it.
    """
    skip = len(top.path)
    waiting = [top]
    while waiting:
        status = waiting.pop()
        yield status.path[skip:].lstrip("/"), status
        if not status.is_directory:
            continue
        for child in reversed(repository.ls(status.path)):
            if "/" in child.name or child.name in ("", ".", "..") or "\0" in child.name:
                raise CatalogError(f"{status.path} holds an entry with the name {child.name!r}")
            waiting.append(child)


def export_directory(repository: OpenRepository, path: str, target: Path, *, kept: Kept | None = None) -> ExportCounts:
    """Write what is at *path* to *target*, which must not exist yet.

    Owners are set if root does it. What this user may not make (devices, some attributes) is left out and named.

    Raises:
        RefusedError: *target* exists, or the disk does not take it.
        AbsentError, CorruptError, UnreachableError: a part cannot be had; what was written stays.
    """
    top = _top(repository, path)
    with repository.prefetching([top.path]):
        return _DirectoryExport(repository, target, kept or Kept()).run(top)


class _DirectoryExport:
    def __init__(self, repository: OpenRepository, target: Path, kept: Kept) -> None:
        self._repository = repository
        self._target = target
        self._kept = kept
        self._owns = kept.owners and os.geteuid() == 0
        self._first_names: dict[int, str] = {}
        self._counts = ExportCounts()

    def run(self, top: Status) -> ExportCounts:
        folders: list[tuple[str, Status]] = []
        try:
            for inside, status in _entries(self._repository, top):
                place = os.path.join(self._target, inside) if inside else str(self._target)  # noqa: PTH118  # perhaps not text
                if status.is_directory:
                    os.mkdir(place, 0o700)  # noqa: PTH102  # as above
                    folders.append((place, status))
                    self._counts.directories += 1
                elif self._make(place, status):
                    self._finish(place, status)
            for place, status in reversed(folders):  # what was put into them changed their times
                self._finish(place, status)
        except OSError as error:
            raise RefusedError(f"{error.filename or self._target} cannot be written: {error.strerror}") from error
        return self._counts

    def _make(self, place: str, status: Status) -> bool:
        """Make the entry; False if it is another name of one that was made, or may not be made."""
        first = self._first_names.setdefault(status.ino, place) if status.nlink > 1 else place
        if first != place:
            os.link(first, place, follow_symlinks=False)  # as above
            self._counts.links += 1
            return False
        if status.is_regular:
            self._copy(place, status)
            return True
        if status.is_symlink:
            os.symlink(status.target or "", place)  # noqa: PTH211  # as above
            self._counts.links += 1
            return True
        try:
            os.mknod(place, stat.S_IFMT(status.mode) | 0o600, status.rdev)
        except PermissionError:
            self._skip(status, "device")
            return False
        self._counts.others += 1
        return True

    def _copy(self, place: str, status: Status) -> None:
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as output:
            for piece in _pieces(self._repository, status):
                output.write(piece)
                self._counts.bytes += len(piece)
        self._counts.files += 1

    def _finish(self, place: str, status: Status) -> None:
        """Owner first, because changing it takes set-user-id bits and capabilities away."""
        if self._owns:
            os.chown(place, status.uid, status.gid, follow_symlinks=False)
        if self._kept.xattrs:
            for name, value in status.xattrs.items():
                try:
                    os.setxattr(place, name, value, follow_symlinks=False)
                except OSError:
                    self._skip(status, f"attribute {os.fsdecode(name)}")
        if not status.is_symlink:
            os.chmod(place, stat.S_IMODE(status.mode))  # noqa: PTH101  # as above
        os.utime(place, ns=(status.mtime_ns, status.mtime_ns), follow_symlinks=False)

    def _skip(self, status: Status, what: str) -> None:
        self._counts.skipped.append(f"{status.path}: {what}")
        _log.warning("not_exported", path=status.path, what=what)


def export_tar(repository: OpenRepository, path: str, output: BinaryIO) -> ExportCounts:
    """Write what is at *path* to *output* as a tar in the pax form; names in it begin below *path*.

    Raises:
        RefusedError: *output* takes no more.
        AbsentError, CorruptError, UnreachableError: a part cannot be had; the tar is cut there.
    """
    counts = ExportCounts()
    first_names: dict[int, str] = {}
    top = _top(repository, path)
    try:
        with (
            repository.prefetching([top.path]),
            tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_PIECE_BYTES) as archive,
        ):
            for inside, status in _entries(repository, top):
                name = inside or ("." if status.is_directory else status.name)
                first = first_names.setdefault(status.ino, name) if status.nlink > 1 else name
                _add(archive, repository, _member(name, status, first if first != name else None), status, counts)
    except OSError as error:
        raise RefusedError(f"the tar cannot be written: {error.strerror}") from error
    return counts


def _member(name: str, status: Status, link: str | None) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode = stat.S_IMODE(status.mode)
    member.uid, member.gid = status.uid, status.gid
    seconds, rest = divmod(status.mtime_ns, 1_000_000_000)
    member.mtime = seconds
    headers = {f"SCHILY.xattr.{os.fsdecode(key)}": os.fsdecode(value) for key, value in status.xattrs.items()}
    member.pax_headers = headers | ({"mtime": f"{seconds}.{rest:09d}"} if rest else {})
    if link is not None:
        member.type, member.linkname = tarfile.LNKTYPE, link
        return member
    kinds = {
        stat.S_IFDIR: tarfile.DIRTYPE,
        stat.S_IFLNK: tarfile.SYMTYPE,
        stat.S_IFCHR: tarfile.CHRTYPE,
        stat.S_IFBLK: tarfile.BLKTYPE,
        stat.S_IFIFO: tarfile.FIFOTYPE,
    }
    member.type = kinds.get(stat.S_IFMT(status.mode), tarfile.REGTYPE)
    member.linkname = status.target or ""
    member.devmajor, member.devminor = os.major(status.rdev), os.minor(status.rdev)
    return member


def _add(
    archive: tarfile.TarFile, repository: OpenRepository, member: tarfile.TarInfo, status: Status, counts: ExportCounts
) -> None:
    if stat.S_ISSOCK(status.mode):
        counts.skipped.append(f"{status.path}: socket")  # tars have none
    elif member.type == tarfile.REGTYPE:
        member.size = status.size
        with repository.open(status.path) as content:
            archive.addfile(member, content)
        counts.files += 1
        counts.bytes += status.size
    else:
        archive.addfile(member)
        if status.is_directory:
            counts.directories += 1
        elif member.type in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            counts.links += 1
        else:
            counts.others += 1


def _top(repository: OpenRepository, path: str) -> Status:
    try:
        return repository.stat(path)
    except OSError as error:
        raise AbsentError(f"{path}: {error.strerror}") from error


def _pieces(repository: OpenRepository, status: Status) -> Iterator[bytes]:
    with repository.open_raw(status.path) as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece
