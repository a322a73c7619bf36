"""What one layer may cost. PURE: the values come from the settings."""

from dataclasses import dataclass

NAME_MAX_BYTES = 255
"""Longest component of a path. Source: Linux, limits.h, NAME_MAX."""

PATH_MAX_BYTES = 4095
"""Longest path and longest target of a symlink, without the final NUL. Source: Linux, limits.h, PATH_MAX."""

_RATIO_FREE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one layer. The defaults let every honest image through."""

    max_layer_bytes: int = 1 << 38  # unpacked; holes of sparse files count
    max_entries: int = 10_000_000
    max_header_bytes: int = 1 << 20  # one extended header; Go's reader, and so every engine, has the same limit
    max_ratio: int = 10_000  # unpacked to packed; gzip cannot exceed 1,032, honest zstd stays far below

    def ratio_exceeded(self, packed_bytes: int, unpacked_bytes: int) -> bool:
        """True if so much came out of so little that it must be a bomb; small layers are not judged."""
        return unpacked_bytes > max(_RATIO_FREE_BYTES, packed_bytes * self.max_ratio)
