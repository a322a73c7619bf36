"""Layers that are fetched ahead of their turn, several at a time.

The first layer that a snapshotter declines tells that those above will be declined too: a repository has the chain of
a layer only with all chains below. So their blobs are fetched while that one is unpacked, which has to go in order.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

_AT_ONCE = 3


@dataclass(slots=True)
class _Fetch:
    """State of one blob; touched by the event loop only."""

    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    ended: anyio.Event = field(default_factory=anyio.Event)
    failure: Exception | None = None


class Fetches:
    """Blobs on their way, by digest. Made by ``fetching_ahead``."""

    def __init__(self, tasks: TaskGroup, fetch: Callable[[str], Awaitable[None]]) -> None:
        self._tasks = tasks
        self._fetch = fetch
        self._places = anyio.Semaphore(_AT_ONCE)
        self._known: dict[str, _Fetch] = {}

    def begin(self, digests: Iterable[str]) -> None:
        """Fetch these too, in this order; what has begun goes on."""
        for digest in digests:
            if digest not in self._known:
                self._known[digest] = _Fetch()
                self._tasks.start_soon(self._run, digest, self._known[digest])

    async def wait(self, digest: str) -> None:
        """Wait for a blob that has begun. Raises what fetching it raised."""
        fetch = self._known[digest]
        await fetch.ended.wait()
        if fetch.failure is not None:
            raise fetch.failure

    def drop(self, digest: str) -> None:
        """Stop fetching a blob that is not needed after all."""
        if digest in self._known:
            self._known.pop(digest).scope.cancel()

    async def _run(self, digest: str, fetch: _Fetch) -> None:
        with fetch.scope:
            async with self._places:
                try:
                    await self._fetch(digest)
                except Exception as error:  # noqa: BLE001  # raised where somebody waits for the blob
                    fetch.failure = error
        fetch.ended.set()


@asynccontextmanager
async def fetching_ahead(fetch: Callable[[str], Awaitable[None]]) -> AsyncIterator[Fetches]:
    """Blobs that are fetched by *fetch*; what is still on its way when the block ends is dropped."""
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        try:
            yield Fetches(tasks, fetch)
        except Exception as error:  # noqa: BLE001  # raised below as it is: a task group would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
