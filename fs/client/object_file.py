"""The form in which a cached object lies on disk: its plain bytes, then checksums of every block.

==================  =========================================================================
bytes               meaning
==================  =========================================================================
size                the object's uncompressed bytes
4 per block         CRC-32 of each block of 64 KiB (the last may be shorter), little-endian
24                  magic ``UNPKOBJ1``, size (u64), block size (u32), seal (u32)
==================  =========================================================================

The seal is the CRC-32 of the object's name, the checksums and the rest of the footer, so a file under a wrong name,
a cut or a lengthened one does not open. Every read checks the blocks that it touches: a byte that was flipped is
found whenever it happened, before or after the file was opened. The hash of the *stored* form, which proves where
the bytes come from, was checked when they arrived; these checksums only have to notice accidents, and the hardware
computes them faster than memory gives the bytes.
"""

import os
import struct
from collections.abc import Iterator

from isal import isal_zlib

from fs.errors import CorruptError

BLOCK_BYTES = 1 << 16
_MAGIC = b"UNPKOBJ1"
_FOOTER = struct.Struct("<8sQII")
_CRC_BYTES = 4


class Checksums:
    """Computes the trailer of an object file while its bytes pass by."""

    def __init__(self) -> None:
        self._table = bytearray()
        self._block = 0  # CRC of the block that is not yet full
        self._filled = 0
        self.size_bytes = 0

    def update(self, piece: bytes | memoryview) -> None:
        """The next bytes of the object."""
        view = memoryview(piece)
        self.size_bytes += len(view)
        while view:
            part = view[: BLOCK_BYTES - self._filled]
            self._block = isal_zlib.crc32(part, self._block)
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == BLOCK_BYTES:
                self._close_block()

    def _close_block(self) -> None:
        self._table += self._block.to_bytes(_CRC_BYTES, "little")
        self._block = self._filled = 0

    def trailer(self, name: str) -> bytes:
        """Checksums and footer of the object called *name*, after its last byte."""
        if self._filled:
            self._close_block()
        return bytes(self._table) + _footer(name, bytes(self._table), self.size_bytes, BLOCK_BYTES)


def _footer(name: str, table: bytes, size_bytes: int, block_bytes: int) -> bytes:
    seal = isal_zlib.crc32(name.encode() + table + _FOOTER.pack(_MAGIC, size_bytes, block_bytes, 0))
    return _FOOTER.pack(_MAGIC, size_bytes, block_bytes, seal)


class ObjectFile:
    """An open object file. Closing it is up to the owner; it stays readable after the file was removed."""

    __slots__ = ("_block_bytes", "_descriptor", "_table", "name", "path", "size_bytes")

    def __init__(self, descriptor: int, name: str, path: str = "") -> None:
        """Take over *descriptor*, the file at *path*, open for reading, and check its trailer.

        Raises:
            CorruptError: the trailer is not that of object *name*; the descriptor is closed.
        """
        self._descriptor = descriptor
        self.name = name
        self.path = path
        try:
            self._load()
        except BaseException:
            os.close(descriptor)
            raise

    def _load(self) -> None:
        length = os.fstat(self._descriptor).st_size
        footer = os.pread(self._descriptor, _FOOTER.size, max(0, length - _FOOTER.size))
        if len(footer) != _FOOTER.size:
            raise CorruptError(self.name, "its cache file is cut")
        _, self.size_bytes, self._block_bytes, _ = _FOOTER.unpack(footer)
        blocks = -(-self.size_bytes // self._block_bytes) if self._block_bytes else 0
        if length != self.size_bytes + blocks * _CRC_BYTES + _FOOTER.size:
            raise CorruptError(self.name, "its cache file has a wrong length")
        self._table = os.pread(self._descriptor, blocks * _CRC_BYTES, self.size_bytes)
        if footer != _footer(self.name, self._table, self.size_bytes, self._block_bytes):
            raise CorruptError(self.name, "its cache file is not sealed as this object")

    def read(self, offset: int, size: int) -> bytes:
        """At most *size* bytes from *offset* on; fewer at the end only.

        Raises:
            CorruptError: a block does not match its checksum.
            OSError: the disk fails.
        """
        end = min(offset + size, self.size_bytes)
        if offset >= end:
            return b""
        first, last = offset // self._block_bytes, (end - 1) // self._block_bytes
        start = first * self._block_bytes
        wanted = min((last + 1) * self._block_bytes, self.size_bytes) - start
        data = os.pread(self._descriptor, wanted, start)
        if len(data) != wanted:
            raise CorruptError(self.name, "its cache file is cut")
        view = memoryview(data)
        for number in range(first, last + 1):
            block = view[(number - first) * self._block_bytes : (number - first + 1) * self._block_bytes]
            stated = self._table[number * _CRC_BYTES : (number + 1) * _CRC_BYTES]
            if isal_zlib.crc32(block) != int.from_bytes(stated, "little"):
                raise CorruptError(self.name, f"block {number} of its cache file does not match its checksum")
        return data if start == offset and wanted == end - offset else data[offset - start : end - start]

    def pieces(self) -> Iterator[bytes]:
        """The whole object in checked pieces. Raises as ``read`` does."""
        for offset in range(0, self.size_bytes, 16 * BLOCK_BYTES):
            yield self.read(offset, 16 * BLOCK_BYTES)

    def fileno(self) -> int:
        """The open descriptor."""
        return self._descriptor

    def state(self) -> tuple[int, int, int]:
        """Changes whenever somebody writes to the file: modification and change time in ns, length."""
        status = os.fstat(self._descriptor)
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
