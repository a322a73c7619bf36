"""Reading a repository over HTTP."""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from http import HTTPStatus
from urllib.parse import urlsplit

import httpx

from fs.errors import AbsentError, RefusedError, UnreachableError
from fs.store.limits import HttpLimits, Pace
from fs.store.plain_http import PlainConnections, UnusualAnswerError, plain_message
from fs.store.reading import Part, Receiver, Request

_ABSENT = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
_PASSING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
_FRESH_HEADERS = {"Cache-Control": "no-cache", "Pragma": "no-cache"}
_REDIRECTS = 4
_OF_THE_HOST = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.GONE, HTTPStatus.TOO_MANY_REQUESTS})
_PROXY_SAYS = re.compile(rb"\r\n(?:x-squid-error:|proxy-status:[^\r]*error=)")
_PLAIN_PATH = re.compile(rb"[A-Za-z0-9/._~%!$&'()*+,;=:@-]+")
_UNUSUAL = 3  # answers, after which a server is left to the general client


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
        http2=True,  # where a server offers it, which plain HTTP cannot
        follow_redirects=True,
        max_redirects=_REDIRECTS,
        trust_env=False,
        proxy=proxy,
        transport=transport,
    )


class ProxyFailedError(UnreachableError):
    """The proxy failed, or the way to it or behind it; the server may be well."""


class HttpReader:
    """A StorageReader over HTTP.

    Args:
        base_url: of the repository.
        client: asks for whatever *plain* cannot do.
        limits: how long the server may take.
        plain: connections to the server, or to the proxy, for what is simple; None does without.
        proxy: that both go through; None if they go directly.
    """

    def __init__(
        self,
        base_url: str,
        client: httpx.AsyncClient,
        limits: HttpLimits,
        *,
        plain: PlainConnections | None = None,
        proxy: str | None = None,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._url = without_secrets(self._base_url)
        self._client = client
        self._limits = limits
        self._plain = plain
        self._proxy = proxy
        self._unusual = 0
        if plain is not None:
            self._before, self._behind = plain_message(httpx.URL(self._base_url), is_through_proxy=proxy is not None)

    @property
    def url(self) -> str:
        """See StorageReader.url."""
        return self._url

    async def read(self, request: Request, receiver: Receiver) -> None:
        """See StorageReader.read."""
        try:
            if self._plain is None or not await self._read_plainly(self._plain, request, receiver):
                await self._read_with_client(request, receiver)
        except UnreachableError as error:
            word = f"{self.url} did not give {request.path}: {error}"
            if isinstance(error, _ServerFailedError):
                raise
            if self._proxy is not None:
                raise ProxyFailedError(f"{word} (through {without_secrets(self._proxy)})") from error
            raise UnreachableError(word) from error
        await receiver.finish()

    async def _read_plainly(self, plain: PlainConnections, request: Request, receiver: Receiver) -> bool:
        """False if the answer is not a plain one; then the request has to be repeated."""
        path = request.path.encode()
        if not _PLAIN_PATH.fullmatch(path):
            return False
        receiver.begin()
        message = self._before + path + self._behind
        if request.is_fresh:
            message += b"Cache-Control: no-cache\r\nPragma: no-cache\r\n"
        part = request.part
        if part is not None:
            message += b"Range: bytes=%d-%d\r\n" % (part.offset, part.offset + part.size - 1)

        def check(status: int, head: bytes) -> bool:
            if status != HTTPStatus.OK:
                self._raise_for_status(status, request, is_of_proxy=_PROXY_SAYS.search(head) is not None)
            return status == HTTPStatus.OK

        try:
            await plain.read(
                message + b"\r\n",
                check,
                receiver,
                skip=0 if part is None else part.offset,
                most=None if part is None else part.size,
            )
        except UnusualAnswerError:
            self._unusual += 1
            if self._unusual >= _UNUSUAL:
                self._plain = None  # it would only cost a request each time
            return False
        return True

    async def _read_with_client(self, request: Request, receiver: Receiver) -> None:
        receiver.begin()
        headers = dict(_FRESH_HEADERS) if request.is_fresh else {}
        if request.part is not None:
            last = request.part.offset + request.part.size - 1
            headers["Range"] = f"bytes={request.part.offset}-{last}"
        place = f"{self._base_url}/{request.path}"
        try:
            async with self._client.stream("GET", place, headers=headers) as reply:
                is_of_proxy = "x-squid-error" in reply.headers or "error=" in reply.headers.get("proxy-status", "")
                self._raise_for_status(reply.status_code, request, is_of_proxy=is_of_proxy)
                # raw bytes: a server that compresses unasked gives bytes that do not hash to their name
                # and as they come: gathered into larger pieces, a trickle could not be told from silence
                async with aclosing(_paced(reply.aiter_raw(), self._limits, self.url)) as pieces:
                    cut = request.part if reply.status_code == HTTPStatus.OK else None
                    await _push(pieces, receiver, cut)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise UnreachableError(str(error) or type(error).__name__) from error

    def _raise_for_status(self, status: int, request: Request, *, is_of_proxy: bool) -> None:
        """Source: CernVM-FS 2.12, network/download.cc: whose fault it is if there is a proxy on the way."""
        if status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            return
        place = f"{self.url}/{request.path}"
        is_host_error = status in _OF_THE_HOST or status >= HTTPStatus.INTERNAL_SERVER_ERROR
        if self._proxy is not None and (is_of_proxy or not is_host_error):
            raise UnreachableError(f"HTTP {status} of the proxy")
        if status in _ABSENT:
            raise AbsentError(f"{place} is not there (HTTP {status})")
        if status in _PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _ServerFailedError(f"{place} cannot be had now (HTTP {status})")
        raise RefusedError(f"{place} is refused (HTTP {status})")


class _ServerFailedError(UnreachableError):
    """The server itself answered that it cannot."""


def without_secrets(url: str) -> str:
    """*url* without user, password and query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if parts.scheme else url


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
    pace = Pace(limits, url)
    async for piece in pieces:
        yield piece
        pace.passed(len(piece))
