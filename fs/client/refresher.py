"""When to look for a newer revision: as the root catalog's time to live says, when a server announces one, on request.

The announcements of an origin are a hint to look at once, never a source: what is adopted is what the trust chain
proves. A server that does not offer them is asked again after a while; polling goes on whatever happens.
"""

import json
import time
from collections.abc import Awaitable, Callable, Sequence

import anyio
import httpx
import structlog

from fs.client.adoption import Invalidations
from fs.client.magic import MountFacts
from fs.client.operations import Operations
from fs.errors import FsError
from fs.store.http import without_secrets
from fs.store.network import Network

_log = structlog.get_logger()

_SHORT_TTL_S = 180.0  # after a failure
_SILENCE_S = 45.0  # an origin says something every 15 s
_AGAIN_S = 5.0
_LATER_S = 600.0  # servers without announcements
_LINE_LIMIT_BYTES = 65536


class Refresher:
    """Keeps one mount at the newest revision.

    Args:
        operations: of the mount.
        facts: gets the time of the next check.
        revoke: makes the kernel forget.
        end: called when the revision that is shown must not be shown any more, and there is no other.
    """

    def __init__(
        self,
        operations: Operations,
        facts: MountFacts,
        revoke: Callable[[Invalidations], Awaitable[None]],
        end: Callable[[], None],
    ) -> None:
        self._operations = operations
        self._repository = operations.repository
        self._facts = facts
        self._revoke = revoke
        self._end = end
        self._lock = anyio.Lock()
        self._hint = anyio.Event()

    async def refresh(self) -> bool:
        """Look for a newer revision now; True if one was adopted and the kernel knows. Raises FsError."""
        async with self._lock:
            before = self._repository.revision.number
            try:
                changed = await self._repository.refresh()
            except FsError:
                self._end_if_forbidden()
                raise
            if changed:
                forgotten = await self._operations.adopt()
                await self._revoke(forgotten)
                _log.info(
                    "revision_adopted",
                    repository=self._repository.name,
                    revision=self._repository.revision.number,
                    before=before,
                    revoked=len(forgotten.entries) + len(forgotten.directories),
                )
        self._schedule(self._repository.revision.ttl_s)
        return changed

    def _end_if_forbidden(self) -> None:
        if self._repository.is_forbidden():
            _log.error(
                "revision_forbidden", repository=self._repository.name, revision=self._repository.revision.number
            )
            self._end()

    async def alone(self, act: Callable[[], Awaitable[None]]) -> None:
        """Do something during which nothing else may be adopted; who asks for a refresh waits."""
        async with self._lock:
            await act()

    def _schedule(self, delay_s: float) -> None:
        self._facts.next_check_unix_s = time.time() + delay_s

    async def run(self) -> None:
        """Refresh for ever; failures are logged and the present revision stays."""
        if self._repository.selection.is_fixed:
            return
        self._schedule(
            min(_SHORT_TTL_S, self._repository.revision.ttl_s)
            if self._repository.is_offline
            else self._repository.revision.ttl_s
        )
        while True:
            with anyio.move_on_after(max(0.0, self._facts.next_check_unix_s - time.time())):
                await self._hint.wait()
            self._hint = anyio.Event()
            try:
                await self.refresh()
            except FsError as error:
                _log.warning("refresh_failed", repository=self._repository.name, reason=str(error))
                self._schedule(min(_SHORT_TTL_S, self._repository.revision.ttl_s))
            except Exception:  # noqa: BLE001  # the edge: a fault in here must not take the mount away
                _log.exception("refresh_broken", repository=self._repository.name)
                self._schedule(_SHORT_TTL_S)

    async def listen(self, network: Network, base_urls: Sequence[str]) -> None:
        """Hear the announcements of all servers at *base_urls*, for ever."""
        if self._repository.selection.is_fixed:
            return
        async with anyio.create_task_group() as group:
            for url in base_urls:
                group.start_soon(self._listen_to, network, url.rstrip("/") + "/events")

    async def _listen_to(self, network: Network, url: str) -> None:
        while True:
            delay_s = _AGAIN_S
            try:
                async with network.client.stream(
                    "GET", url, headers={"Accept": "text/event-stream"}, timeout=httpx.Timeout(_SILENCE_S, connect=3.0)
                ) as reply:
                    kind = reply.headers.get("content-type", "")
                    if reply.is_success and kind.startswith("text/event-stream"):
                        await self._hear(reply)
                    else:
                        delay_s = _LATER_S
            except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
                _log.debug("announcements_interrupted", url=without_secrets(url), reason=str(error))
            except Exception:  # noqa: BLE001  # the edge: a fault in here must not take the mount away
                _log.exception("announcements_broken", url=without_secrets(url))
                delay_s = _LATER_S
            await anyio.sleep(delay_s)

    async def _hear(self, reply: httpx.Response) -> None:
        pending = b""
        async for piece in reply.aiter_raw():
            *lines, pending = (pending + piece).split(b"\n")
            if len(pending) > _LINE_LIMIT_BYTES:
                return
            for line in lines:
                if line.startswith(b"data:") and self._is_news(line.removeprefix(b"data:")):
                    self._hint.set()

    def _is_news(self, data: bytes) -> bool:
        try:
            return int(json.loads(data)["revision"]) > self._repository.revision.number
        except (ValueError, KeyError, TypeError):
            return False
