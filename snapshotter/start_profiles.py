"""A LayerFilesystem whose mount is told what a container will read, as soon as its image is asked for.

A whole root file system may have a start profile (``start.json`` beside its ChainID's ``flat``): what an earlier start
read; and beside that the part of it that its metadata image does not hold, for those who mount that. The daemon that
serves the mount then fetches it at once, while the image is pulled and the container is made. It is a hint: nobody
waits for it, and what goes wrong is only logged. A mount that is not ours is not asked.
"""

import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path, PurePath

import structlog

from fs.client.control import ask
from fs.client.mountpoints import control_socket, find_mount
from fs.runtime.errors import UnpackdError
from snapshotter.config import RootForm
from snapshotter.filesystem import FoundLayer, LayerFilesystem, RootImage
from snapshotter.labels import RootOwner, WantedLayer
from snapshotter.snapshots import LayerSource, SourceKind, Usage

_log = structlog.get_logger()
_AGAIN_S = 60.0
_MOST_WAITING = 64
_TIMEOUT_S = 10.0
PROFILE = "start.json"
IMAGE_PROFILE = "start.erofs.json"


class ProfiledLayers:
    """*layers* of the repository mounted at *mountpoint*, with hints to the mount.

    Args:
        layers: where they are.
        mountpoint: of the repository.
        form: how root file systems are given to containers.
    """

    def __init__(self, layers: LayerFilesystem, mountpoint: Path, form: RootForm) -> None:
        self._layers = layers
        self._mountpoint = mountpoint
        is_image = form is RootForm.EROFS
        self._profiles = (IMAGE_PROFILE, PROFILE) if is_image else (PROFILE,)
        self._through = "content" if is_image else "files"  # where containers look for what is in files
        self._hinted: dict[LayerSource, float] = {}
        self._waiting: queue.Queue[LayerSource] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None

    async def find(self, wanted: WantedLayer) -> FoundLayer | None:
        """See LayerFilesystem.find."""
        found = await self._layers.find(wanted)
        if found is not None:
            self._hint(found.source)
        return found

    async def check(self, sources: Sequence[LayerSource]) -> tuple[RootOwner, ...]:
        """See LayerFilesystem.check."""
        for source in sources:
            self._hint(source)
        return await self._layers.check(sources)

    def path(self, source: LayerSource) -> PurePath:
        """See LayerFilesystem.path."""
        return self._layers.path(source)

    def root_image(self, source: LayerSource) -> RootImage | None:
        """See LayerFilesystem.root_image."""
        return self._layers.root_image(source)

    async def measure(self, source: LayerSource) -> Usage | None:
        """See LayerFilesystem.measure."""
        return await self._layers.measure(source)

    def _hint(self, source: LayerSource) -> None:
        """Have *source* looked at by a thread of its own, unless that was done a moment ago."""
        now = time.monotonic()
        if source.kind is not SourceKind.CHAIN_FLAT or now - self._hinted.get(source, -_AGAIN_S) < _AGAIN_S:
            return
        self._hinted = {one: at for one, at in self._hinted.items() if now - at < _AGAIN_S}
        self._hinted[source] = now
        try:
            self._waiting.put_nowait(source)
        except queue.Full:  # the repository hangs
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="profiles", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            source = self._waiting.get()
            try:
                self._ask(source)
            except (OSError, UnpackdError) as error:
                _log.info("start_profile_not_used", source=str(source), reason=str(error))
            except Exception:  # noqa: BLE001  # the edge: a fault in a hint must not end all hints
                _log.exception("start_profile_broken")

    def _ask(self, source: LayerSource) -> None:
        """Have the mount fetch what the profile of *source* names, if it has one."""
        beside = Path(self._layers.path(source)).parent
        profile = next((beside / name for name in self._profiles if (beside / name).is_file()), None)
        if profile is None:
            return
        mounted = find_mount(self._mountpoint)
        if mounted is None:
            return
        socket = control_socket(self._mountpoint, mounted.uid)
        request = {"command": "prefetch", "profile": str(profile), "through": self._through}
        job = ask(socket, request, timeout_s=_TIMEOUT_S)
        _log.info("start_profile_fetched", source=str(source), **job)
