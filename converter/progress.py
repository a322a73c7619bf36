"""How far a conversion is, and how long each step took."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

_REPORT_EVERY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a conversion is."""

    stage: str  # "resolving", "layers", "flattening", "publishing", "done"
    layers_total: int = 0
    layers_done: int = 0
    bytes_total: int = 0  # of the layers that are fetched
    bytes_fetched: int = 0
    entries: int = 0


class Meter:
    """Counts and tells. Threads count entries; telling is done in the event loop only."""

    def __init__(self, report: Callable[[Progress], None]) -> None:
        self._report = report
        self._stage = ""
        self._told = 0.0
        self._lock = threading.Lock()
        self._entered = time.monotonic()
        self.steps: dict[str, float] = {}  # seconds that stages took which are over
        self.layers_total = self.layers_done = self.bytes_total = self.bytes_fetched = self.entries = 0
        self.started = time.monotonic()

    def stage(self, name: str) -> None:
        """Tell of a new stage at once."""
        now = time.monotonic()
        if self._stage:
            self.steps[self._stage] = round(self.steps.get(self._stage, 0) + now - self._entered, 3)
        self._entered = now
        self._stage = name
        self._tell()

    def fetched(self, count: int) -> None:
        """Count bytes; tell now and then."""
        self.bytes_fetched += count
        if time.monotonic() - self._told > _REPORT_EVERY_S:
            self._tell()

    def count_entries(self, count: int) -> None:
        """Count entries; for threads."""
        with self._lock:
            self.entries += count

    def _tell(self) -> None:
        self._told = time.monotonic()
        self._report(
            Progress(
                stage=self._stage,
                layers_total=self.layers_total,
                layers_done=self.layers_done,
                bytes_total=self.bytes_total,
                bytes_fetched=self.bytes_fetched,
                entries=self.entries,
            )
        )

    @property
    def seconds(self) -> float:
        """Since the start."""
        return round(time.monotonic() - self.started, 3)
