"""Objects by name: from the cache, else from the repository's servers, and past the cache if it takes nothing.

Whatever is returned was verified: on arrival against the object's hash and size, from the cache against the checksum
of each block. An object that is damaged in the cache is removed and fetched again; one that no server gives intact
is an error that names it. Everything here belongs to one event loop.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import anyio
import anyio.to_thread
import structlog

from fs.client.arrivals import Arrivals
from fs.client.bundles import Bundles, is_small
from fs.client.cache import ObjectCache
from fs.client.cache_writer import CacheFullError
from fs.client.memory import MemoryTier
from fs.client.metrics import Latencies
from fs.client.object_file import ObjectFile
from fs.client.preloaded import PreloadedCaches
from fs.client.receiving import MemorySink, ObjectReceiver, ObjectRef, SinkFailedError, WindowSink
from fs.errors import AbsentError, CorruptError, RefusedError, UnreachableError
from fs.format.hashes import Hash
from fs.store.reading import StorageReader
from fs.store.single_flight import SingleFlight

_log = structlog.get_logger()

_LEAST_IN_BUNDLE = 2
_SMALL_BYTES = 1 << 18  # such objects are given from memory when they arrive, and written to the cache afterwards
_WINDOW_BYTES = 4 << 20
_LOOK_S = 0.001  # how soon to look again if another process fetches an object
_LOOK_AT_LEAST_S = 0.05
_PATIENCE_S = 20.0
_WINDOWS = 8  # kept in memory when the disk takes nothing


@dataclass(slots=True)
class TransferCounts:
    """What was fetched since the start."""

    objects: int = 0
    stored_bytes: int = 0
    past_cache: int = 0
    not_kept: int = 0  # small objects that the disk did not take
    failed: int = 0  # objects that no server gave


class Objects:
    """Reads objects.

    Args:
        cache: started.
        reader: the repository's mirrors.
        external: where the files of external objects are, by their path; None if nobody said.
        preloaded: looked at before the cache, and never written.
        memory: holds what was read last.
        bundles: what gives several small objects at once; None does without.
    """

    def __init__(  # noqa: PLR0913  # what it is made of
        self,
        cache: ObjectCache,
        reader: StorageReader,
        external: StorageReader | None = None,
        *,
        preloaded: PreloadedCaches | None = None,
        memory: MemoryTier | None = None,
        bundles: Bundles | None = None,
    ) -> None:
        self.cache = cache
        self.preloaded = preloaded or PreloadedCaches()
        self.memory = memory or MemoryTier()
        self.counts = TransferCounts()
        self.latencies = Latencies()
        self._reader = reader
        self._external = external
        self._bundles = bundles
        self._arrivals = Arrivals(cache)
        self._fetching = SingleFlight[Hash, bytes | None]()
        self._passing = SingleFlight[tuple[Hash, int], bytes]()
        self._windows = OrderedDict[tuple[Hash, int], bytes]()

    async def read(self, ref: ObjectRef, offset: int, size: int) -> bytes:
        """At most *size* uncompressed bytes of the object from *offset* on.

        Raises:
            AbsentError, CorruptError, RefusedError, UnreachableError: no server gives it.
        """
        for _ in range(2):  # a second time if the cached copy turns out to be damaged
            data = self.read_now(ref, offset, size)
            if data is not None:
                return data
            self.cache.counts.misses += 1
            try:
                data = await self._fetching.run(ref.hash, lambda: self._fetch(ref))
            except CacheFullError:
                break
            if data is not None:
                _check_size(ref, len(data))
                return data[offset : offset + size]
            data = self.read_now(ref, offset, size)
            if data is not None:
                return data
        return await self._read_past_cache(ref, offset, size)

    def read_now(self, ref: ObjectRef, offset: int, size: int) -> bytes | None:
        """As ``read``, if the object has arrived; else None. A damaged copy is removed. Raises CorruptError."""
        data = self._in_memory(ref)
        if data is not None:
            return data[offset : offset + size]
        kept: ObjectCache | PreloadedCaches = self.preloaded
        found = self.preloaded.find(ref.hash)
        if found is None:
            kept = self.cache
            found = self.cache.find(ref.hash)
        if found is None:
            return None
        _check_size(ref, found.size_bytes)
        try:
            return self._read_file(found, ref, offset, size)
        except (CorruptError, OSError) as error:
            kept.discard(ref.hash, error)
            return None

    def _in_memory(self, ref: ObjectRef) -> bytes | None:
        """The whole object if it is in memory."""
        data = self.memory.get(ref.hash) if self.memory.limit_bytes else None
        if data is None:
            data = self._arrivals.get(ref.hash)
        if data is not None:
            self.cache.counts.hits += 1
            _check_size(ref, len(data))
        return data

    def _read_file(self, found: ObjectFile, ref: ObjectRef, offset: int, size: int) -> bytes:
        """A part of an object from disk; small objects stay in memory if there is room. Raises as ObjectFile.read."""
        if not self.memory.takes(ref.size) or found.size_bytes > _SMALL_BYTES:
            return found.read(offset, size)
        data = found.read(0, found.size_bytes)
        self.memory.put(ref.hash, data)
        return data[offset : offset + size]

    async def whole(self, ref: ObjectRef) -> bytes:
        """All bytes of a small object of unknown size; its ``limit_bytes`` bounds them. Raises as ``read`` does."""
        return await self.read(ref, 0, ref.limit_bytes if ref.size is None else ref.size)

    async def file(self, ref: ObjectRef) -> ObjectFile:
        """The object as an open cache file of which every byte was checked just now; the caller closes it.

        Raises:
            CacheFullError: the cache does not take it.
            AbsentError, CorruptError, RefusedError, UnreachableError: no server gives it.
        """
        there = await self._preloaded_file(ref.hash)
        if there is not None:
            return there
        error: Exception | None = None
        for _ in range(3):
            if ref.hash not in self.cache:
                self.cache.counts.misses += 1
                await self._fetching.run(ref.hash, lambda: self._fetch(ref))
            try:
                opened = self.cache.open_private(ref.hash)
            except FileNotFoundError as failure:
                error = failure
                self.cache.is_gone(ref.hash)  # another process made room
                continue
            except (CorruptError, OSError) as failure:
                error = failure
                self.cache.discard(ref.hash, failure)
                continue
            try:
                await check_file(opened)
            except (CorruptError, OSError) as failure:
                error = failure
                opened.close()
                self.cache.discard(ref.hash, failure)
                continue
            return opened
        raise CacheFullError(f"the cache does not keep object {ref.hash}: {error}")

    async def _preloaded_file(self, name: Hash) -> ObjectFile | None:
        opened = self.preloaded.open_private(name)
        if opened is None:
            return None
        try:
            await check_file(opened)
        except (CorruptError, OSError) as error:
            opened.close()
            self.preloaded.discard(name, error)
            return None
        self.preloaded.hits += 1
        return opened

    async def fetch(self, ref: ObjectRef) -> None:
        """Bring the object into the cache; many who want it at once cause one transfer.

        Raises:
            CacheFullError: the cache does not take it.
            AbsentError, CorruptError, RefusedError, UnreachableError: no server gives it.
        """
        if not self.has(ref):
            await self._fetching.run(ref.hash, lambda: self._fetch(ref))

    @property
    def come_in_bundles(self) -> bool:
        """True if many small objects may cost little more than one."""
        return self._bundles is not None and self._bundles.are_offered

    async def fetch_bundle(self, refs: Sequence[ObjectRef]) -> list[ObjectRef]:
        """Bring as many of *refs* into the cache as one request can; gives those that have to be fetched by themselves.

        Those that somebody else in this process fetches at the moment are left to him.
        """
        wanted = {ref.hash: ref for ref in refs if not self.has(ref) and ref.hash not in self._fetching}
        small = [ref for ref in wanted.values() if is_small(ref)]
        bundles = self._bundles
        if bundles is None or not bundles.are_offered or len(small) < _LEAST_IN_BUNDLE:
            return list(wanted.values())
        together = [ref for ref in small if self.cache.claim(ref.hash)]  # the others come to another process

        async def take() -> dict[Hash, bytes | None]:
            arrived: dict[Hash, bytes] = {}
            try:
                given = await bundles.fetch(together)
                self.counts.objects += len(given.objects)
                self.counts.stored_bytes += given.stored_bytes
                for name, data in given.objects.items():
                    self._arrivals.put(name, data)  # which releases the claim
                    self.memory.put(name, data)
                    arrived[name] = data
            finally:
                for ref in together:
                    if ref.hash not in arrived:
                        self.cache.unclaim(ref.hash)
            return dict(arrived)

        if together:
            await self._fetching.run_many([ref.hash for ref in together], take)
        return [ref for ref in wanted.values() if not self.has(ref)]

    def has(self, ref: ObjectRef) -> bool:
        """True if the object has arrived: it is in the cache or on its way to it."""
        return (
            ref.hash in self.cache
            or self._arrivals.get(ref.hash) is not None
            or ref.hash in self.memory
            or self.preloaded.has(ref.hash)
        )

    async def _fetch(self, ref: ObjectRef) -> bytes | None:
        """Fetch the object; its bytes if it is small, else None and it is in the cache."""
        if not self.cache.claim(ref.hash) and await self._comes_from_elsewhere(ref.hash):
            return None
        is_handed_on = False
        try:
            if ref.size is not None and ref.size <= _SMALL_BYTES:
                sink = MemorySink()
                await self._receive(ref, ObjectReceiver(ref, sink))
                self._arrivals.put(ref.hash, sink.content)
                self.memory.put(ref.hash, sink.content)
                is_handed_on = True
                return sink.content
            with self.cache.writer(ref.hash, expected_bytes=ref.size or 0) as writer:
                receiver = ObjectReceiver(ref, writer)
                try:
                    await self._receive(ref, receiver)
                except SinkFailedError as error:
                    raise self.cache.full(error.cause) from error
                writer.commit()
        finally:
            if not is_handed_on:
                self.cache.unclaim(ref.hash)
        return None

    async def _comes_from_elsewhere(self, name: Hash) -> bool:
        """Wait while another process fetches the object, not for ever; True if it is in the cache then."""
        delay_s = _LOOK_S
        with anyio.move_on_after(_PATIENCE_S):
            while not self.cache.claim(name):
                await anyio.sleep(delay_s)
                delay_s = min(2 * delay_s, _LOOK_AT_LEAST_S)
            if name not in self.cache:
                return False  # it is ours now
            self.cache.unclaim(name)
            return True
        return name in self.cache

    @property
    def is_fetching(self) -> bool:
        """True while something is fetched."""
        return self._fetching.is_busy

    def is_arriving(self, name: Hash) -> bool:
        """True if it was verified and is on its way into the cache."""
        return self._arrivals.get(name) is not None

    def settle(self) -> None:
        """Wait until the cache has everything that arrived."""
        self._arrivals.settle()

    def count_arrived(self) -> None:
        """Bring the numbers up to date."""
        self._arrivals.reap()
        self.counts.not_kept = self._arrivals.lost

    async def _receive(self, ref: ObjectRef, receiver: ObjectReceiver) -> None:
        reader = self._reader
        if ref.external is not None:
            if self._external is None:
                raise AbsentError(f"object {ref.hash} is external; say with --external-url where {ref.external} is")
            reader = self._external
        began = anyio.current_time()
        try:
            await reader.read(ref.request(), receiver)
        except (AbsentError, CorruptError, RefusedError, UnreachableError) as error:
            _log.error("object_not_served", object=str(ref.hash), path=ref.request().path, reason=str(error))
            self.counts.failed += 1
            raise
        self.latencies.add(anyio.current_time() - began)
        self.counts.objects += 1
        self.counts.stored_bytes += receiver.stored_bytes

    async def _read_past_cache(self, ref: ObjectRef, offset: int, size: int) -> bytes:
        """As ``read``, while the cache takes nothing: each window costs a transfer of the whole object."""
        end = offset + size if ref.size is None else min(offset + size, ref.size)
        parts: list[bytes] = []
        position = offset
        while position < end:
            start = position - position % _WINDOW_BYTES
            window = await self._passing.run((ref.hash, start), lambda start=start: self._window(ref, start))  # type: ignore[misc]  # the default binds it
            parts.append(window[position - start : end - start])
            if len(window) < _WINDOW_BYTES:
                break
            position = start + _WINDOW_BYTES
        return b"".join(parts)

    async def _window(self, ref: ObjectRef, start: int) -> bytes:
        key = (ref.hash, start)
        if key not in self._windows:
            sink = WindowSink(start, _WINDOW_BYTES)
            await self._receive(ref, ObjectReceiver(ref, sink))
            self.counts.past_cache += 1
            self._windows[key] = sink.content
            if len(self._windows) > _WINDOWS:
                self._windows.popitem(last=False)
        self._windows.move_to_end(key)
        return self._windows[key]


async def check_file(opened: ObjectFile) -> None:
    """Check every block of *opened* in a worker thread. Raises CorruptError, OSError."""

    def check() -> None:
        for _ in opened.pieces():
            pass

    await anyio.to_thread.run_sync(check)


def _check_size(ref: ObjectRef, size_bytes: int) -> None:
    if ref.size is not None and size_bytes != ref.size:
        raise CorruptError(str(ref.hash), f"it has {size_bytes} bytes; the catalog says {ref.size}")
