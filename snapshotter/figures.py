"""What the snapshotter counts, as text for Prometheus."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from fs.client.metrics import Labels, Latencies, Metric, exposition

_PREFIX = "unpackd_snapshotter_"


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeReads:
    """What a mount says of a tree that containers use."""

    mountpoint: str
    path: str
    image: str
    files: int
    size_bytes: int


@dataclass(slots=True)
class Figures:
    """Since the start. Belongs to one event loop."""

    calls: defaultdict[str, Latencies] = field(default_factory=lambda: defaultdict(Latencies))  # by method
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)  # by method and status
    layers: Counter[str] = field(default_factory=Counter)  # by what became of a layer that was asked for

    @contextmanager
    def timed(self, method: str) -> Iterator[None]:
        """A call of *method* goes on for as long as the block."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.calls[method].add(time.monotonic() - began)

    def exposition(self, trees: Sequence[TreeReads], *, mounted_images: int, doomed_trees: int) -> str:
        """Everything."""
        labels = {tree: _labels(mount=tree.mountpoint, tree=tree.path, image=tree.image) for tree in trees}
        return exposition(
            [
                Metric(
                    "call_seconds", "histogram", "Time of calls", {_labels(method=m): v for m, v in self.calls.items()}
                ),
                Metric(
                    "failures_total",
                    "counter",
                    "Calls that ended with an error",
                    {_labels(method=method, status=status): float(n) for (method, status), n in self.failures.items()},
                ),
                Metric(
                    "layers_total",
                    "counter",
                    "Layers asked for: served, or why not",
                    {_labels(outcome=outcome): float(count) for outcome, count in self.layers.items()},
                ),
                Metric("root_images", "gauge", "Metadata images mounted", mounted_images),
                Metric("doomed_trees", "gauge", "Trees in use that the repository will collect", doomed_trees),
                Metric(
                    "image_files_read_total",
                    "counter",
                    "Files read through the mount, of trees in use",
                    {labels[tree]: float(tree.files) for tree in trees},
                ),
                Metric(
                    "image_bytes_read_total",
                    "counter",
                    "Bytes read through the mount, of trees in use",
                    {labels[tree]: float(tree.size_bytes) for tree in trees},
                ),
            ],
            None,
            prefix=_PREFIX,
        )


def _labels(**labels: str) -> Labels:
    return tuple(labels.items())
