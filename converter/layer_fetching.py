"""One layer from its source into the repository's store: a coroutine that fetches, a thread that does the rest.

Bytes go through a bounded queue. A thread that fails closes the queue, which ends the coroutine; a source that fails
ends the queue, and the thread raises what the source raised: so there is one error, and it is the first.
"""

from collections.abc import Callable, Iterator

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from converter.changeset import ChangeSet
from converter.layer_reading import ContentStore, read_layer
from converter.layer_streams import GZIP, PLAIN, ZSTD
from converter.limits import Limits
from converter.sources import OpenSource
from fs.runtime.errors import UnpackdError
from registry_proxy.oci.digest import Digest
from registry_proxy.oci.manifest import Descriptor

_QUEUE_PIECES = 4


def packing_of(media_type: str) -> str:
    """How a layer of *media_type* is packed; ``require_image`` has made sure that it is a layer's."""
    if media_type.endswith("gzip"):
        return GZIP
    return ZSTD if media_type.endswith("zstd") else PLAIN


async def fetch_layer(  # noqa: PLR0913  # collaborators, all by name
    source: OpenSource,
    descriptor: Descriptor,
    diff_id: Digest,
    *,
    store: ContentStore,
    limits: Limits,
    threads: anyio.CapacityLimiter,
    fetched: Callable[[int], None],
    entered: Callable[[int], None],
) -> ChangeSet:
    """Fetch a layer, store its files, and give its change set.

    Args:
        source: has the layer.
        descriptor: of the layer's blob.
        diff_id: digest of its tar.
        store: takes the files.
        limits: what the layer may cost.
        threads: bounds how many layers are read at the same time.
        fetched: told, in the event loop, of bytes that came.
        entered: told, in a thread, of entries that were read.

    Raises:
        UnpackdError: of the source or of the layer.
    """
    send, receive = anyio.create_memory_object_stream[bytes](_QUEUE_PIECES)
    fetching = _Fetching(source, descriptor, send, fetched)

    def read() -> ChangeSet:
        return read_layer(
            fetching.pieces(receive),
            packing=packing_of(descriptor.media_type),
            diff_id=diff_id,
            store=store,
            limits=limits,
            report=entered,
        )

    async with threads, anyio.create_task_group() as tasks:
        tasks.start_soon(fetching.run)
        with receive:
            try:
                changes = await anyio.to_thread.run_sync(read)
            except _CancelledError:
                await anyio.lowlevel.checkpoint()  # raises what ended the source
                raise
    return changes


class _CancelledError(Exception):
    """The source was ended from outside, so the layer is not whole."""


class _Fetching:
    """The coroutine's side, and what it has to tell the thread."""

    def __init__(
        self,
        source: OpenSource,
        descriptor: Descriptor,
        queue: MemoryObjectSendStream[bytes],
        fetched: Callable[[int], None],
    ) -> None:
        self._source = source
        self._descriptor = descriptor
        self._queue = queue
        self._fetched = fetched
        self._failure: UnpackdError | None = None
        self._is_whole = False

    async def run(self) -> None:
        """Fetch the blob into the queue, until its end or until nobody reads any more."""
        with self._queue:
            try:
                async with self._source.blob(self._descriptor) as pieces:
                    async for piece in pieces:
                        self._fetched(len(piece))
                        await self._queue.send(piece)
                self._is_whole = True
            except anyio.BrokenResourceError:
                return  # the thread has failed, and says why
            except UnpackdError as error:
                self._failure = error

    def pieces(self, queue: MemoryObjectReceiveStream[bytes]) -> Iterator[bytes]:
        """The blob, for the thread; raises what the source raised."""
        while True:
            try:
                piece = anyio.from_thread.run(queue.receive)
            except anyio.EndOfStream:
                if self._failure is not None:
                    raise self._failure from None
                if not self._is_whole:
                    raise _CancelledError from None
                return
            yield piece
