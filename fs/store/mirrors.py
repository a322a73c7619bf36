"""From the URLs of a repository's servers to one reader over all of them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fs.store.limits import HttpLimits
from fs.store.network import RetrySettings, open_network
from fs.store.proxies import ProxyGroups
from fs.store.reading import StorageReader


@asynccontextmanager
async def open_mirrors(
    urls: Sequence[str], *, limits: HttpLimits | None = None, proxy: str | None = None, retries: int = 3
) -> AsyncIterator[StorageReader]:
    """A reader that asks the first of *urls* that answers, with retries.

    Args:
        urls: the mirrors, best first.
        limits: for each request.
        proxy: groups of proxies, as ProxyGroups.parse takes them.
        retries: further attempts.

    Raises:
        RefusedError: a URL is neither http, https nor file, or a proxy none that can be used.
    """
    groups = None if proxy is None else ProxyGroups.parse(proxy)
    async with open_network(limits=limits, proxies=groups, retries=RetrySettings(retries)) as network:
        yield network.mirrors(urls)
