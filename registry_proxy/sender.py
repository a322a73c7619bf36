"""Requests to registries: challenges answered, statuses turned into errors, rate limits remembered."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

import anyio
import httpx

from registry_proxy.errors import (
    AbsentError,
    BadAnswerError,
    DeniedError,
    ProxyError,
    RateLimitedError,
    UnreachableError,
)
from registry_proxy.oci.challenge import parse_challenges
from registry_proxy.oci.codes import error_text
from registry_proxy.tokens import Tokens
from registry_proxy.transfer import Origin, Patience, follow, is_success, read_bounded, retry_after_s

_MAX_ERROR_BYTES = 64 << 10
_PASSING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY})
CATALOG_SCOPE = "registry:catalog:*"


def pull_scope(repository: str) -> str:
    """The right that reading from *repository* needs, as token servers name it."""
    return f"repository:{repository}:pull"


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What a registry said last about how many manifests may still be pulled."""

    limit: int
    remaining: int

    @classmethod
    def read(cls, headers: Mapping[str, str]) -> "RateLimit | None":
        """From an answer's headers, ``ratelimit-limit: 100;w=21600``; None if there are none."""
        numbers = [
            headers.get(name, "").partition(";")[0].strip() for name in ("ratelimit-limit", "ratelimit-remaining")
        ]
        return cls(*map(int, numbers)) if all(number.isdecimal() for number in numbers) else None


class Sender:
    """Sends requests to any registry. Its attempts are single: callers decide what is worth repeating."""

    def __init__(self, http: httpx.AsyncClient, tokens: Tokens, patience: Patience) -> None:
        self._http = http
        self._tokens = tokens
        self.patience = patience
        self.rate_limits: dict[Origin, RateLimit] = {}

    @asynccontextmanager
    async def ask(  # noqa: PLR0913  # a request has these parts
        self,
        method: str,
        origin: Origin,
        path: str,
        *,
        scope: str,
        what: str,
        headers: Mapping[str, str] | None = None,
        accepted: frozenset[int] = frozenset(),
    ) -> AsyncIterator[httpx.Response]:
        """The answer to one request; *what* is what is asked for, in words for errors.

        Statuses other than success and *accepted* raise.

        Raises:
            AbsentError: 404 and 410.
            DeniedError: 401 and 403, after challenges were answered.
            RateLimitedError: 429.
            UnreachableError: 408, 425, 5xx, or no answer.
            BadAnswerError: anything else.
        """
        header = self._tokens.known(origin, scope)
        is_fresh = False
        while True:
            sent = {**(headers or {}), **({"Authorization": header} if header else {})}
            async with follow(self._http, method, origin.url + path, sent) as reply:
                self._note_rate_limit(origin, reply)
                if reply.status_code != HTTPStatus.UNAUTHORIZED or is_fresh:
                    if not is_success(reply.status_code) and reply.status_code not in accepted:
                        raise await _error(origin, reply, what)
                    yield reply
                    return
                challenges = parse_challenges(reply.headers.get_list("WWW-Authenticate"))
            header, is_fresh = await self._tokens.answer(origin, scope, challenges, header), True

    def _note_rate_limit(self, origin: Origin, reply: httpx.Response) -> None:
        limit = RateLimit.read(reply.headers)
        if limit is not None:
            self.rate_limits[origin] = limit


async def _error(origin: Origin, reply: httpx.Response, what: str) -> ProxyError:
    status = reply.status_code
    said = await _said(reply)
    because = f" ({said})" if said else ""
    match status:
        case HTTPStatus.NOT_FOUND | HTTPStatus.GONE:
            return AbsentError(f"{origin.registry} does not have {what}{because}")
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            # Docker Hub and GitHub answer like this for repositories that do not exist, too
            return DeniedError(f"{origin.registry} refuses {what}: it does not exist, or needs another login{because}")
        case HTTPStatus.TOO_MANY_REQUESTS:
            return RateLimitedError(
                f"{origin.registry} does not give {what} now: too many requests{because}", retry_after_s(reply.headers)
            )
        case _ if status in _PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return UnreachableError(
                f"{origin.registry} cannot give {what} now: it answers with status {status}{because}"
            )
        case _:
            return BadAnswerError(f"{origin.registry} answers with status {status} when asked for {what}{because}")


async def _said(reply: httpx.Response) -> str:
    """The registry's own words; whatever goes wrong with them is less important than the status."""
    try:
        with anyio.move_on_after(5):
            return error_text(await read_bounded(reply, _MAX_ERROR_BYTES, "an error"))
    except ProxyError:
        pass
    return ""
