"""Containers with IDs of their own: what can be mapped, looked at before containerd is told to map it.

Labels with a mapping come from clients that know the plugin as one with the capability ``remap-ids``; containerd then
maps the lower directories itself. Where a file system does not allow that, mounting fails late, in the shim, and says
EINVAL; here Prepare fails and says why.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from fs.errors import MountingError
from fs.rootfs.idmapping import try_mapping
from snapshotter.errors import CannotMapError, LayerUnavailableError
from snapshotter.hanging import PatientThreads

_TIMEOUT_S = 5.0
_THREADS = 4


class IdMapping:
    """Tries file systems, once each."""

    def __init__(self) -> None:
        self._threads = PatientThreads(limit=_THREADS, timeout_s=_TIMEOUT_S)
        self._allowed: set[int] = set()  # device numbers

    async def real(self, lowers: Sequence[Path]) -> tuple[Path, ...]:
        """Where *lowers* really are: containerd maps what is below a common directory, and links lead out of it.

        Raises:
            CannotMapError: one of them is on a file system whose owners cannot be mapped.
            LayerUnavailableError: it does not answer.
        """
        try:
            return await self._threads.run(lambda: tuple(self._tried(lower) for lower in lowers))
        except MountingError as error:
            raise CannotMapError(str(error)) from error
        except OSError as error:  # TimeoutError too
            path = str(error.filename or lowers[0])
            raise LayerUnavailableError(path, error.strerror or "no answer in time") from error

    def _tried(self, lower: Path) -> Path:
        real = Path(os.path.realpath(lower, strict=True))
        device = real.stat().st_dev
        if device not in self._allowed:
            try_mapping(real)
            self._allowed.add(device)
        return real
