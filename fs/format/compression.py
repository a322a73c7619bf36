"""Compression of objects: zlib streams (RFC 1950) or none.

Any valid zlib stream is accepted for content, chunks, catalogs and histories, so a fast encoder (ISA-L) makes them.
Certificates and metainfo must be classic zlib at level 6, because replicas compress them anew.
Source: CernVM-FS 2.12, compression/compression.h; swissknife_pull.cc for the last fact.
"""

import zlib
from collections.abc import Iterator
from enum import Enum
from importlib.util import find_spec
from typing import cast

from isal import isal_zlib

from fs.errors import CorruptError, RefusedError

FAST_LEVEL = 1

_IsalError = cast("type[Exception]", isal_zlib.error)  # the stubs call it an instance


class Compression(Enum):
    """How an object is stored; the value is the number in bits 11 to 13 of an entry's flags."""

    ZLIB = 0
    NONE = 1


class Encoder(Enum):
    """What makes zlib streams; every reader reads all of them."""

    ISAL = "isal"  # fast; the default
    ZLIB = "zlib"
    LIBDEFLATE = "libdeflate"  # small and rather fast; an optional package

    @property
    def levels(self) -> range:
        """The levels that it has; higher ones take longer and give less."""
        return {Encoder.ISAL: range(4), Encoder.ZLIB: range(1, 10), Encoder.LIBDEFLATE: range(1, 13)}[self]

    @property
    def usual_level(self) -> int:
        """The level that is taken if none is asked for."""
        return FAST_LEVEL if self is Encoder.ISAL else 6

    def check(self, level: int) -> None:
        """Refuse a level that it does not have, and an encoder that is not installed. Raises RefusedError."""
        if level not in self.levels:
            raise RefusedError(f"{self.value} has levels {self.levels[0]} to {self.levels[-1]}, not {level}")
        if self is Encoder.LIBDEFLATE and find_spec("deflate") is None:
            raise RefusedError("libdeflate needs a further package: pip install 'unpackd[libdeflate]'")


def deflate(data: bytes | bytearray | memoryview, *, level: int = FAST_LEVEL, encoder: Encoder = Encoder.ISAL) -> bytes:
    """Compress *data* to a zlib stream."""
    match encoder:
        case Encoder.ISAL:
            return isal_zlib.compress(data, level=level)
        case Encoder.ZLIB:
            return zlib.compress(data, level)
        case Encoder.LIBDEFLATE:
            from deflate import zlib_compress  # noqa: PLC0415  # an optional package

            return bytes(zlib_compress(data, level))


def deflate_classic(data: bytes) -> bytes:
    """Compress *data* exactly as the reference implementation does (zlib, level 6)."""
    return zlib.compress(data, 6)


def inflate(stored: bytes | bytearray | memoryview, *, limit_bytes: int, name: str = "") -> bytes:
    """Decompress a whole zlib stream.

    Args:
        stored: the stream, with nothing behind it.
        limit_bytes: the largest result that is accepted.
        name: what the error calls the object.

    Raises:
        CorruptError: it is not one whole stream.
        RefusedError: the result is larger than *limit_bytes*.
    """
    decoder = isal_zlib.decompressobj()
    try:
        data = decoder.decompress(stored, limit_bytes + 1)
    except _IsalError as error:
        raise CorruptError(name, f"not a zlib stream ({error})") from error
    if len(data) > limit_bytes:
        raise RefusedError(f"object {name} decompresses to more than {limit_bytes} bytes")
    if not decoder.eof or decoder.unused_data:
        raise CorruptError(name, "its zlib stream does not end where the object ends")
    return data


class Inflater:
    """Decompresses a zlib stream piece by piece, in bounded memory.

    Args:
        name: what the errors call the object.
        piece_bytes: the largest piece that is given back at once.
    """

    def __init__(self, name: str = "", *, piece_bytes: int = 1 << 20) -> None:
        self._name = name
        self._piece_bytes = piece_bytes
        self._decoder = isal_zlib.decompressobj()

    def feed(self, stored: bytes | bytearray | memoryview) -> Iterator[bytes]:
        """What the stream gives after *stored*, its next bytes. To be read to the end before the next call.

        Raises:
            CorruptError: it is not a zlib stream, or something follows its end.
        """
        is_full = False  # a full piece may leave more inside the decoder than the input that is left says
        while stored or is_full:
            if self._decoder.eof:
                if stored:
                    raise CorruptError(self._name, "something follows the end of its zlib stream")
                return
            try:
                piece = self._decoder.decompress(stored, self._piece_bytes)
            except _IsalError as error:
                raise CorruptError(self._name, f"not a zlib stream ({error})") from error
            if piece:
                yield piece
            is_full = len(piece) == self._piece_bytes
            stored = self._decoder.unconsumed_tail or self._decoder.unused_data

    def finish(self) -> None:
        """Check that the stream is whole. Raises CorruptError."""
        if not self._decoder.eof:
            raise CorruptError(self._name, "its zlib stream is cut")
