"""One piece of work for many who want its result at the same time."""

from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(slots=True, eq=False)
class _Flight(Generic[T]):
    landed: anyio.Event | None = None  # made by the first who waits
    results: list[T] = field(default_factory=list)
    error: Exception | None = None


class SingleFlight(Generic[K, T]):
    """The first who asks for a key does the work; those who ask meanwhile wait for its result or its error.

    If the first is cancelled, one of the waiting starts anew: nobody's cancellation is another's failure. All methods
    belong to one event loop; nothing is shared across an await but the table, which is changed between awaits only.
    """

    def __init__(self) -> None:
        self._flights: dict[K, _Flight[T]] = {}

    @property
    def is_busy(self) -> bool:
        """True while work is under way."""
        return bool(self._flights)

    def __contains__(self, key: K) -> bool:
        return key in self._flights

    async def run_many(self, keys: Iterable[K], work: Callable[[], Awaitable[Mapping[K, T]]]) -> None:
        """Do *work* for several *keys* at once, of which nobody asks for any now.

        Those who ask for one of them meanwhile get what *work* gives for it; if that is nothing, they do it themselves.
        """
        flights = {key: _Flight[T]() for key in keys}
        self._flights.update(flights)
        try:
            for key, result in (await work()).items():
                flights[key].results.append(result)
        finally:
            for key, flight in flights.items():
                del self._flights[key]
                if flight.landed is not None:
                    flight.landed.set()

    async def run(self, key: K, work: Callable[[], Awaitable[T]]) -> T:
        """The result of *work*, which must be the same whoever asks for *key*."""
        while (flight := self._flights.get(key)) is not None:
            if flight.landed is None:
                flight.landed = anyio.Event()
            await flight.landed.wait()
            if flight.error is not None:
                raise flight.error
            if flight.results:
                return flight.results[0]
        flight = self._flights[key] = _Flight()
        try:
            result = await work()
        except Exception as error:
            flight.error = error
            raise
        else:
            flight.results.append(result)
            return result
        finally:
            del self._flights[key]
            if flight.landed is not None:
                flight.landed.set()
