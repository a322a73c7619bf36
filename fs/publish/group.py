"""Group commit: what several threads want done at the same time is done together, by whoever is first.

One thread leads: it waits for the lock that keeps other writers out, then takes *all* that is waiting by then, and does
it in one go. The others sleep until their request was done, or until it is their turn to lead.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Generic, TypeVar

from fs.errors import LockedError, OvertakenError

T = TypeVar("T")
R = TypeVar("R")


class Request(Generic[T, R]):
    """What one thread wants, and what came of it: exactly one of ``succeed`` and ``fail`` is to be called."""

    __slots__ = ("_error", "_result", "is_done", "wanted")

    def __init__(self, wanted: T) -> None:
        self.wanted = wanted
        self.is_done = False
        self._result: R | None = None
        self._error: BaseException | None = None

    def succeed(self, result: R) -> None:
        """It is done."""
        self._result, self.is_done = result, True

    def fail(self, error: BaseException) -> None:
        """It cannot be done; *error* is raised in the thread that wanted it."""
        self._error, self.is_done = error, True

    def outcome(self) -> R:
        """What came of it."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # is_done, and no error: succeed was called


class Group(Generic[T, R]):
    """Requests of threads, done together."""

    def __init__(
        self,
        locked: Callable[[float], AbstractContextManager[object]],
        work: Callable[[Sequence[Request[T, R]]], None],
    ) -> None:
        """Put it together.

        Args:
            locked: keeps others out during a block, waiting for it that many seconds. Raises LockedError.
            work: settles every request that it is given. An error of its own settles those it has not.
        """
        self._locked = locked
        self._work = work
        self._changed = threading.Condition()
        self._waiting: list[Request[T, R]] = []
        self._is_led = False

    def submit(self, wanted: T, timeout_s: float) -> R:
        """Have *wanted* done. Raises LockedError if it was not begun within *timeout_s*, and what ``work`` says."""
        request: Request[T, R] = Request(wanted)
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._waiting.append(request)
        while not request.is_done:
            with self._leading(request, deadline) as leads:
                if leads:
                    self._lead(request, max(0.0, deadline - time.monotonic()))
        return request.outcome()

    @contextmanager
    def _leading(self, request: Request[T, R], deadline: float) -> Iterator[bool]:
        """Wait until *request* is done (False) or its thread may lead (True)."""
        with self._changed:
            while self._is_led and not request.is_done:
                left_s = deadline - time.monotonic()
                if left_s <= 0 and request in self._waiting:
                    self._waiting.remove(request)
                    raise LockedError("other threads of this process publish all the time")
                self._changed.wait(max(left_s, 0.0) if request in self._waiting else None)
            leads = not request.is_done
            self._is_led = self._is_led or leads
        try:
            yield leads
        finally:
            if leads:
                with self._changed:
                    self._is_led = False
                    self._changed.notify_all()

    def _lead(self, own: Request[T, R], timeout_s: float) -> None:
        batch: list[Request[T, R]] = []
        try:
            with self._locked(timeout_s):
                with self._changed:
                    batch, self._waiting = self._waiting, []
                self._work(batch)
        except BaseException as error:
            with self._changed:
                if not batch and own in self._waiting:  # the lock was not to be had: only this one's time is over
                    self._waiting.remove(own)
            for request in batch or [own]:
                if not request.is_done:
                    request.fail(_told(error) if request is not own else error)
            if not isinstance(error, Exception):
                raise


def _told(error: BaseException) -> BaseException:
    """What the other threads are told: an interrupt is not theirs, and may come again at once."""
    return error if isinstance(error, Exception) else OvertakenError("the thread that published was interrupted")
