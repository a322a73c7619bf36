"""One writer at a time: a file lock that dies with its process."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fs.errors import LockedError

_POLL_S = 0.02


@contextmanager
def exclusive(path: Path, *, timeout_s: float) -> Iterator[None]:
    """Hold the lock of file *path*, against other processes and other threads.

    Raises:
        LockedError: somebody else held it for *timeout_s*.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + timeout_s
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise LockedError(f"another writer holds {path} (waited {timeout_s:g} s)")
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)  # which also unlocks


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
