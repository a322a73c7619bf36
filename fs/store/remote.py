"""Reading a repository over a network, one thread at a time: for tools that are not asynchronous.

The asynchronous readers, with their retries and their change of mirrors, do the work in a thread of their own.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, BinaryIO, cast

from anyio.from_thread import BlockingPortal, start_blocking_portal

from fs.errors import AbsentError, CorruptError
from fs.format.hashes import Hash, Suffix
from fs.store.limits import HttpLimits
from fs.store.network import RetrySettings, open_network
from fs.store.proxies import ProxyGroups
from fs.store.reading import BytesReceiver, Part, Request, StorageReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_IN_MEMORY_BYTES = 16 << 20
_RETRIES = 2


class RemoteStore:
    """A ReadStore over a StorageReader. May be used by several threads."""

    def __init__(self, reader: StorageReader, portal: BlockingPortal) -> None:
        self._reader = reader
        self._portal = portal

    def get(self, name: Hash, suffix: Suffix, *, limit_bytes: int) -> bytes:
        """See ObjectReader.get."""
        receiver = _HashedReceiver(name, suffix, limit_bytes)
        self._portal.call(self._reader.read, Request(name.object_path(suffix)), receiver)
        return receiver.content

    def has(self, name: Hash, suffix: Suffix, *, stored_bytes: int | None = None) -> bool:
        """See ObjectReader.has; with *stored_bytes* the whole object is read."""
        part = None if stored_bytes is not None else Part(0, 1)
        receiver = _LengthReceiver()
        try:
            self._portal.call(self._reader.read, Request(name.object_path(suffix), part), receiver)
        except AbsentError:
            return False
        return stored_bytes in (None, receiver.length)

    def open(self, name: Hash, suffix: Suffix) -> BinaryIO:
        """See ObjectReader.open; the object is fetched before this returns."""
        receiver = _FileReceiver()
        try:
            self._portal.call(self._reader.read, Request(name.object_path(suffix)), receiver)
        except BaseException:
            receiver.file.close()
            raise
        receiver.file.seek(0)
        return receiver.file

    def read_named(self, name: str, *, limit_bytes: int) -> bytes:
        """See NamedReader.read_named."""
        receiver = BytesReceiver(name, limit_bytes)
        self._portal.call(self._reader.read, Request(name), receiver)
        return receiver.content


class _HashedReceiver(BytesReceiver):
    """Bytes that must hash to a name, so that the readers below know whether to ask elsewhere."""

    def __init__(self, name: Hash, suffix: Suffix, limit_bytes: int) -> None:
        self._shown = f"{name}{suffix.value}"
        super().__init__(f"object {self._shown}", limit_bytes)
        self._hash = name

    async def finish(self) -> None:
        """See Receiver.finish."""
        if Hash.of(self.content, self._hash.algorithm) != self._hash:
            raise CorruptError(self._shown)


class _LengthReceiver:
    """Only counts."""

    def __init__(self) -> None:
        self.length = 0

    def begin(self) -> None:
        """See Receiver.begin."""
        self.length = 0

    async def feed(self, piece: bytes) -> None:
        """See Receiver.feed."""
        self.length += len(piece)

    async def finish(self) -> None:
        """See Receiver.finish: any bytes will do."""


class _FileReceiver:
    """Keeps an object of any size, on disk if it is large."""

    def __init__(self) -> None:
        self.file = cast("BinaryIO", tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES))  # noqa: SIM115  # handed out

    def begin(self) -> None:
        """See Receiver.begin."""
        self.file.seek(0)
        self.file.truncate()

    async def feed(self, piece: bytes) -> None:
        """See Receiver.feed."""
        self.file.write(piece)

    async def finish(self) -> None:
        """See Receiver.finish: whoever opens an object verifies it."""


@contextmanager
def open_remote(
    urls: Sequence[str], limits: HttpLimits | None = None, *, proxies: ProxyGroups | None = None
) -> Iterator[RemoteStore]:
    """A store that reads the repository at *urls*, which are mirrors of each other.

    Raises:
        RefusedError: one of them is neither http, https nor file.
    """
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(_mirrors(urls, limits, proxies)) as reader,
    ):
        yield RemoteStore(reader, portal)


@asynccontextmanager
async def _mirrors(
    urls: Sequence[str], limits: HttpLimits | None, proxies: ProxyGroups | None
) -> "AsyncIterator[StorageReader]":
    async with open_network(limits=limits, proxies=proxies, retries=RetrySettings(_RETRIES)) as network:
        yield network.mirrors(urls)
