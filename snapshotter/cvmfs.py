"""LayerFilesystem over a mounted repository, laid out as ``docs/format/layout.md`` says.

Only plain file system calls are made, so any client may have mounted the repository. Each call runs in a worker
thread with a time limit: a thread inside a hanging FUSE call cannot be ended, so it is left behind, and when too many
are left behind calls fail at once until some come back.
"""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import TypeVar, assert_never

from snapshotter.errors import LayerUnavailableError
from snapshotter.filesystem import FoundLayer, RootImage
from snapshotter.hanging import PatientThreads, ThreadsExhaustedError
from snapshotter.labels import RootOwner, WantedLayer
from snapshotter.snapshots import LayerSource, SourceKind, Usage, sha256_digits

_T = TypeVar("_T")
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
_COUNTERS = "user.catalog_counters"
_KINDS = ("regular", "symlink", "special", "dir")
_PREFIX_LENGTH = 2
_THREADS = 16


class CvmfsLayers:
    """Layers of the repository mounted at *mountpoint*.

    Args:
        mountpoint: where a client has mounted, or will mount, the repository; nothing is looked at here.
        timeout_s: limit of one look at the repository.
        by_layer_digest: serve layers by the label ``cri.layer-digest`` from a repository that has no ChainIDs.
            containerd must have been told to set that label itself, else an image's author can.
    """

    def __init__(self, mountpoint: Path, *, timeout_s: float, by_layer_digest: bool) -> None:
        self._mountpoint = mountpoint
        self._timeout_s = timeout_s
        self._by_layer_digest = by_layer_digest
        self._threads = PatientThreads(limit=_THREADS, timeout_s=timeout_s)

    async def find(self, wanted: WantedLayer) -> FoundLayer | None:
        """See LayerFilesystem.find."""
        return await self._timed(lambda: self._find(wanted), self._chain(wanted.chain_digits))

    async def check(self, sources: Sequence[LayerSource]) -> tuple[RootOwner, ...]:
        """See LayerFilesystem.check."""
        if not sources:
            return ()
        return await self._timed(lambda: self._check(sources), self._mountpoint)

    async def measure(self, source: LayerSource) -> Usage | None:
        """See LayerFilesystem.measure: the counters of the catalog that begins at the layer."""
        try:
            return await self._timed(lambda: self._measure(source), self._mountpoint)
        except LayerUnavailableError:
            return None

    def _measure(self, source: LayerSource) -> Usage | None:
        place = LayerSource(SourceKind.CHAIN_LAYER, source.hex) if source.kind is SourceKind.CHAIN_FLAT else source
        real = os.path.realpath(self.path(place))
        try:
            text = os.getxattr(real, _COUNTERS).decode("ascii", "replace")
        except OSError:
            return None
        return usage_of_counters(text, "/" + os.path.relpath(real, os.path.realpath(self._mountpoint)))

    def path(self, source: LayerSource) -> PurePath:
        """See LayerFilesystem.path."""
        match source.kind:
            case SourceKind.CHAIN_LAYER:
                return self._chain(source.hex) / "layer"
            case SourceKind.CHAIN_FLAT:
                return self._chain(source.hex) / "flat"
            case SourceKind.LAYER:
                return self._mountpoint / ".layers" / source.hex[:_PREFIX_LENGTH] / source.hex / "layerfs"
            case _:
                assert_never(source.kind)

    def root_image(self, source: LayerSource) -> RootImage | None:
        """See LayerFilesystem.root_image."""
        if source.kind is not SourceKind.CHAIN_FLAT:
            return None
        view = self._mountpoint / ".unpackd" / "content"
        return RootImage(file=self._chain(source.hex) / "rootfs.erofs", data=self._mountpoint, shared_data=view)

    def _chain(self, digits: str) -> Path:
        return self._chains() / digits[:_PREFIX_LENGTH] / digits

    def _chains(self) -> Path:
        return self._mountpoint / ".unpackd" / "chains"

    def _find(self, wanted: WantedLayer) -> FoundLayer | None:
        try:
            return self._find_chain(wanted.chain_digits) or self._find_layer(wanted)
        except OSError as error:
            path = str(error.filename or self._mountpoint)
            raise LayerUnavailableError(path, error.strerror or str(error)) from error

    def _find_chain(self, digits: str) -> FoundLayer | None:
        chain = self._chain(digits)
        if not _present(chain):
            return None
        parent = _parent_of(chain)
        flat, layer = LayerSource(SourceKind.CHAIN_FLAT, digits), LayerSource(SourceKind.CHAIN_LAYER, digits)
        if self._readable(flat) is not None:
            return FoundLayer(source=flat, parent_chain_id=parent)
        # it is listed when it is mounted, which few layers of an image ever are: each has a catalog of its own
        if self._readable(layer, is_listed=False) is not None:
            return FoundLayer(source=layer, parent_chain_id=parent)
        return None

    def _find_layer(self, wanted: WantedLayer) -> FoundLayer | None:
        if not self._by_layer_digest or wanted.layer_digits is None or _present(self._chains()):
            return None
        source = LayerSource(SourceKind.LAYER, wanted.layer_digits)
        if self._readable(source) is None:
            return None
        return FoundLayer(source=source, parent_chain_id=None, parent_known=False)

    def _check(self, sources: Sequence[LayerSource]) -> tuple[RootOwner, ...]:
        owners: list[RootOwner] = []
        for source in sources:
            path = str(self.path(source))
            try:
                owner = self._readable(source)
            except OSError as error:
                raise LayerUnavailableError(path, error.strerror or str(error)) from error
            if owner is None:
                raise LayerUnavailableError(path, "it is not there")
            owners.append(owner)
        return tuple(owners)

    def _readable(self, source: LayerSource, *, is_listed: bool = True) -> RootOwner | None:
        """Owner of the layer's root directory, which has to bear listing unless told not to; None if there is none."""
        path = self.path(source)
        try:
            real = Path(os.path.realpath(path, strict=True))
            status = real.stat()
            if not stat.S_ISDIR(status.st_mode) or not real.is_relative_to(os.path.realpath(self._mountpoint)):
                return None
            if is_listed:
                with os.scandir(real) as entries:
                    next(entries, None)  # reads the catalog that the directory is in
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise
        return RootOwner(uid=status.st_uid, gid=status.st_gid)

    async def _timed(self, look: Callable[[], _T], path: Path) -> _T:
        """Result of *look*; *path* is named if none comes in time."""
        try:
            return await self._threads.run(look)
        except ThreadsExhaustedError as error:
            raise LayerUnavailableError(str(path), "earlier calls still hang") from error
        except TimeoutError as error:
            raise LayerUnavailableError(str(path), f"no answer within {self._timeout_s:g} s") from error


def usage_of_counters(text: str, path: str) -> Usage | None:
    """Bytes and inodes below *path* if *text*, a catalog's counters, is of the catalog that begins there."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = line.partition("," if "," in line else ":")
        if separator:
            values[name.strip()] = value.strip()
    try:
        if values["catalog_mountpoint"] != path:
            return None
        inodes = sum(int(values[kind]) for kind in _KINDS) - int(values["nested"])  # their roots count twice
        return Usage(size_bytes=int(values["file_size"]), inodes=max(1, inodes))
    except (KeyError, ValueError):
        return None


def _parent_of(chain: Path) -> str | None:
    """ChainID that the entry *chain* names as its parent; None for the first layer of a chain.

    A parent that is not written as a ChainID raises OSError: the entry is not one of ours.
    """
    try:
        target = (chain / "parent").readlink()
    except FileNotFoundError:
        return None
    parent = f"sha256:{target.name}"
    if sha256_digits(parent) is None:
        raise OSError(errno.EUCLEAN, "the entry's parent is not a ChainID", str(chain))
    return parent


def _present(path: Path) -> bool:
    """True if *path* is there; raises OSError if that cannot be told."""
    try:
        path.lstat()
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise
    return True
