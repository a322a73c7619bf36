"""Blocking calls that may never return, kept from taking the whole service with them."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

import anyio

_T = TypeVar("_T")


class ThreadsExhaustedError(TimeoutError):
    """Every thread is stuck in an earlier call."""


class _Call(Generic[_T]):
    """State of one call; touched by the event loop's thread only, except ``outcome``, which the worker sets once."""

    def __init__(self) -> None:
        self.outcome: Callable[[], _T] | None = None
        self.ended = anyio.Event()
        self.abandoned = False


class PatientThreads:
    """Runs blocking calls in at most *limit* threads, each with a time limit.

    A thread inside an uninterruptible system call cannot be ended. It is left behind and keeps its place until the
    call returns; while all places are taken by such threads, new calls fail at once instead of waiting. Threads are
    daemons, so none keeps the process alive. Needs asyncio, on which gRPC runs.
    """

    def __init__(self, *, limit: int, timeout_s: float) -> None:
        self._limit = limit
        self._timeout_s = timeout_s
        self._places = anyio.Semaphore(limit)
        self._left_behind = 0

    async def run(self, function: Callable[[], _T]) -> _T:
        """Result of *function*.

        Raises:
            ThreadsExhaustedError: all places are taken by calls that hang.
            TimeoutError: no place or no result in time.
        """
        if self._left_behind >= self._limit:
            raise ThreadsExhaustedError
        with anyio.fail_after(self._timeout_s):
            await self._places.acquire()
            return await self._started(function)

    async def _started(self, function: Callable[[], _T]) -> _T:
        call: _Call[_T] = _Call()
        loop = asyncio.get_running_loop()

        def work() -> None:
            call.outcome = _outcome(function)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._end, call)

        threading.Thread(target=work, name="layers", daemon=True).start()
        try:
            await call.ended.wait()
        except BaseException:
            if not call.ended.is_set():
                call.abandoned = True
                self._left_behind += 1
            raise
        if call.outcome is None:
            raise AssertionError("a call ended without an outcome")
        return call.outcome()

    def _end(self, call: _Call[_T]) -> None:
        self._places.release()
        if call.abandoned:
            self._left_behind -= 1
        call.ended.set()


def _outcome(function: Callable[[], _T]) -> Callable[[], _T]:
    """What calling *function* gave: a function that returns its value or raises its error."""
    try:
        value = function()
    except BaseException as error:  # noqa: BLE001  # carried to the caller, whatever it is
        failure = error

        def fail() -> _T:
            raise failure

        return fail
    return lambda: value
