"""Reading a repository over HTTP."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

import anyio
import httpx

from fs.errors import AbsentError, RefusedError, UnreachableError
from fs.store.reading import Part, Receiver, Request

_ABSENT = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
_PASSING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
_FRESH_HEADERS = {"Cache-Control": "no-cache", "Pragma": "no-cache"}
_REDIRECTS = 4


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """How long a server may take."""

    connect_timeout_s: float = 3.0
    idle_timeout_s: float = 8.0  # between two pieces of an answer, and before the first
    low_speed_bytes_s: int = 2048  # slower than this over low_speed_window_s is no answer
    low_speed_window_s: float = 8.0
    transfers: int = 16  # at once, over all hosts


def open_http_client(
    limits: HttpLimits, *, proxy: str | None = None, transport: httpx.AsyncBaseTransport | None = None
) -> httpx.AsyncClient:
    """One connection pool, to be shared by all readers of a process and closed by the caller.

    The environment is not asked for proxies or certificates: what a mount does follows from its options alone.
    """
    return httpx.AsyncClient(
        # who waits for a connection waits for transfers that have time-outs themselves
        timeout=httpx.Timeout(limits.idle_timeout_s, connect=limits.connect_timeout_s, pool=None),
        limits=httpx.Limits(max_connections=limits.transfers, max_keepalive_connections=limits.transfers),
        headers={"User-Agent": "unpackd", "Accept-Encoding": "identity"},
        follow_redirects=True,
        max_redirects=_REDIRECTS,
        trust_env=False,
        proxy=proxy,
        transport=transport,
    )


class HttpReader:
    """A StorageReader over HTTP."""

    def __init__(self, base_url: str, client: httpx.AsyncClient, limits: HttpLimits) -> None:
        self._base_url = base_url.rstrip("/")
        self._client = client
        self._limits = limits

    @property
    def url(self) -> str:
        """See StorageReader.url."""
        return without_secrets(self._base_url)

    async def read(self, request: Request, receiver: Receiver) -> None:
        """See StorageReader.read."""
        receiver.begin()
        headers = dict(_FRESH_HEADERS) if request.is_fresh else {}
        if request.part is not None:
            last = request.part.offset + request.part.size - 1
            headers["Range"] = f"bytes={request.part.offset}-{last}"
        place = f"{self._base_url}/{request.path}"
        try:
            async with self._client.stream("GET", place, headers=headers) as reply:
                _raise_for_status(reply.status_code, f"{self.url}/{request.path}")
                # raw bytes: a server that compresses unasked gives bytes that do not hash to their name
                # and as they come: gathered into larger pieces, a trickle could not be told from silence
                async with aclosing(_paced(reply.aiter_raw(), self._limits, self.url)) as pieces:
                    cut = request.part if reply.status_code == HTTPStatus.OK else None
                    await _push(pieces, receiver, cut)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            word = str(error) or type(error).__name__
            raise UnreachableError(f"{self.url} did not give {request.path}: {word}") from error
        await receiver.finish()


def without_secrets(url: str) -> str:
    """*url* without user, password and query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if parts.scheme else url


def _raise_for_status(status: int, place: str) -> None:
    if status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        return
    if status in _ABSENT:
        raise AbsentError(f"{place} is not there (HTTP {status})")
    if status in _PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise UnreachableError(f"{place} cannot be had now (HTTP {status})")
    raise RefusedError(f"{place} is refused (HTTP {status})")


async def _push(pieces: AsyncIterator[bytes], receiver: Receiver, cut: Part | None) -> None:
    """Give *pieces* to *receiver*; only what lies in *cut* where a server ignored the range."""
    position = 0
    async for piece in pieces:
        if cut is None:
            await receiver.feed(piece)
            continue
        wanted = piece[max(0, cut.offset - position) : max(0, cut.offset + cut.size - position)]
        if wanted:
            await receiver.feed(wanted)
        position += len(piece)
        if position >= cut.offset + cut.size:
            return


async def _paced(pieces: AsyncIterator[bytes], limits: HttpLimits, url: str) -> AsyncGenerator[bytes, None]:
    """*pieces*, given up when they trickle: an idle time-out alone lets one byte a second go on for ever."""
    window_began = anyio.current_time()
    window_bytes = 0
    async for piece in pieces:
        yield piece
        window_bytes += len(piece)
        elapsed_s = anyio.current_time() - window_began
        if elapsed_s >= limits.low_speed_window_s:
            if window_bytes < limits.low_speed_bytes_s * elapsed_s:
                raise UnreachableError(f"{url} is too slow: {window_bytes} bytes in {elapsed_s:.0f} s")
            window_began, window_bytes = anyio.current_time(), 0
