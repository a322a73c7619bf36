"""Bytes over HTTP with bounds: sizes, times, speeds, redirects, and errors that name the host and the reason."""

import os
import random
import socket
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TypeVar

import anyio
import httpx

from registry_proxy.errors import BadAnswerError, DigestMismatchError, ProxyError, RateLimitedError, UnreachableError
from registry_proxy.oci.reference import Scheme, api_host, canonical_registry, is_loopback

MAX_REDIRECTS = 5
_MAX_CAUSES = 20
_CONNECTIONS = 64
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LOOPBACK_PATTERNS = ("all://localhost", "all://127.0.0.1", "all://[::1]")
_NO_TLS_SIGNS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a registry may take, and how often it is asked again."""

    attempts: int = 4  # for one thing, without progress in between
    first_delay_s: float = 0.3
    max_delay_s: float = 8.0
    retry_after_cap_s: float = 30.0
    connect_timeout_s: float = 10.0
    idle_timeout_s: float = 30.0  # between two pieces of an answer, and before the first
    answer_deadline_s: float = 60.0  # one small answer as a whole: manifest, token, page of tags
    low_speed_bytes_s: int = 1024  # slower than this over low_speed_window_s is no answer
    low_speed_window_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a registry answers."""

    scheme: Scheme
    registry: str  # canonical name; its API may be at another host

    @classmethod
    def of(cls, registry: str, scheme: Scheme | None = None, *, plain_http: bool = False) -> "Origin":
        """Origin of *registry*; loopback speaks plain HTTP unless https was asked for, others TLS."""
        guessed: Scheme = "http" if plain_http or is_loopback(registry) else "https"
        return cls(scheme or guessed, canonical_registry(registry))

    @property
    def url(self) -> str:
        """Base of all its addresses, without a slash at the end."""
        return f"{self.scheme}://{api_host(self.registry)}"


def open_http(
    patience: Patience, *, ca_file: Path | None = None, transport: httpx.AsyncBaseTransport | None = None
) -> httpx.AsyncClient:
    """A connection pool for any number of registries, closed by the caller.

    ``HTTPS_PROXY`` and the like are honoured, as every container tool does, but never for loopback. Redirects are
    followed by ``follow`` alone.
    """
    timeout = httpx.Timeout(
        patience.idle_timeout_s, connect=patience.connect_timeout_s, pool=patience.answer_deadline_s
    )
    direct: dict[str, httpx.AsyncBaseTransport | None] = {} if transport else dict.fromkeys(_LOOPBACK_PATTERNS)
    return httpx.AsyncClient(
        timeout=timeout,
        limits=httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS),
        headers={"User-Agent": "unpackd", "Accept-Encoding": "identity"},
        follow_redirects=False,
        verify=_trust() if ca_file is None else ssl.create_default_context(cafile=str(ca_file)),
        mounts=direct,
        transport=transport,
    )


@cache
def _trust() -> ssl.SSLContext:
    """What httpx trusts by itself; reading all those certificates takes as long as converting a small image."""
    return httpx.create_ssl_context()


@asynccontextmanager
async def follow(
    http: httpx.AsyncClient, method: str, url: str, headers: Mapping[str, str]
) -> AsyncIterator[httpx.Response]:
    """Send a request without a body and follow redirects; the body of the answer is left to be read.

    ``Authorization`` stays behind when host, port or scheme change: the targets are usually signed addresses of a
    content network, and whoever answers there is not who the credential is for.

    Raises:
        UnreachableError: no answer.
        BadAnswerError: an unsafe or endless redirect.
    """
    target = httpx.URL(url)
    sent = dict(headers)
    for _ in range(MAX_REDIRECTS + 1):
        with translated(target):
            reply = await http.send(http.build_request(method, target, headers=sent), stream=True)
        location = reply.headers.get("Location")
        if reply.status_code not in _REDIRECTS or location is None:
            try:
                yield reply
            finally:
                with anyio.CancelScope(shield=True):
                    await reply.aclose()
            return
        with anyio.CancelScope(shield=True):
            await reply.aclose()
        previous, target = target, _redirected(target, location)
        if (previous.scheme, previous.host, previous.port) != (target.scheme, target.host, target.port):
            sent.pop("Authorization", None)
    raise BadAnswerError(f"{httpx.URL(url).netloc.decode()} redirects more than {MAX_REDIRECTS} times")


def _redirected(source: httpx.URL, location: str) -> httpx.URL:
    try:
        target = source.join(location)
    except httpx.InvalidURL as error:
        raise BadAnswerError(f"{source.netloc.decode()} redirects to something that is no address") from error
    if target.scheme not in ("http", "https") or not target.host or target.userinfo:
        raise BadAnswerError(f"{source.netloc.decode()} redirects to something that is no address of a web server")
    if source.scheme == "https" and target.scheme != "https":
        raise BadAnswerError(
            f"{source.netloc.decode()} redirects from https to http at {target.host}, which is refused"
        )
    if is_inward(target.host) and not is_inward(source.host):
        raise BadAnswerError(
            f"{source.netloc.decode()} redirects to {target.host} inside this machine, which is refused"
        )
    return target


def address(host: str) -> IPv4Address | IPv6Address | None:
    """*host* as an address if it is written as one."""
    try:
        return ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


def is_inward(host: str) -> bool:
    """True for loopback and link-local hosts: what answers there belongs to this machine or its cloud provider."""
    found = address(host)
    return is_loopback(host) or (found is not None and (found.is_link_local or found.is_unspecified))


