"""Blobs through the cache: from the disk, from a download on its way, or in parts past the cache."""

import os
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread

from registry_proxy.cache import Cache, Place
from registry_proxy.downloads import PIECE_BYTES, Download, Downloads, State
from registry_proxy.errors import (
    AbandonedError,
    AbsentError,
    BadAnswerError,
    DigestMismatchError,
    NoRoomError,
    UnreachableError,
)
from registry_proxy.metrics import Metrics
from registry_proxy.oci.digest import Digest
from registry_proxy.oci.manifest import Descriptor
from registry_proxy.oci.media_types import OCTET_STREAM
from registry_proxy.ranges import AskedRange
from registry_proxy.upstream import Upstream

_NEAR_BYTES = 32 << 20  # a download that will soon be there is waited for
_KNOWN_SIZES = 10_000


@dataclass(frozen=True, slots=True)
class BlobAnswer:
    """A blob to send: its whole size, which bytes of it, and these; ``parts`` is None if only sizes were asked for."""

    size_bytes: int
    part: range
    parts: AsyncGenerator[bytes, None] | None


class Blobs:
    """Gives blobs. A blob is given through a repository only if that repository has it."""

    def __init__(self, cache: Cache, downloads: Downloads, metrics: Metrics) -> None:
        self._cache = cache
        self._downloads = downloads
        self._metrics = metrics
        self._sizes: OrderedDict[tuple[Place, Digest], int] = OrderedDict()

    async def head(self, upstream: Upstream, repository: str, digest: Digest) -> BlobAnswer:
        """How large a blob is; nothing is fetched for that.

        Raises:
            ProxyError: it cannot be had.
        """
        content = await to_thread.run_sync(self._cache.content, digest)
        if content is not None:
            await self._authorise(upstream, repository, digest)
            return BlobAnswer(content.size_bytes, range(content.size_bytes), None)
        size = await self._size(upstream, repository, digest)
        return BlobAnswer(size, range(size), None)

    async def get(self, upstream: Upstream, repository: str, digest: Digest, asked: AskedRange | None) -> BlobAnswer:
        """A blob, or the part of it that *asked* means.

        Raises:
            UnsatisfiableRangeError: there is no such part.
            ProxyError: it cannot be had.
        """
        content = await to_thread.run_sync(self._cache.content, digest)
        if content is not None:
            await self._authorise(upstream, repository, digest)
            descriptor = await to_thread.run_sync(self._cache.open, digest)
            if descriptor is not None:
                self._metrics.count("hits_total", kind="blob", upstream=upstream.name)
                return _from_file(descriptor, content.size_bytes, asked)
        if asked is not None and asked.first != 0:
            return await self._part(upstream, repository, digest, asked)
        download = await self._join(upstream, repository, digest)
        return await self._following(upstream, repository, download, asked)

    async def _part(self, upstream: Upstream, repository: str, digest: Digest, asked: AskedRange) -> BlobAnswer:
        """Some bytes from the middle: from a download that has them or soon will, else past the cache.

        Whoever reads by ranges does so to avoid the whole blob, so none is begun for him. What a broken download
        left on the disk is another matter: somebody goes on with what he began.
        """
        if self._downloads.is_poisoned(digest):
            raise UnreachableError(
                f"{upstream.registry} gave wrong bytes for blob {digest}; begin again from its start"
            )
        running = self._downloads.find(digest)
        if running is None:
            size = await self._size(upstream, repository, digest)
            front = await to_thread.run_sync(_size_on_disk, self._cache.partial_path(digest))
        else:
            await self._authorise(upstream, repository, digest)
            size, front = await running.size(), running.stored_bytes
        part = asked.within(size)
        if part.start <= front + _NEAR_BYTES and (running is not None or front):
            download = running or await self._join(upstream, repository, digest)
            return await self._following(upstream, repository, download, asked)
        return BlobAnswer(size, part, self._past_the_cache(upstream, repository, digest, part))

    async def _join(self, upstream: Upstream, repository: str, digest: Digest) -> Download:
        running = self._downloads.find(digest)
        if running is not None:
            # its repository may be another one, with other readers
            await self._authorise(upstream, repository, digest)
            if running.state is not State.FAILED:  # one that is done by now can be read like any other
                return running
        return self._downloads.join(upstream, repository, digest)

    async def _following(
        self, upstream: Upstream, repository: str, download: Download, asked: AskedRange | None
    ) -> BlobAnswer:
        try:
            with download.reading():
                size = await download.size()
        except NoRoomError:
            size = await self._size(upstream, repository, download.digest)
        part = asked.within(size) if asked is not None else range(size)
        return BlobAnswer(size, part, self._followed(upstream, repository, download, part))

    async def _followed(
        self, upstream: Upstream, repository: str, download: Download, part: range
    ) -> AsyncGenerator[bytes, None]:
        """The bytes *part* of *download*; begun once more if it fails before anything was given."""
        for is_last_try in (False, True):
            is_given = False
            try:
                async with aclosing(self._downloads.read(download, part)) as pieces:
                    async for piece in pieces:
                        is_given = True
                        yield piece
            except (DigestMismatchError, AbandonedError):
                if is_given or is_last_try:
                    raise
                download = self._downloads.join(upstream, repository, download.digest)
            except NoRoomError:
                if is_given:
                    raise
                break
            else:
                return
        self._metrics.count("unstored_total", upstream=upstream.name)
        async with aclosing(self._past_the_cache(upstream, repository, download.digest, part)) as pieces:
            async for piece in pieces:
                yield piece

    async def _past_the_cache(
        self, upstream: Upstream, repository: str, digest: Digest, part: range
    ) -> AsyncGenerator[bytes, None]:
        """Bytes straight from the upstream; all of them verified, parts as they are."""
        reference = upstream.reference(repository)
        size = self._sizes.get((upstream.place(repository), digest))
        self._metrics.count("upstream_requests_total", kind="blob_part", upstream=upstream.name)
        with upstream.breaker.watch(upstream.registry):
            if len(part) == size:
                whole = Descriptor(media_type=OCTET_STREAM, digest=digest, size_bytes=size)
                async with upstream.client.blob(reference, whole) as pieces:
                    async for piece in pieces:
                        yield piece
                return
            left = len(part)
            async with upstream.client.blob_part(reference, digest, part) as pieces:
                async for piece in pieces:
                    yield piece[:left]
                    left -= min(left, len(piece))

    async def _authorise(self, upstream: Upstream, repository: str, digest: Digest) -> None:
        """Make sure that the repository has the blob, by what is known, else by asking.

        Raises:
            AbsentError: it does not.
            ProxyError: its upstream cannot be asked.
        """
        if not await to_thread.run_sync(self._cache.is_linked, upstream.place(repository), digest):
            await self._size(upstream, repository, digest)

    async def _size(self, upstream: Upstream, repository: str, digest: Digest) -> int:
        """The size of a blob in a repository, which proves that it has it."""
        place = upstream.place(repository)
        known = self._sizes.get((place, digest))
        if known is not None:
            return known
        self._metrics.count("upstream_requests_total", kind="blob_head", upstream=upstream.name)
        with upstream.breaker.watch(upstream.registry):
            size = await upstream.client.blob_size(upstream.reference(repository), digest)
        if size is None:
            raise BadAnswerError(f"{upstream.registry} does not say how large blob {digest} is")
        self._sizes[place, digest] = size
        while len(self._sizes) > _KNOWN_SIZES:
            self._sizes.popitem(last=False)
        await to_thread.run_sync(self._cache.link, place, [digest])
        return size


def _from_file(descriptor: int, size_bytes: int, asked: AskedRange | None) -> BlobAnswer:
    try:
        part = asked.within(size_bytes) if asked is not None else range(size_bytes)
    except BaseException:
        os.close(descriptor)
        raise
    return BlobAnswer(size_bytes, part, _file_parts(descriptor, part))


async def _file_parts(descriptor: int, part: range) -> AsyncGenerator[bytes, None]:
    try:
        position = part.start
        while position < part.stop:
            data = await to_thread.run_sync(os.pread, descriptor, min(PIECE_BYTES, part.stop - position), position)
            if not data:
                raise AbsentError("a file of the cache is shorter than it was")
            position += len(data)
            yield data
    finally:
        os.close(descriptor)


def _size_on_disk(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
