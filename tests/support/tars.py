"""Tar blocks made by hand, so that anything can be said; and a content store that keeps files in memory."""

import hashlib
from collections.abc import Callable, Sequence

from converter.changeset import ChangeSet, ChangeSetBuilder
from converter.layer_tar import Member, TarReader
from converter.limits import Limits
from fs.format.hashes import Hash
from fs.format.tree import Content

BLOCK = 512
END = bytes(2 * BLOCK)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def binary(value: int, width: int) -> bytes:
    raw = (value % (1 << (8 * width))).to_bytes(width, "big")
    return bytes([raw[0] | 0x80]) + raw[1:]


def header(
    name: bytes,
    kind: bytes = b"0",
    *,
    size: int | bytes = 0,
    mode: int = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 0,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    device: tuple[int, int] = (0, 0),
    prefix: bytes = b"",
    tail: bytes = b"",
    checksum: int | None = None,
) -> bytes:
    def number(value: int | bytes, width: int) -> bytes:
        return octal(value, width) if isinstance(value, int) else value

    block = bytearray(
        name.ljust(100, b"\0")
        + octal(mode, 8)
        + number(uid, 8)
        + number(gid, 8)
        + number(size, 12)
        + number(mtime, 12)
        + b" " * 8
        + kind
        + link.ljust(100, b"\0")
        + magic
        + bytes(64)
        + octal(device[0], 8)
        + octal(device[1], 8)
        + prefix
    )
    block += bytes(BLOCK - len(block))
    if tail:
        block[345 : 345 + len(tail)] = tail
    block[148:156] = b"%06o\0 " % (sum(block) if checksum is None else checksum)
    return bytes(block)


def entry(name: bytes, data: bytes = b"", kind: bytes = b"0", **fields: object) -> bytes:
    return header(name, kind, size=len(data), **fields) + padded(data)  # type: ignore[arg-type]


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    body = b""
    for key, value in records:
        text = b" " + key + b"=" + value + b"\n"
        length = len(text) + len(str(len(text)))
        length = len(text) + len(str(length))
        body += str(length).encode() + text
    return entry(b"PaxHeaders/x", body, kind)


def members(archive: bytes, limits: Limits | None = None, *, piece: int = 1 << 16) -> list[tuple[Member, bytes]]:
    """All members with their data."""
    pieces = iter([archive[at : at + piece] for at in range(0, len(archive), piece)])
    reader = TarReader(lambda: next(pieces, b""), limits or Limits())
    found = []
    while (member := reader.next()) is not None:
        data = b""
        while part := reader.read(1000):
            data += part
        found.append((member, data))
    reader.drain()
    return found


class MemoryStore:
    """A ContentStore; ``files`` maps the hash of a content to its bytes."""

    def __init__(self) -> None:
        self.files: dict[Hash, bytes] = {}

    def add_bytes(self, data: bytes) -> Content:
        name = Hash(hashlib.sha1(data).digest())
        self.files[name] = data
        return Content(len(data), name)

    def add_many(self, files: Sequence[bytes]) -> list[Content]:
        return [self.add_bytes(data) for data in files]

    def add_stream(self, read: Callable[[int], bytes], size: int) -> Content:
        data = b""
        while len(data) < size:
            data += read(size - len(data))
        return self.add_bytes(data)


def changes(archive: bytes) -> ChangeSet:
    """The change set of *archive*; contents are of the files' sizes and named by their SHA-1."""
    store = MemoryStore()
    builder = ChangeSetBuilder()
    for member, data in members(archive):
        change = builder.accept(member)
        if change is not None:
            is_file = (change.mode & 0o170000) == 0o100000
            builder.add(change._replace(content=store.add_bytes(data)) if is_file else change)
    return builder.finish(diff_id="sha256:" + "0" * 64, unpacked_bytes=len(archive))
