"""From a layer's blob to its tar: gzip, zstd or nothing, in pieces of bounded size. PURE.

What the bytes begin with decides, and must be what the media type says: a blob that is another thing than its manifest
states would be read differently by different engines.
"""

from collections.abc import Iterable, Iterator
from typing import IO, cast

import zstandard
from isal import igzip_lib

from converter.errors import CorruptLayerError, ImageRefusedError

PIECE_BYTES = 1 << 20
WINDOW_LIMIT_BYTES = 1 << 27
"""Largest zstd window that is accepted: what ``zstd -d`` accepts without being asked for more."""

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
_MAGIC_BYTES = 4
_XZ_MAGIC, _BZIP2_MAGIC = b"\xfd7zX", b"BZh"
_IsalError = cast("type[Exception]", igzip_lib.error)  # the stubs call it an instance

PLAIN, GZIP, ZSTD = "uncompressed", "gzip", "zstd"


def detect(head: bytes) -> str:
    """What a blob that begins with *head* is packed with.

    Raises:
        ImageRefusedError: with something that no layer may be packed with.
    """
    if head.startswith(_GZIP_MAGIC):
        return GZIP
    if head.startswith(_ZSTD_MAGIC) or int.from_bytes(head[:_MAGIC_BYTES], "little") in _ZSTD_SKIPPABLE:
        return ZSTD
    if head.startswith((_XZ_MAGIC, _BZIP2_MAGIC)):
        raise ImageRefusedError("the layer is packed with xz or bzip2; layers may be gzip, zstd or not packed at all")
    return PLAIN


def unpacked(parts: Iterable[bytes], expected: str | None) -> Iterator[bytes]:
    """The tar in the blob that *parts* make up, in pieces of 1 to PIECE_BYTES bytes.

    Args:
        parts: the blob.
        expected: ``PLAIN``, ``GZIP`` or ``ZSTD`` as the media type says; None if it says nothing.

    Raises:
        CorruptLayerError: the stream is broken, or packed in another way than *expected*.
    """
    source = _Parts(parts)
    packing = detect(source.peek(_MAGIC_BYTES))
    if expected not in (None, packing):
        raise CorruptLayerError(f"the layer's media type says {expected}, but its bytes are {packing}")
    if packing == GZIP:
        yield from _gunzip(source)
    elif packing == ZSTD:
        yield from _unzstd(source)
    else:
        yield from _slices(source)


class _Parts:
    """The parts of a blob as a file that only reads; *parts* may be of any size, empty ones too."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)
        self._ahead = b""

    def peek(self, size: int) -> bytes:
        """The first bytes that are still to come; fewer than *size* if there are no more."""
        while len(self._ahead) < size and (part := next(self._parts, None)) is not None:
            self._ahead += part
        return self._ahead[:size]

    def read(self, size: int = -1) -> bytes:
        """Some bytes, at most *size* if that is given; none at the end."""
        while not self._ahead:
            part = next(self._parts, None)
            if part is None:
                return b""
            self._ahead = part
        if 0 <= size < len(self._ahead):
            head, self._ahead = self._ahead[:size], self._ahead[size:]
        else:
            head, self._ahead = self._ahead, b""
        return head


def _slices(source: _Parts) -> Iterator[bytes]:
    while part := source.read(PIECE_BYTES):
        yield part


def _gunzip(source: _Parts) -> Iterator[bytes]:
    """All members of a gzip file; zeros behind the last one are padding. CRC and length of each are checked."""
    pending = source.read()
    while True:
        decoder = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        while not decoder.eof:
            try:
                piece = decoder.decompress(pending, PIECE_BYTES)
            except _IsalError as error:
                raise CorruptLayerError(f"the layer's gzip stream is broken ({error})") from error
            if piece:
                yield piece
            pending = b""
            if decoder.needs_input and not decoder.eof:
                pending = source.read()
                if not pending:
                    raise CorruptLayerError("the layer's gzip stream ends before its end")
        pending = decoder.unused_data
        while not pending.strip(b"\0"):
            pending = source.read()
            if not pending:
                return
        pending = _rejoined(pending)


def _rejoined(pending: bytes) -> bytes:
    """The next gzip member without the padding before it."""
    member = pending.lstrip(b"\0")
    if not _GZIP_MAGIC.startswith(member[:2]):
        raise CorruptLayerError("the layer's gzip stream is followed by something else")
    return member


def _unzstd(source: _Parts) -> Iterator[bytes]:
    """All frames of a zstd file, skippable ones left out. A frame that is cut is noticed by the tar in it."""
    decoder = zstandard.ZstdDecompressor(max_window_size=WINDOW_LIMIT_BYTES)
    try:
        with decoder.stream_reader(cast("IO[bytes]", source), read_across_frames=True) as reader:
            while piece := reader.read(PIECE_BYTES):
                yield piece
    except zstandard.ZstdError as error:
        raise CorruptLayerError(f"the layer's zstd stream is broken ({error})") from error
