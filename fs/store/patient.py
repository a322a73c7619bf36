"""Waiting for servers that are away for a short while, as they are when they restart."""

import random
from collections.abc import Callable

import anyio
import structlog

from fs.errors import FsError, UnreachableError
from fs.store.reading import Receiver, Request, Sleep, StorageReader

_log = structlog.get_logger()

PATIENCE_S = 30.0
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 2.0


class PatientReader:
    """A StorageReader that repeats, for a limited time, what no server answered.

    The time is that of the outage, not of the request: who comes when the servers have been away for long gets the
    error at once, until one of them has answered again.

    Args:
        inner: all servers.
        patience_s: how long an outage may last, and at most how long a request is repeated.
        sleep: waits.
        clock: gives seconds.
    """

    def __init__(
        self,
        inner: StorageReader,
        *,
        patience_s: float = PATIENCE_S,
        sleep: Sleep = anyio.sleep,
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        self._inner = inner
        self._patience_s = patience_s
        self._sleep = sleep
        self._clock = clock
        self._away_since: float | None = None

    @property
    def url(self) -> str:
        """See StorageReader.url."""
        return self._inner.url

    async def read(self, request: Request, receiver: Receiver) -> None:
        """See StorageReader.read."""
        began = self._clock()
        pause_s = _FIRST_PAUSE_S
        while True:
            attempted = self._clock()
            try:
                await self._inner.read(request, receiver)
            except UnreachableError:
                if self._away_since is None:
                    self._away_since = attempted
                    _log.warning("servers_away", url=self.url, patience_s=self._patience_s)
                if self._clock() + pause_s > min(self._away_since, began) + self._patience_s:
                    raise
            except FsError:
                self._away_since = None  # there was an answer
                raise
            else:
                self._away_since = None
                return
            await self._sleep(random.uniform(0.5, 1) * pause_s)  # noqa: S311  # jitter
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
