"""Figures of a mount: latencies of fetches, and everything as text for Prometheus.

Source: Prometheus text exposition format, version 0.0.4.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

import anyio
import anyio.abc
import structlog
from anyio.streams.stapled import MultiListener

from fs.errors import RefusedError

_log = structlog.get_logger()

Listener = MultiListener[anyio.abc.SocketStream]

Labels = tuple[tuple[str, str], ...]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_RECENT = 1024
_WEIGHT = 0.1
_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_REQUEST_LIMIT_BYTES = 16384
_REQUEST_TIMEOUT_S = 5.0
_CLIENTS = 8


class Latencies:
    """How long something took: a histogram of all, and percentiles of the last thousand."""

    def __init__(self) -> None:
        self._recent = deque[float](maxlen=_RECENT)
        self._buckets = [0] * (len(_BOUNDS_S) + 1)
        self._sum_s = 0.0
        self.typical_s = 0.0  # weighs the last ten or so

    @property
    def count(self) -> int:
        """How often it was measured."""
        return sum(self._buckets)

    def add(self, seconds: float) -> None:
        """It took *seconds*."""
        self._recent.append(seconds)
        self.typical_s += (seconds - self.typical_s) * (_WEIGHT if self._sum_s else 1)
        self._buckets[bisect_left(_BOUNDS_S, seconds)] += 1
        self._sum_s += seconds

    def percentile(self, share: float) -> float | None:
        """So many seconds were enough for *share* of the last ones; None if there are none."""
        if not self._recent:
            return None
        ordered = sorted(self._recent)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def lines(self, name: str, labels: Labels = ()) -> Iterable[str]:
        """The histogram *name*."""
        total = 0
        for bound, count in zip((*map(str, _BOUNDS_S), "+Inf"), self._buckets, strict=True):
            total += count
            yield f"{name}_bucket{_labels((*labels, ('le', bound)))} {total}"
        yield f"{name}_sum{_labels(labels)} {self._sum_s:.6f}"
        yield f"{name}_count{_labels(labels)} {total}"


@dataclass(frozen=True, slots=True)
class Metric:
    """One family of numbers."""

    name: str  # without the prefix that all have
    kind: str  # counter, gauge or histogram
    meaning: str
    values: Mapping[Labels, float] | Mapping[Labels, Latencies] | Latencies | float


def exposition(metrics: Iterable[Metric], repository: str | None, *, prefix: str = "unpackd_mount_") -> str:
    """The text that Prometheus scrapes; single numbers are of *repository*."""
    alone: Labels = () if repository is None else (("repository", repository),)
    lines: list[str] = []
    for metric in metrics:
        name = f"{prefix}{metric.name}"
        lines += [f"# HELP {name} {metric.meaning}", f"# TYPE {name} {metric.kind}"]
        match metric.values:
            case Latencies() as latencies:
                lines += latencies.lines(name)
            case Mapping() as values:
                for labels, value in values.items():
                    if isinstance(value, Latencies):
                        lines += value.lines(name, labels)
                    else:
                        lines.append(f"{name}{_labels(labels)} {_number(value)}")
            case number:
                lines.append(f"{name}{_labels(alone)} {number!r}")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """Without an exponent, in which large counters would lose their last digits."""
    return str(int(value)) if value == int(value) else repr(value)


def _labels(labels: Iterable[tuple[str, str]]) -> str:
    pairs = ",".join(f'{key}="{_escaped(value)}"' for key, value in labels)
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


async def listen_for_metrics(host: str, port: int) -> Listener:
    """What ``serve_metrics`` serves. Raises RefusedError if that address cannot be listened at."""
    try:
        return await anyio.create_tcp_listener(local_host=host, local_port=port)
    except OSError as error:
        raise RefusedError(f"figures cannot be served at {host}:{port}: {error.strerror or error}") from error


async def serve_metrics(listener: Listener, text: Callable[[], Awaitable[str]]) -> None:
    """Answer ``GET /metrics`` over HTTP for ever."""
    slots = anyio.Semaphore(_CLIENTS)

    async def answer(stream: anyio.abc.SocketStream) -> None:
        async with stream, slots:
            try:
                with anyio.fail_after(_REQUEST_TIMEOUT_S):
                    await stream.send(await _answer(stream, text))
            except (OSError, TimeoutError, anyio.BrokenResourceError, anyio.EndOfStream):
                _log.debug("metrics_not_taken")

    async with listener:
        await listener.serve(answer)


async def _answer(stream: anyio.abc.SocketStream, text: Callable[[], Awaitable[str]]) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        received += await stream.receive()
        if len(received) > _REQUEST_LIMIT_BYTES:
            return b"HTTP/1.1 431 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    method, _, rest = received.partition(b" ")
    if method != b"GET" or rest.split(b" ", 1)[0].split(b"?", 1)[0] != b"/metrics":
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    body = (await text()).encode()
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
