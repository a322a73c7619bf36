"""Everything that reading over a network needs, opened together: connections, proxies, mirrors.

A mirror is asked through the proxies (proxies.py), each attempt with its retries (retrying.py); the mirrors follow
each other (failover.py). What belongs to a way (a proxy, or none) is shared by all mirrors: one pool of connections.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import anyio
import httpx

from fs.errors import RefusedError
from fs.store.directory import DirectoryReader
from fs.store.failover import FailoverReader
from fs.store.http import HttpReader, open_http_client
from fs.store.limits import HttpLimits
from fs.store.plain_http import PlainConnections
from fs.store.proxies import DIRECT, ProxiedReader, ProxyChooser, ProxyGroups
from fs.store.reading import StorageReader
from fs.store.retrying import RetryingReader

_HTTP_PORT = 80


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """When something is tried again."""

    retries: int = 1  # further attempts on each way
    backoff_s: float = 0.4  # longest wait before the first of them
    host_reset_s: float = 300.0  # how long after a change of mirror the first gets its turn again


class Network:
    """Makes readers that share connections and proxies; made by ``open_network``."""

    def __init__(
        self,
        limits: HttpLimits,
        clients: dict[str, httpx.AsyncClient],
        chooser: ProxyChooser,
        retries: RetrySettings,
    ) -> None:
        self.proxies = chooser
        self._limits = limits
        self._clients = clients
        self._retries = retries
        self._slots = anyio.Semaphore(limits.transfers, fast_acquire=True)
        self._plain: dict[tuple[str, int], PlainConnections] = {}

    @property
    def client(self) -> httpx.AsyncClient:
        """For other requests to the mirrors, on the way that is asked first."""
        return self._clients[self.proxies.current]

    def mirrors(self, urls: Sequence[str]) -> FailoverReader:
        """All of *urls* as one reader. Raises RefusedError for a scheme that nobody reads."""
        return FailoverReader([self._mirror(url) for url in urls], reset_after_s=self._retries.host_reset_s)

    def _mirror(self, url: str) -> StorageReader:
        parts = urlsplit(url)
        match parts.scheme:
            case "http" | "https":
                ways = {way: self._retrying(self._reader(url, way)) for way in self.proxies.members}
                return ways[DIRECT] if [*ways] == [DIRECT] else ProxiedReader(url, ways, self.proxies)
            case "file":
                return self._retrying(DirectoryReader(Path(unquote(parts.path))))
            case _:
                raise RefusedError(f"{url} is no URL that can be read: http, https and file can")

    def _retrying(self, reader: StorageReader) -> StorageReader:
        return RetryingReader(reader, retries=self._retries.retries, backoff_s=self._retries.backoff_s)

    def _reader(self, url: str, way: str) -> HttpReader:
        proxy = None if way == DIRECT else way
        return HttpReader(url, self._clients[way], self._limits, plain=self._plain_connections(url, proxy), proxy=proxy)

    def _plain_connections(self, url: str, proxy: str | None) -> PlainConnections | None:
        """Connections without TLS and without passwords, or None."""
        place, partner = httpx.URL(url), httpx.URL(proxy or url)
        if any(one.scheme != "http" or one.userinfo or one.query for one in (place, partner)):
            return None
        key = (partner.host, partner.port or _HTTP_PORT)
        if key not in self._plain:
            self._plain[key] = PlainConnections(*key, self._limits, self._slots)
        return self._plain[key]

    async def close(self) -> None:
        """Close what is kept."""
        for connections in self._plain.values():
            await connections.close()


@asynccontextmanager
async def open_network(
    *,
    limits: HttpLimits | None = None,
    proxies: ProxyGroups | None = None,
    retries: RetrySettings | None = None,
) -> AsyncIterator[Network]:
    """Open a Network; its connections are closed at the end.

    Args:
        limits: for each request.
        proxies: on the way to all servers; none by default.
        retries: when something is tried again.
    """
    chosen = limits or HttpLimits()
    groups = proxies or ProxyGroups()
    async with AsyncExitStack() as stack:
        clients = {
            way: await stack.enter_async_context(open_http_client(chosen, proxy=None if way == DIRECT else way))
            for way in dict.fromkeys(member for group in groups.groups for member in group)
        }
        network = Network(chosen, clients, ProxyChooser(groups), retries or RetrySettings())
        try:
            yield network
        finally:
            with anyio.CancelScope(shield=True):
                await network.close()
