"""What both front ends have in common: how long the kernel may keep answers, and what the daemon asks of a session."""

import time
from collections.abc import Sequence
from typing import Protocol

from fs.client.adoption import Invalidations
from fs.client.inodes import InodeTable
from fs.client.magic import MountFacts

LONGEST_NAME = 255
_YEAR_S = 365 * 86400


class Kept:
    """How long the kernel may keep answers, in seconds.

    What it knows is revoked when a newer revision is adopted, so the times only bound the harm of a lost revocation.
    """

    def __init__(self, *, is_fixed: bool) -> None:
        self.entries_s = _YEAR_S if is_fixed else 3600
        self.negatives_s = _YEAR_S if is_fixed else 60


class Session(Protocol):
    """A connection to the kernel."""

    keeps_mount: bool  # when it is closed, for the next daemon

    def mount(self) -> None:
        """Make the file system appear. Raises MountError."""

    async def serve(self) -> None:
        """Answer the kernel until the file system is unmounted or ``stop`` is called."""

    async def resume(self) -> None:
        """Revoke what the kernel was told by an earlier daemon and does not hold any more; ``serve`` must run."""

    def stop(self) -> None:
        """Take no new requests: ``serve`` returns when those under way are answered."""

    async def revoke(self, forgotten: Invalidations) -> None:
        """Make the kernel forget."""

    def close(self) -> None:
        """Unmount, if it is still mounted and shall not be kept."""


def count_fault(facts: MountFacts) -> None:
    """An EIO is about to be returned."""
    facts.io_errors += 1
    facts.last_io_error_unix_s = int(time.time())


def describe(inodes: InodeTable, arguments: Sequence[object]) -> str:
    """The path that a request is about, for the log; *arguments* are an inode number and perhaps a name."""
    inode = arguments[0] if arguments else None
    node = inodes.get(inode) if isinstance(inode, int) else None
    path = node.found.path if node is not None else b"?"
    name = arguments[1] if len(arguments) > 1 and isinstance(arguments[1], bytes) else b""
    return (path + (b" " + name if name else b"")).decode("utf-8", "backslashreplace")