class translated:  # noqa: N801  # used as a statement, like contextlib.suppress
    """Around a use of httpx: its errors become UnreachableError, with the host and the innermost reason."""

    def __init__(self, url: httpx.URL) -> None:
        self._host = url.netloc.decode()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL)):
            raise UnreachableError(f"{self._host} cannot be reached: {why(error)}") from error


def why(error: BaseException) -> str:
    """The reason of a failed transfer in words: the system's own if there is one."""
    if isinstance(error, httpx.TimeoutException):
        what = "connection" if isinstance(error, httpx.ConnectTimeout) else "answer"
        return f"no {what} in time"
    reasons = [one for one in _causes(error) if isinstance(one, OSError)]
    for one in reversed(reasons):
        if isinstance(one, ssl.SSLError):
            if one.reason in _NO_TLS_SIGNS:
                return "it does not speak TLS; write http:// before its name, or ask for plain HTTP"
            return one.reason.lower().replace("_", " ") if one.reason else str(one)
        if one.errno and not isinstance(one, socket.gaierror):
            return os.strerror(one.errno)
        if one.strerror:
            return one.strerror
    return str(error) or type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    below: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if below is None:
            return
        yield below
        below = below.exceptions[0] if isinstance(below, BaseExceptionGroup) else below.__cause__ or below.__context__


async def read_bounded(reply: httpx.Response, limit_bytes: int, what: str) -> bytes:
    """The whole body, as sent.

    Raises:
        BadAnswerError: it is larger than *limit_bytes*, or encoded.
        UnreachableError: it breaks off.
    """
    refuse_encoding(reply, what)
    announced = reply.headers.get("Content-Length", "")
    if announced.isdecimal() and int(announced) > limit_bytes:
        raise BadAnswerError(f"{what} has {announced} bytes, more than the {limit_bytes} that are allowed")
    body = bytearray()
    with translated(reply.url):
        async with aclosing(_raw(reply)) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > limit_bytes:
                    raise BadAnswerError(f"{what} has more than the {limit_bytes} bytes that are allowed")
    return bytes(body)


def refuse_encoding(reply: httpx.Response, what: str) -> None:
    """Digests name bytes as sent, so nothing may be compressed on the way.

    Raises:
        BadAnswerError: the answer is encoded although we asked for ``identity``.
    """
    encoding = reply.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise BadAnswerError(
            f"{reply.url.netloc.decode()} sends {what} with Content-Encoding {encoding[:40]!r}, unasked"
        )


async def paced(reply: httpx.Response, patience: Patience) -> AsyncGenerator[bytes, None]:
    """Pieces of a body, with an eye on its speed; the time that the consumer takes does not count.

    Raises:
        UnreachableError: it breaks off, stalls, or drips.
    """
    waited_s = 0.0
    arrived_bytes = 0
    async with aclosing(_raw(reply)) as pieces:
        while True:
            began_s = time.monotonic()
            with translated(reply.url):
                piece = await anext(pieces, None)
            if piece is None:
                return
            waited_s += time.monotonic() - began_s
            arrived_bytes += len(piece)
            if waited_s >= patience.low_speed_window_s:
                if arrived_bytes < patience.low_speed_bytes_s * waited_s:
                    raise UnreachableError(
                        f"{reply.url.netloc.decode()} sends less than {patience.low_speed_bytes_s} bytes a second"
                    )
                waited_s, arrived_bytes = 0.0, 0
            yield piece


async def _raw(reply: httpx.Response) -> AsyncGenerator[bytes, None]:
    # no piece size is given: what has arrived is passed on, and a drip is seen as one
    raw = reply.aiter_raw()
    try:
        async for piece in raw:
            yield piece
    finally:
        if isinstance(raw, AsyncGenerator):
            await raw.aclose()


def retry_after_s(headers: Mapping[str, str], now_unix_s: float | None = None) -> float | None:
    """What ``Retry-After`` says, in seconds from now; None if it says nothing readable."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return max(0.0, moment.timestamp() - (time.time() if now_unix_s is None else now_unix_s))


class Backoff:
    """Counts failures in a row and waits, longer each time, with jitter."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._failures = 0

    def progressed(self) -> None:
        """Something came: begin to count anew."""
        self._failures = 0

    async def failed(self, error: ProxyError) -> None:
        """Wait before the next attempt; raises *error* if there is to be none."""
        self._failures += 1
        if not error.transient or self._failures >= self._patience.attempts:
            raise error
        ceiling_s = min(self._patience.max_delay_s, self._patience.first_delay_s * 2 ** (self._failures - 1))
        delay_s = ceiling_s * random.uniform(0.5, 1.0)  # noqa: S311  # spreads clients, hides nothing
        if isinstance(error, RateLimitedError) and error.retry_after_s is not None:
            if error.retry_after_s > self._patience.retry_after_cap_s:
                raise error  # waiting less than it asks for would only be refused again
            delay_s = max(delay_s, error.retry_after_s)
        await anyio.sleep(delay_s)


async def retrying(patience: Patience, attempt: Callable[[], Awaitable[_T]]) -> _T:
    """Call *attempt* until it gives something, as long as its errors are transient and *patience* lasts.

    Wrong bytes are asked for once more: a broken line is likelier than a broken registry.
    """
    backoff = Backoff(patience)
    is_second_try = False
    while True:
        try:
            with anyio.fail_after(patience.answer_deadline_s):
                return await attempt()
        except TimeoutError:
            await backoff.failed(UnreachableError(f"no whole answer within {patience.answer_deadline_s:.0f} s"))
        except DigestMismatchError:
            if is_second_try:
                raise
            is_second_try = True
        except ProxyError as error:
            await backoff.failed(error)


def is_success(status: int) -> bool:
    """True for the answers that carry what was asked for."""
    return status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT)
