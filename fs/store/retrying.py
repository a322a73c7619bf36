"""Trying again at the same place."""

import random
from dataclasses import replace

import anyio
import structlog

from fs.errors import CorruptError, FsError
from fs.store.reading import Receiver, Request, Sleep, StorageReader

_log = structlog.get_logger()


class RetryingReader:
    """A StorageReader that repeats what failed for a passing reason, and asks past caches for what came corrupt.

    Args:
        inner: where to read.
        retries: further attempts after a passing failure.
        backoff_s: longest wait before the first further attempt; it doubles with each.
        sleep: waits.
        give_up_after_s: no further attempt begins this long after the first.
    """

    def __init__(
        self,
        inner: StorageReader,
        *,
        retries: int = 1,
        backoff_s: float = 0.4,
        sleep: Sleep = anyio.sleep,
        give_up_after_s: float = 15.0,
    ) -> None:
        self._inner = inner
        self._retries = retries
        self._backoff_s = backoff_s
        self._sleep = sleep
        self._give_up_after_s = give_up_after_s

    @property
    def url(self) -> str:
        """See StorageReader.url."""
        return self._inner.url

    async def read(self, request: Request, receiver: Receiver) -> None:
        """See StorageReader.read."""
        began = anyio.current_time()
        failures = 0
        while True:
            try:
                await self._inner.read(request, receiver)
            except CorruptError as error:
                _log.warning("object_corrupt_at_source", url=self.url, object=request.path, reason=str(error))
                if request.is_fresh:
                    raise
                request = replace(request, is_fresh=True)
            except FsError as error:
                failures += 1
                late = anyio.current_time() - began > self._give_up_after_s
                if not error.transient or failures > self._retries or late:
                    raise
                await self._sleep(random.uniform(0.5, 1) * self._backoff_s * 2 ** (failures - 1))  # noqa: S311  # jitter
            else:
                return
