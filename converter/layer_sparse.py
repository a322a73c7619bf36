"""Sparse files in tar archives: four ways to say where the data lies. PURE.

Source: GNU tar manual, "Storing Sparse Files" (old GNU format; pax formats 0.0, 0.1 and 1.0).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from converter.errors import LayerError
from converter.layer_headers import BLOCK_BYTES, parse_decimal, parse_number

_PAIR_BYTES = 24
_HEADER_PAIRS, _HEADER_MORE, _HEADER_SIZE = slice(386, 482), 482, slice(483, 495)
_BLOCK_PAIRS, _BLOCK_MORE = slice(0, 504), 504
_PREFIX = b"GNU.sparse."


@dataclass(frozen=True, slots=True)
class SparseMap:
    """Which parts of a file have data; the rest reads as zeros. Parts ascend and do not overlap."""

    size: int  # of the file, holes included
    parts: tuple[tuple[int, int], ...]  # offset, bytes

    @property
    def stored_bytes(self) -> int:
        """Bytes of data, all parts together."""
        return sum(length for _, length in self.parts)


def checked_map(size: int, numbers: Sequence[int]) -> SparseMap:
    """The map of a file of *size* bytes from alternating offsets and lengths.

    Raises:
        LayerError: the parts overlap, descend, or lie outside of the file.
    """
    if len(numbers) % 2:
        raise LayerError("its sparse map ends within a pair")
    parts = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    end = 0
    for offset, length in parts:
        if offset < end or length < 0 or offset + length > size:
            raise LayerError("its sparse map is not in order or leaves the file")
        end = offset + length
    return SparseMap(size, tuple(part for part in parts if part[1]))


def old_gnu_map(block: bytes, next_block: Callable[[], bytes]) -> SparseMap:
    """The map of a member of type ``S`` from its header *block* and the extension blocks behind it.

    Raises:
        LayerError: the map is malformed.
    """
    pairs, more = bytearray(block[_HEADER_PAIRS]), block[_HEADER_MORE]
    while more:
        extension = next_block()
        if len(extension) < BLOCK_BYTES:
            raise LayerError("its sparse map is cut off")
        pairs += extension[_BLOCK_PAIRS]
        more = extension[_BLOCK_MORE]
    fields = [bytes(pairs[at : at + 12]) for at in range(0, len(pairs), 12)]
    while fields and not any(fields[-2]) and not any(fields[-1]):
        del fields[-2:]  # unused pairs at the end are all NUL
    try:
        return checked_map(parse_number(block[_HEADER_SIZE]), [parse_number(field) for field in fields])
    except ValueError as error:
        raise LayerError(f"its sparse map has a malformed number ({error})") from error


def pax_map(records: Iterable[tuple[bytes, bytes]], line: Callable[[], bytes]) -> SparseMap | None:
    """The map that pax *records* describe; None if the member is not sparse.

    Args:
        records: the member's records in their order, which matters in format 0.0.
        line: gives the next line of the member's data; used by format 1.0, which keeps its map there.

    Raises:
        LayerError: the map is malformed.
    """
    sparse = [(key.removeprefix(_PREFIX), value) for key, value in records if key.startswith(_PREFIX)]
    if not sparse:
        return None
    named = dict(sparse)
    size = parse_decimal(named.get(b"realsize", named.get(b"size", b"")), "size without holes")
    if named.get(b"major") == b"1" and named.get(b"minor") == b"0":
        count = parse_decimal(line(), "number of sparse parts")
        return checked_map(size, [parse_decimal(line(), "sparse map") for _ in range(2 * count)])
    if b"map" in named:
        texts = named[b"map"].split(b",") if named[b"map"] else []
    else:
        texts = [value for key, value in sparse if key in (b"offset", b"numbytes")]
    return checked_map(size, [parse_decimal(text, "sparse map") for text in texts])
