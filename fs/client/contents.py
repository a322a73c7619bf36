"""The bytes of a file, from the one object or the chunks that hold them."""

from bisect import bisect_right
from operator import attrgetter

from fs.client.objects import Objects
from fs.client.repository import Placed
from fs.errors import CatalogError

_offset = attrgetter("offset")


async def read_content(objects: Objects, placed: Placed, offset: int, size: int) -> bytes:
    """At most *size* bytes from *offset* on; fewer at the end only.

    Raises:
        CatalogError: the objects are shorter than the catalog says.
        AbsentError, CorruptError, RefusedError, UnreachableError: an object cannot be had.
    """
    content = placed.content
    end = min(offset + size, content.size)
    if offset >= end:
        return b""
    if content.hash is not None:
        return complete(await objects.read(placed.whole(), offset, end - offset), end - offset)
    parts: list[bytes] = []
    number = bisect_right(content.chunks, offset, key=_offset) - 1
    while offset < end:
        chunk = content.chunks[number]
        wanted = min(end, chunk.offset + chunk.size) - offset
        parts.append(complete(await objects.read(placed.chunk(number), offset - chunk.offset, wanted), wanted))
        offset += wanted
        number += 1
    return parts[0] if len(parts) == 1 else b"".join(parts)


def content_at_hand(objects: Objects, placed: Placed, offset: int, size: int) -> bytes | None:
    """The *size* bytes from *offset* on, all of which exist, if one object that is at hand has them all.

    Raises:
        CatalogError, CorruptError: the object is not as long as the catalog says.
    """
    content = placed.content
    if content.hash is not None:
        data = objects.read_now(placed.whole(), offset, size)
    else:
        number = bisect_right(content.chunks, offset, key=_offset) - 1
        chunk = content.chunks[number]
        if offset + size > chunk.offset + chunk.size:
            return None
        data = objects.read_now(placed.chunk(number), offset - chunk.offset, size)
    return None if data is None else complete(data, size)


def complete(data: bytes, wanted: int) -> bytes:
    """*data*, if it is as long as *wanted*. Raises CatalogError."""
    if len(data) != wanted:
        raise CatalogError(f"{len(data)} bytes came where the catalog says {wanted}")
    return data
