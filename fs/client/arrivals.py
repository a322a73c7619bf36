"""Small objects between the network and the disk: readers get them at once, a thread puts them into the cache.

Making a file costs more than fetching a small object over a quick network, and nobody has to wait for it: the bytes
were verified and are in memory. What waits is bounded; beyond that the reader waits for the disk as well. A process
that is killed loses what was not written, which is fetched again. The last ones that were written stay in memory until
others follow: they are counted several at once, and who fetched them mostly reads them now.

The thread does not wait for a quieter moment. That was tried, and a start that reads thousands of small files took
twice as long: an object is claimed until it is on disk, and the kernel looks through all claims at each new one (0.1 ms
where there are 3,000).
"""

import os
import threading
from collections import deque
from dataclasses import dataclass
from queue import SimpleQueue

from fs.client.cache import Finished, ObjectCache
from fs.client.object_file import Checksums
from fs.format.hashes import Hash

_WAITING_BYTES = 16 << 20
_UNCOUNTED = 256  # written objects
_UNCOUNTED_BYTES = 4 << 20  # or what is held of them and others
_END_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class _Arrival:
    name: Hash
    data: bytes


@dataclass(frozen=True, slots=True)
class _Written:
    name: str
    file_bytes: int
    replaced: int = 0
    error: OSError | None = None


class Arrivals:
    """Objects that are not on disk yet. All methods belong to one event loop; the thread touches only its queues.

    Args:
        cache: started; gets them.
    """

    def __init__(self, cache: ObjectCache) -> None:
        self._cache = cache
        self._waiting: dict[str, bytes] = {}
        self._waiting_bytes = 0
        self._queue = SimpleQueue[_Arrival | None]()
        self._done = deque[_Written]()  # appended to by the thread: both ends are atomic
        self._thread: threading.Thread | None = None
        self.lost = 0  # objects that the disk did not take

    def get(self, name: Hash) -> bytes | None:
        """The object if it is not on disk yet."""
        return self._waiting.get(str(name)) if self._waiting else None

    def put(self, name: Hash, data: bytes) -> None:
        """A verified object came in. Its claim is released when it is on disk."""
        if len(self._done) >= _UNCOUNTED or self._waiting_bytes > _UNCOUNTED_BYTES:
            self.reap()
        text = str(name)
        if text in self._waiting:
            return
        self._cache.make_room(self._waiting_bytes + len(data))
        if self._waiting_bytes + len(data) > _WAITING_BYTES:
            self._finish([_write(self._cache, _Arrival(name, data))])
            return
        self._waiting[text] = data
        self._waiting_bytes += len(data)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="arrivals", daemon=True)
            self._thread.start()
        self._queue.put(_Arrival(name, data))

    def reap(self) -> None:
        """Count what the thread has written."""
        finished: list[_Written] = []
        while self._done:
            written = self._done.popleft()
            self._waiting_bytes -= len(self._waiting.pop(written.name, b""))
            finished.append(written)
        self._finish(finished)

    def _finish(self, finished: list[_Written]) -> None:
        placed = [Finished(one.name, one.file_bytes, one.replaced) for one in finished if one.error is None]
        if placed:
            self._cache.count(placed)
        for one in finished:
            if one.error is not None:
                self.lost += 1
                self._cache.full(one.error)

    def _run(self) -> None:
        while (arrival := self._queue.get()) is not None:
            self._done.append(_write(self._cache, arrival))

    def settle(self) -> None:
        """Wait until everything is on disk."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(_END_TIMEOUT_S)
            self._thread = None
        self.reap()


def _write(cache: ObjectCache, arrival: _Arrival) -> _Written:
    """Put one object in its place; runs in the thread."""
    name = str(arrival.name)
    checksums = Checksums()
    checksums.update(arrival.data)
    content = arrival.data + checksums.trailer(name)
    temporary = cache.temporary_path()
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            replaced = cache.place(temporary, name)
        except OSError:
            os.unlink(temporary)  # noqa: PTH108  # one system call
            raise
        finally:
            os.close(descriptor)
    except OSError as error:
        return _Written(name, 0, error=error)
    finally:
        cache.unclaim(arrival.name)
    return _Written(name, len(content), replaced)
