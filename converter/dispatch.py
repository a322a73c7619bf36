"""From the database into the queue: what is due is sent, what was lost is found again."""

import time
from collections.abc import Callable

import structlog
from kombu.exceptions import OperationalError

from converter.app import Queue
from converter.jobs import JobStore
from converter.owners import is_dead

_log = structlog.get_logger()
_SWEEP_INTERVAL_S = 1.0
_LOOK_INTERVAL_S = 2.0
_BROKER_PAUSE_S = 2.0


class Dispatcher:
    """Called every fraction of a second, by one thread at a time. Several dispatchers of one farm do no harm."""

    def __init__(self, jobs: JobStore, queue: Queue, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._jobs = jobs
        self._queue = queue
        self._clock = clock
        self._next_sweep = self._next_look = self._broker_back = 0.0

    def tick(self) -> int:
        """Sweep and send as far as it is time to; gives how many messages were sent."""
        now = self._clock()
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_INTERVAL_S
            swept = self._jobs.sweep(is_dead)
            if swept:
                _log.warning("jobs without a live owner", jobs=swept)
        if now < self._broker_back:
            return 0
        try:
            return self._send(now)
        except (OSError, OperationalError) as error:
            self._broker_back = now + _BROKER_PAUSE_S
            _log.warning("broker unreachable", error=str(error))
            return 0

    def _send(self, now: float) -> int:
        """A message whose job is not noted as sent, because of a crash in between, is sent twice: no harm."""
        queue_is_empty = False
        if now >= self._next_look:
            self._next_look = now + _LOOK_INTERVAL_S
            queue_is_empty = bool(self._jobs.to_send(queue_is_empty=True, limit=1)) and self._queue.is_empty()
        count = 0
        for job_id in self._jobs.to_send(queue_is_empty=queue_is_empty):
            self._queue.send(job_id)
            self._jobs.sent([job_id])
            count += 1
        return count
