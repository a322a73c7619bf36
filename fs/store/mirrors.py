"""From the URLs of a repository's servers to one reader over all of them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from fs.errors import RefusedError
from fs.store.directory import DirectoryReader
from fs.store.failover import FailoverReader
from fs.store.http import HttpLimits, HttpReader, open_http_client
from fs.store.reading import StorageReader
from fs.store.retrying import RetryingReader


@asynccontextmanager
async def open_mirrors(
    urls: Sequence[str], *, limits: HttpLimits | None = None, proxy: str | None = None, retries: int = 3
) -> AsyncIterator[StorageReader]:
    """A reader that asks the first of *urls* that answers, with retries.

    Raises:
        RefusedError: a URL is neither http, https nor file.
    """
    limits = limits or HttpLimits()
    async with open_http_client(limits, proxy=proxy) as client:
        readers = [RetryingReader(_reader(url, client, limits), retries=retries) for url in urls]
        yield FailoverReader(readers)


def _reader(url: str, client: httpx.AsyncClient, limits: HttpLimits) -> StorageReader:
    parts = urlsplit(url)
    match parts.scheme:
        case "http" | "https":
            return HttpReader(url, client, limits)
        case "file":
            return DirectoryReader(Path(unquote(parts.path)))
        case _:
            raise RefusedError(f"{url} is no URL that can be read: http, https and file can")
