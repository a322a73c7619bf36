"""Answers of the proxy: errors to statuses and codes in one table, bodies that are broken off rather than wrong."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from http import HTTPStatus

import anyio
import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from registry_proxy.errors import (
    AbsentError,
    BadAnswerError,
    DeniedError,
    DigestMismatchError,
    DigestSyntaxError,
    ManifestError,
    ProxyError,
    RateLimitedError,
    UnsupportedManifestError,
)
from registry_proxy.oci.codes import STATUSES, Code, error_body
from registry_proxy.ranges import UnsatisfiableRangeError
from registry_proxy.upstreams import AmbiguousUpstreamError, UnknownUpstreamError

RETRY_AFTER_S = 5
_MAX_WARNING = 4000
_log = structlog.get_logger()


def error_answer(
    code: Code, message: str, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer that says what is wrong."""
    return Response(error_body(code, message), status or STATUSES[code], headers, media_type="application/json")


def answer_for(error: Exception, absent: Code, *, is_anonymous: bool) -> Response:
    """The answer for *error*; *absent* is the code for things of the asked kind that are not there.

    Statuses are chosen for what clients do with them: 404 and 5xx make them try another host, 401 would start a
    login at the proxy, 403 is final.
    """
    text = str(error)
    status: int | None = None
    headers: dict[str, str] = {}
    match error:
        case UnsatisfiableRangeError():
            code, status, headers = (
                Code.UNSUPPORTED,
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                {"Content-Range": text},
            )
        case UnknownUpstreamError():
            code = Code.NAME_UNKNOWN
        case AmbiguousUpstreamError():
            code = Code.NAME_INVALID
        case DigestSyntaxError():
            code = Code.DIGEST_INVALID
        case UnsupportedManifestError():
            code = Code.MANIFEST_UNKNOWN
        case AbsentError():
            code = absent
        case DeniedError():
            # registries that know nobody refuse what does not exist: without credentials the two look the same
            code = Code.NAME_UNKNOWN if is_anonymous else Code.DENIED
        case RateLimitedError():
            wait_s = RETRY_AFTER_S if error.retry_after_s is None else max(1, int(error.retry_after_s))
            code, headers = Code.TOOMANYREQUESTS, {"Retry-After": str(wait_s)}
        case ManifestError() | DigestMismatchError() | BadAnswerError():
            code = Code.MANIFEST_INVALID if absent is Code.MANIFEST_UNKNOWN else Code.UNAVAILABLE
            status = HTTPStatus.BAD_GATEWAY
        case _:
            code, headers = Code.UNAVAILABLE, {"Retry-After": str(RETRY_AFTER_S)}
    return error_answer(code, text, status=status, headers=headers)


def warning_header(text: str) -> str:
    """A ``Warning`` header in the only form that container clients show. Source: RFC 7234, section 5.5."""
    escaped = text[:_MAX_WARNING].replace("\\", "\\\\").replace('"', '\\"')
    return f'299 - "{escaped}"'


class PartsResponse(Response):
    """A body that comes in parts.

    If they end with an error the answer is not completed; the server then closes the connection, so that the client
    sees fewer bytes than announced and never takes the body for whole.
    """

    def __init__(
        self,
        first: bytes,
        rest: AsyncGenerator[bytes, None],
        *,
        status: int,
        headers: Mapping[str, str],
        sent: Callable[[int], None],
    ) -> None:
        super().__init__(b"", status, headers)
        self._first = first
        self._rest = rest
        self._sent = sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the body; stop when the client goes."""
        del scope
        async with aclosing(self._rest):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with anyio.create_task_group() as group:
                group.start_soon(_until_disconnect, receive, group.cancel_scope)
                try:
                    await self._send_body(send)
                except ProxyError as error:
                    _log.warning("body_broken_off", reason=str(error))
                group.cancel_scope.cancel()

    async def _send_body(self, send: Send) -> None:
        await self._send_part(send, self._first)
        async for part in self._rest:
            await self._send_part(send, part)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_part(self, send: Send, part: bytes) -> None:
        await send({"type": "http.response.body", "body": part, "more_body": True})
        self._sent(len(part))


async def _until_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
