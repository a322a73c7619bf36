"""Content-defined chunking: where a large file is cut so that equal parts of different files become equal chunks.

A rolling value x is formed over the file: ``x = (x << 1 ^ byte) mod 2^32``. So a byte acts for 32 steps, and x at
position i depends on the bytes i-31 to i only: all values can be computed at once, shifting and combining, without a
loop over bytes. The file is cut before byte i where x is close to 0x7FFFFFFF.
Source: CernVM-FS 2.12, ingestion/chunk_detector.cc and .h.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fs.errors import RefusedError

if TYPE_CHECKING:
    import numpy as np

    _Octets = np.ndarray[tuple[int], np.dtype[np.uint8]]

_WINDOW = 32
_CENTRE = 0x7FFFFFFF
_ODD_CUT = 0xFFFFFFFF  # |-2^31| overflows in the reference and counts as small
_STEP = 1 << 16  # positions examined at once; the arrays stay in the processor's cache


@dataclass(frozen=True, slots=True)
class ChunkSizes:
    """Bounds of a chunk's size in bytes; the defaults are the reference server's."""

    least: int = 4 << 20
    average: int = 8 << 20
    most: int = 16 << 20

    def __post_init__(self) -> None:
        if not _WINDOW <= self.least <= self.average <= self.most:
            raise RefusedError(f"chunk sizes must ascend and be at least {_WINDOW} bytes: {self}")

    @property
    def threshold(self) -> int:
        """How close x must come for a cut."""
        return 0xFFFFFFFF // self.average


DEFAULT_SIZES = ChunkSizes()


def next_cut(rest: bytes | bytearray | memoryview, sizes: ChunkSizes) -> int:
    """Length of the next chunk.

    Args:
        rest: the bytes from the last cut on: at least ``sizes.most`` of them, or all that are left of the file.
        sizes: the bounds.

    Returns:
        How many bytes of *rest* are the next chunk; all of them if there is no cut before their end.
    """
    import numpy as np  # noqa: PLC0415  # 20 MiB and a tenth of a second for those that cut nothing

    end = min(len(rest), sizes.most)
    if end <= sizes.least:
        return end
    octets = np.frombuffer(rest, dtype=np.uint8, count=end)
    radius = max(sizes.threshold - 1, 0)
    for start in range(sizes.least, end, _STEP):
        stop = min(start + _STEP, end)
        position = _first_cut(octets[start - (_WINDOW - 1) : stop], radius)
        if position is not None:
            return start + position
    return end


def _first_cut(octets: "_Octets", radius: int) -> int | None:
    """The first position behind the first 31 bytes before which there is a cut.

    x is put together of four parts, each of eight bytes and 15 bits. Its lower half needs two of them and says of
    nearly all positions that no cut is there; the others are looked at one by one.
    """
    import numpy as np  # noqa: PLC0415  # see next_cut

    parts = octets.astype(np.uint16)
    for shift in (1, 2, 4):
        # parts[i] covers `shift` bytes up to i; together with the `shift` bytes before them it covers twice as many
        parts = parts[shift:] ^ (parts[:-shift] * np.uint16(1 << shift))  # quicker than to shift
    lowest = _CENTRE - radius
    width = min(2 * radius, 0xFFFF)
    lower = parts[24:] ^ (parts[16:-8] * np.uint16(1 << 8))
    lower -= np.uint16(lowest & 0xFFFF)
    places = np.flatnonzero(lower <= np.uint16(width))  # among them those of _ODD_CUT, whose lower half is the centre's
    values = parts[places].astype(np.uint32) << np.uint32(24)
    for behind in (16, 8, 0):
        values ^= parts[places + (24 - behind)].astype(np.uint32) << np.uint32(behind)
    is_cut = ((values - np.uint32(lowest)) <= np.uint32(2 * radius)) | (values == np.uint32(_ODD_CUT))
    cuts = places[is_cut]
    return int(cuts[0]) if len(cuts) else None
