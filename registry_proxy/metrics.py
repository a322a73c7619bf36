"""Counters and gauges, as text that Prometheus reads.

Source: Prometheus, "Exposition formats", text format 0.0.4.
"""

from collections import Counter
from collections.abc import Mapping

_PREFIX = "unpackd_proxy_"
_HELP = {
    "requests_total": "Answered requests by kind and status.",
    "upstream_requests_total": "Things asked of upstreams by kind.",
    "hits_total": "Requests answered from the cache by kind.",
    "stale_total": "Tags answered from the cache because their upstream could not be asked.",
    "fetched_bytes_total": "Bytes of blobs fetched from upstreams.",
    "sent_bytes_total": "Bytes of bodies sent to clients.",
    "corrupt_total": "Contents from upstreams or the own disk that did not match their digest.",
    "evicted_total": "Contents removed to make room.",
    "unstored_total": "Blobs passed through without being stored, for lack of space.",
    "cache_bytes": "Bytes of complete contents.",
    "downloads": "Downloads that run now.",
    "rate_limit_remaining": "Manifests that an upstream will still give, as it said last.",
}


class Metrics:
    """Counts of what happened since the start."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Add *amount* to a counter."""
        self._counts[name, tuple(sorted(labels.items()))] += amount

    def value(self, name: str, **labels: str) -> int:
        """What a counter stands at."""
        return self._counts[name, tuple(sorted(labels.items()))]

    def text(self, gauges: Mapping[tuple[str, tuple[tuple[str, str], ...]], float]) -> str:
        """All counters, and *gauges* as they are now."""
        lines: list[str] = []
        values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {**self._counts, **gauges}
        previous = ""
        for (name, labels), value in sorted(values.items()):
            if name != previous:
                kind = "counter" if name.endswith("_total") else "gauge"
                lines += [f"# HELP {_PREFIX}{name} {_HELP[name]}", f"# TYPE {_PREFIX}{name} {kind}"]
                previous = name
            inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
            lines.append(f"{_PREFIX}{name}{{{inside}}} {value}" if inside else f"{_PREFIX}{name} {value}")
        return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
