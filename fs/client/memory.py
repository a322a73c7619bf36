"""Objects in memory, before the disk: those that were read last, within a bound in bytes."""

from collections import OrderedDict

from fs.format.hashes import Hash

_LARGEST_SHARE = 8  # an object may take the eighth part of the whole at most


class MemoryTier:
    """Whole objects, least recently used ones go first. What comes in was verified. Belongs to one event loop."""

    def __init__(self, limit_bytes: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.hits = 0
        self._objects: OrderedDict[Hash, bytes] = OrderedDict()

    def takes(self, size_bytes: int | None) -> bool:
        """True if an object of that size may come in."""
        return size_bytes is not None and size_bytes * _LARGEST_SHARE <= self.limit_bytes

    def get(self, name: Hash) -> bytes | None:
        """The object called *name*, or None."""
        data = self._objects.get(name)
        if data is not None:
            self._objects.move_to_end(name)
            self.hits += 1
        return data

    def put(self, name: Hash, data: bytes) -> None:
        """Keep the whole object called *name*, if it is not too large."""
        if not self.takes(len(data)) or name in self._objects:
            return
        self._objects[name] = data
        self.used_bytes += len(data)
        while self.used_bytes > self.limit_bytes:
            self.used_bytes -= len(self._objects.popitem(last=False)[1])

    def __contains__(self, name: Hash) -> bool:
        return name in self._objects
