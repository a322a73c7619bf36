"""How long a server may take."""

from dataclasses import dataclass

import anyio

from fs.errors import UnreachableError


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """How long a server may take."""

    connect_timeout_s: float = 3.0
    idle_timeout_s: float = 8.0  # between two pieces of an answer, and before the first
    low_speed_bytes_s: int = 2048  # slower than this over low_speed_window_s is no answer
    low_speed_window_s: float = 8.0
    transfers: int = 64  # at once, over all hosts


class Pace:
    """Notices answers that trickle: an idle time-out alone lets one byte a second go on for ever."""

    __slots__ = ("_began", "_bytes", "_limits", "_who")

    def __init__(self, limits: HttpLimits, who: str) -> None:
        self._limits = limits
        self._who = who
        self._began = anyio.current_time()
        self._bytes = 0

    def passed(self, count: int) -> None:
        """*count* bytes came. Raises UnreachableError if it is too slow."""
        self._bytes += count
        elapsed_s = anyio.current_time() - self._began
        if elapsed_s >= self._limits.low_speed_window_s:
            if self._bytes < self._limits.low_speed_bytes_s * elapsed_s:
                raise UnreachableError(f"{self._who} is too slow: {self._bytes} bytes in {elapsed_s:.0f} s")
            self._began, self._bytes = anyio.current_time(), 0
