"""A session through libfuse: mounting (also unprivileged, by fusermount3), the loop, revocations."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio.to_thread
import pyfuse3
import structlog

from fs.client.adoption import Invalidations
from fs.client.inodes import Inode
from fs.client.mountpoints import FILESYSTEM, MountError
from fs.client.pyfuse3_frontend import Pyfuse3Frontend

_log = structlog.get_logger()

_REVOCATIONS_AT_ONCE = 512


class Pyfuse3Session:
    """See frontend.Session. There can be one in a process.

    Args:
        frontend: the handlers.
        name: of the repository.
        mountpoint: absolute.
        allows_other: users other than the one who mounts.
    """

    def __init__(self, frontend: Pyfuse3Frontend, name: str, mountpoint: Path, *, allows_other: bool) -> None:
        self.keeps_mount = False
        self._frontend = frontend
        self._name = name
        self._mountpoint = mountpoint
        self._allows_other = allows_other

    def mount(self) -> None:
        """See Session."""
        self.begin(str(self._mountpoint))

    def begin(self, where: str) -> None:
        """Start libfuse on *where*: a mount point, or an open session as ``/dev/fd/N``. Raises MountError."""
        options = {f"fsname={FILESYSTEM}:{self._name}", f"subtype={FILESYSTEM}", "ro", "default_permissions"}
        if os.geteuid() == 0:
            options |= {"suid", "dev"}  # root file systems of containers are made of this; others may not ask for it
        if self._allows_other:
            options.add("allow_other")
        with tempfile.TemporaryFile() as said, _stderr_to(said.fileno()):
            try:
                pyfuse3.init(self._frontend, where, options)
            except RuntimeError as error:
                said.seek(0)
                reason = said.read().decode("utf-8", "replace").strip() or str(error)
                raise MountError(
                    f"{self._mountpoint} could not be mounted: {reason}; 'unpackd doctor' says what this machine lacks"
                ) from error

    async def serve(self) -> None:
        """See Session."""
        await pyfuse3.main(min_tasks=4, max_tasks=99)

    async def resume(self) -> None:
        """See Session: there is no earlier daemon."""

    def stop(self) -> None:
        """See Session."""
        pyfuse3.terminate()

    async def revoke(self, forgotten: Invalidations) -> None:
        """See Session. In threads: it may have to wait for requests that this loop answers."""
        for start in range(0, len(forgotten.entries), _REVOCATIONS_AT_ONCE):
            part = forgotten.entries[start : start + _REVOCATIONS_AT_ONCE]
            await anyio.to_thread.run_sync(_revoke_entries, part)
        await anyio.to_thread.run_sync(_revoke_attributes, forgotten.directories)

    def close(self) -> None:
        """See Session."""
        pyfuse3.close(unmount=True)


@contextmanager
def _stderr_to(descriptor: int) -> Iterator[None]:
    """Send what a C library says to *descriptor*: libfuse has no other way to give its reasons."""
    kept = os.dup(2)
    try:
        os.dup2(descriptor, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _revoke_entries(entries: list[tuple[Inode, bytes]]) -> None:
    for parent, name in entries:
        try:
            pyfuse3.invalidate_entry(parent, name)
        except OSError as error:  # mostly: the kernel did not know it any more
            _log.debug("entry_not_revoked", reason=error.strerror)


def _revoke_attributes(inodes: list[Inode]) -> None:
    for inode in inodes:
        try:
            pyfuse3.invalidate_inode(inode, attr_only=True)
        except OSError as error:
            _log.debug("attributes_not_revoked", reason=error.strerror)
