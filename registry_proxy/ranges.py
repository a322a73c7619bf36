"""PURE: the ``Range`` header. Source: RFC 9110, section 14."""

import re
from dataclasses import dataclass

_BYTES = re.compile(r"\s*bytes\s*=\s*(.*)", re.ASCII | re.IGNORECASE)
_SPEC = re.compile(r"\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", re.ASCII)


class UnsatisfiableRangeError(Exception):
    """A range that lies outside of the blob."""


@dataclass(frozen=True, slots=True)
class AskedRange:
    """First and last byte as asked for; one of them may be missing, not both."""

    first: int | None
    last: int | None

    @classmethod
    def parse(cls, header: str | None) -> "AskedRange | None":
        """Read a ``Range`` header; None for none, other units, several ranges and nonsense: then all is given."""
        match = _BYTES.fullmatch(header) if header is not None else None
        spec = _SPEC.fullmatch(match[1]) if match is not None else None
        if spec is None or not (spec[1] or spec[2]):
            return None
        return cls(int(spec[1]) if spec[1] else None, int(spec[2]) if spec[2] else None)

    def within(self, size_bytes: int) -> range:
        """The bytes that are meant of a blob of *size_bytes*.

        Raises:
            UnsatisfiableRangeError: none of them exists, or the last comes before the first.
        """
        if self.first is None:
            start, stop = max(0, size_bytes - (self.last or 0)), size_bytes
        else:
            start = self.first
            stop = size_bytes if self.last is None else min(size_bytes, self.last + 1)
        if start >= stop:
            raise UnsatisfiableRangeError(f"bytes */{size_bytes}")
        return range(start, stop)
