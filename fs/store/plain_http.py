"""HTTP/1.1 at its plainest, for many small objects: one GET, an answer of stated length, the connection is kept.

A general client takes several times as long for such an exchange as the exchange itself. Whatever is out of the
ordinary here (redirects, chunked transfer, answers without a length, other versions of HTTP) raises
UnusualAnswerError, and the caller repeats the request with a general client. TLS is not spoken here either.
Source: RFC 9112, sections 2 to 6 and 9.
"""

import re
from collections.abc import Callable

import anyio
import anyio.abc
import httpx

from fs.errors import UnreachableError
from fs.store.limits import HttpLimits, Pace
from fs.store.reading import Receiver

_STATUS = re.compile(rb"HTTP/1\.1 ([2-5]\d\d)[ \r]")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,15})[ \t]*(?=\r\n)")
_ODD = re.compile(rb"\r\n(?:transfer-encoding|trailer|upgrade)[ \t]*:|\r\n[ \t]|\r\ncontent-length[ \t]+:|[\0]|[^\r]\n")
_CLOSE = re.compile(rb"\r\nconnection:[^\r]*\bclose\b")
_HEAD_END = b"\r\n\r\n"
_HEAD_LIMIT_BYTES = 1 << 16
_PIECE_BYTES = 1 << 18
_KEPT_S = 5.0  # unused; about as long as servers keep theirs
_WITHOUT_BODY = frozenset({204, 205, 304})

Check = Callable[[int, bytes], bool]
"""Gets status and head (in lower case); raises if the body is not to be read. True: it begins at byte 0 of the file."""


class UnusualAnswerError(Exception):
    """A valid answer, perhaps, but not one for this module; nothing was given to the receiver."""


class _StaleError(Exception):
    """A kept connection was closed by the other side before it answered."""


class PlainConnections:
    """Connections to one server or proxy. Belongs to one event loop.

    Args:
        host: name or address.
        port: of TCP.
        limits: how long it may take.
        slots: taken while a connection is in use; shared with the connections to others.
    """

    def __init__(self, host: str, port: int, limits: HttpLimits, slots: anyio.Semaphore) -> None:
        self._host = host
        self._port = port
        self._limits = limits
        self._slots = slots
        self._idle: list[tuple[float, anyio.abc.SocketStream]] = []  # when it was used last

    async def read(self, message: bytes, check: Check, receiver: Receiver, *, skip: int, most: int | None) -> None:
        """Send *message* and push the body of the answer into *receiver*, which is not finished.

        Args:
            message: a whole GET request.
            check: looks at the head of the answer.
            receiver: begun.
            skip: bytes of a whole file to drop.
            most: bytes to give after those; None is all.

        Raises:
            UnusualAnswerError: ask with another client.
            UnreachableError: no whole answer, or none in time.
        """
        async with self._slots:
            while True:
                stream, is_kept = await self._connection()
                is_reusable = False
                try:
                    is_reusable = await self._exchange(stream, message, check, receiver, (skip, most))
                except _StaleError:
                    if not is_kept:
                        raise UnreachableError(f"{self._host} closed the connection") from None
                except TimeoutError:
                    raise UnreachableError(f"{self._host} said nothing for {self._limits.idle_timeout_s} s") from None
                except (anyio.BrokenResourceError, anyio.EndOfStream) as error:
                    raise UnreachableError(f"{self._host} ended the connection within its answer") from error
                else:
                    return
                finally:
                    if is_reusable:
                        self._idle.append((anyio.current_time(), stream))
                    else:
                        await anyio.aclose_forcefully(stream)

    async def _connection(self) -> tuple[anyio.abc.SocketStream, bool]:
        while self._idle:
            used, stream = self._idle.pop()
            if anyio.current_time() - used < _KEPT_S:
                return stream, True
            await anyio.aclose_forcefully(stream)
        try:
            with anyio.fail_after(self._limits.connect_timeout_s):
                return await anyio.connect_tcp(self._host, self._port), False
        except (OSError, TimeoutError) as error:
            raise UnreachableError(f"no connection to {self._host}:{self._port}: {error or 'time-out'}") from error

    async def _exchange(
        self,
        stream: anyio.abc.SocketStream,
        message: bytes,
        check: Check,
        receiver: Receiver,
        cut: tuple[int, int | None],
    ) -> bool:
        """One request and its answer; True if the connection can take another."""
        with anyio.fail_after(self._limits.idle_timeout_s):
            received = await _begin(stream, message)
            while (end := received.find(_HEAD_END)) < 0:
                if len(received) > _HEAD_LIMIT_BYTES:
                    raise UnusualAnswerError
                received += await stream.receive(_PIECE_BYTES)
        head = received[: end + 2].lower()
        left = _length(received, head)
        skip, most = cut if check(int(received[9:12]), head) else (0, None)
        piece = received[end + 4 :]
        is_exact = True
        pace = Pace(self._limits, self._host)
        while True:
            if len(piece) > left:  # more than it said: what follows is nobody's answer
                piece, is_exact = piece[:left], False
            left -= len(piece)
            wanted = piece[skip:] if most is None else piece[skip : skip + most]
            skip = max(0, skip - len(piece))
            if wanted:
                await receiver.feed(wanted)
                if most is not None:
                    most -= len(wanted)
            if not left or most == 0:
                return is_exact and not left and _CLOSE.search(head) is None
            with anyio.fail_after(self._limits.idle_timeout_s):
                piece = await stream.receive(min(left + 1, _PIECE_BYTES))
            pace.passed(len(piece))

    async def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            await anyio.aclose_forcefully(self._idle.pop()[1])


async def _begin(stream: anyio.abc.SocketStream, message: bytes) -> bytes:
    try:
        await stream.send(message)
        return await stream.receive(_PIECE_BYTES)
    except (anyio.BrokenResourceError, anyio.EndOfStream) as error:
        raise _StaleError from error


def _length(received: bytes, head: bytes) -> int:
    """How long the body is. Raises UnusualAnswerError for all but the plainest of answers."""
    status = _STATUS.match(received)
    lengths = _LENGTH.findall(head)
    if status is None or len(lengths) != 1 or head.count(b"\r\ncontent-length") != 1 or _ODD.search(head):
        raise UnusualAnswerError
    number = int(status[1])
    if number in _WITHOUT_BODY or number // 100 == 3:  # noqa: PLR2004  # redirects
        raise UnusualAnswerError
    return int(lengths[0])


def plain_message(url: httpx.URL, *, is_through_proxy: bool) -> tuple[bytes, bytes]:
    """What stands before and after the path of an object in a GET below *url*, without the final empty line."""
    base = url.raw_path.split(b"?")[0].rstrip(b"/")
    start = b"http://" + url.netloc + base if is_through_proxy else base
    return b"GET " + start + b"/", b" HTTP/1.1\r\nHost: " + url.netloc + b"\r\nUser-Agent: unpackd\r\n" + (
        b"Accept: */*\r\nAccept-Encoding: identity\r\n"
    )
