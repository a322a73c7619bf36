"""Leases: who may publish below which path, for how long, and after whom.

A lease is for a path and everything below it, so writers of different paths do not wait for each other's preparations.
Each lease has a fencing token, a number that only ever grows. A lease runs out unless its holder renews it; whoever
was held up for longer has lost it and is told so. What makes that safe is not the clock but the store: the manifest is
replaced by compare-and-swap, so a holder that does not know yet that it lost cannot overwrite what came after it.

Two keepers: files for the writers of one machine, a SQL database for those of several. See ``docs/leases.md``.
"""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import structlog

from fs.errors import FsError, LockedError, OvertakenError
from fs.format.paths import is_below

DEFAULT_LIFETIME_S = 60.0
_POLL_S = 0.05
_POLL_GROWTH = 1.5
_LONGEST_POLL_S = 1.0
_log = structlog.get_logger()


class LeaseLostError(OvertakenError):
    """A lease ran out, or was taken away, before its holder was done."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to publish below *path* until *expires_unix_s* of the keeper's clock."""

    repository: str
    path: bytes  # canonical; the root is the right to everything
    owner: str  # for people: host, process, what for
    token: int  # larger than that of every lease that was given before
    expires_unix_s: float


class LeaseKeeper(Protocol):
    """Gives leases. May be used by several threads; each method is one atomic step."""

    def acquire(self, repository: str, path: bytes, owner: str, lifetime_s: float) -> Lease:
        """A lease for *path*. Raises LockedError if somebody has one for it, for something above it or below it."""

    def renew(self, lease: Lease, lifetime_s: float) -> Lease:
        """The same lease, lasting until *lifetime_s* from now. Raises LeaseLostError."""

    def release(self, lease: Lease) -> None:
        """Give *lease* back; no mistake if it was lost."""

    def leases(self, repository: str) -> list[Lease]:
        """Those that are held now, oldest first."""


def conflicts(one: bytes, other: bytes) -> bool:
    """True if two paths cannot be leased at once. Whole components count: ``/foo`` does not block ``/foobar``."""
    return is_below(one, other) or is_below(other, one)


class HeldLease:
    """A lease that is renewed in the background while a ``with`` block lasts."""

    def __init__(self, keeper: LeaseKeeper, lease: Lease, lifetime_s: float) -> None:
        self._keeper = keeper
        self._lifetime_s = lifetime_s
        self._lease = lease
        self._lost: FsError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease-{lease.token}", daemon=True)
        self._thread.start()

    @property
    def token(self) -> int:
        """The fencing token."""
        return self._lease.token

    def check(self) -> None:
        """Ask the keeper itself if the lease is still held: to be called right before publishing.

        Raises:
            LeaseLostError: it is not; begin anew.
        """
        if self._lost is not None:
            raise LeaseLostError(str(self._lost)) from self._lost
        self._lease = self._keeper.renew(self._lease, self._lifetime_s)

    def close(self) -> None:
        """Stop renewing and give the lease back."""
        self._stop.set()
        self._thread.join()
        self._keeper.release(self._lease)

    def _beat(self) -> None:
        # a third, so that two beats may fail before it runs out
        while not self._stop.wait(self._lifetime_s / 3):
            try:
                self._lease = self._keeper.renew(self._lease, self._lifetime_s)
            except LeaseLostError as error:
                self._lost = error
                _log.warning("lease_lost", repository=self._lease.repository, token=self._lease.token)
                return
            except FsError as error:  # the keeper is not there now; until the lease runs out there is time
                _log.warning("lease_not_renewed", repository=self._lease.repository, reason=str(error))


@contextmanager
def holding(  # noqa: PLR0913  # each has a default but the first three
    keeper: LeaseKeeper,
    repository: str,
    path: bytes,
    *,
    owner: str,
    timeout_s: float,
    lifetime_s: float = DEFAULT_LIFETIME_S,
    wait: Callable[[float], object] | None = None,
) -> Iterator[HeldLease]:
    """Hold a lease during the block, waiting for it up to *timeout_s*.

    Args:
        keeper: gives it.
        repository: name of the repository.
        path: canonical path.
        owner: for people.
        timeout_s: how long to wait for others.
        lifetime_s: after what time without a sign of life others may take over.
        wait: sleeps.

    Raises:
        LockedError: others held it all the time.
    """
    lease = _wait_for(lambda: keeper.acquire(repository, path, owner, lifetime_s), timeout_s, wait)
    held = HeldLease(keeper, lease, lifetime_s)
    try:
        yield held
    finally:
        held.close()


def _wait_for(acquire: Callable[[], Lease], timeout_s: float, wait: Callable[[float], object] | None) -> Lease:
    wait = wait or threading.Event().wait
    waited_s, poll_s = 0.0, _POLL_S
    while True:
        try:
            return acquire()
        except LockedError:
            if waited_s >= timeout_s:
                raise
        pause_s = min(poll_s, timeout_s - waited_s)
        wait(pause_s)
        waited_s += pause_s
        poll_s = min(poll_s * _POLL_GROWTH, _LONGEST_POLL_S)


def holder(purpose: str) -> str:
    """How this process calls itself, for whoever waits for it."""
    return f"{purpose} in process {os.getpid()} on {socket.gethostname()}"


def refuse(path: bytes, holder: Lease) -> LockedError:
    """The error that says who is in the way."""
    shown = (path or b"/").decode("utf-8", "backslashreplace")
    where = (holder.path or b"/").decode("utf-8", "backslashreplace")
    return LockedError(f"{shown} of {holder.repository} cannot be leased: {holder.owner} holds {where}")


def lost(lease: Lease) -> LeaseLostError:
    """The error that says that it is over."""
    where = (lease.path or b"/").decode("utf-8", "backslashreplace")
    return LeaseLostError(f"the lease of {where} of {lease.repository} (token {lease.token}) ran out and is lost")
