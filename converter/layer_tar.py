"""Members of a layer's tar, one after the other, out of a stream of pieces. PURE.

Nothing is ever written to a path: a member is its attributes and a bounded reader of its bytes. Everything that
Python's ``tarfile`` takes for the end of the archive and passes over in silence (a wrong checksum, a cut member) is an
error here. Accepted, because tools in use write it: no end-of-archive blocks, no padding behind the last member.

Extended headers: the last one before a member counts, GNU long names go before pax names, an empty pax value takes the
record back, global headers change nothing. That is what Go's ``archive/tar`` does and so every container engine.
"""

import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from converter.errors import LayerError, LimitError, shown
from converter.layer_headers import (
    BLOCK_BYTES,
    Header,
    device_number,
    parse_decimal,
    parse_header,
    parse_records,
    parse_time_ns,
    parse_xattrs,
)
from converter.layer_sparse import SparseMap, old_gnu_map, pax_map
from converter.limits import Limits

_TYPES = {
    b"0": stat.S_IFREG,
    b"\0": stat.S_IFREG,
    b"7": stat.S_IFREG,  # contiguous; POSIX: treat as regular where that means nothing
    b"S": stat.S_IFREG,  # sparse, old GNU
    b"1": 0,  # a hard link has no type of its own
    b"2": stat.S_IFLNK,
    b"3": stat.S_IFCHR,
    b"4": stat.S_IFBLK,
    b"5": stat.S_IFDIR,
    b"6": stat.S_IFIFO,
}
_WITH_DATA = frozenset((b"0", b"\0", b"7", b"S"))
_DEVICES = frozenset((b"3", b"4"))
_OLD_REGULAR, _OLD_SPARSE = b"\0", b"S"
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"
_EXTENDED = frozenset((_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK))
_ID_LIMIT = 0xFFFF_FFFF  # and that one means "leave it" to chown, so it is none either
_SECONDS_LIMIT = 1 << 48  # no file system and no catalog needs more
_PASS_BYTES = 1 << 20


class Member(NamedTuple):
    """One member. A tuple, not a dataclass: see ``Header``."""

    name: bytes  # as in the archive
    mode: int  # with the type bits; a hard link has none
    uid: int
    gid: int
    size: int  # of the file as it reads, holes included; 0 for everything but regular files
    mtime_ns: int
    link: bytes  # of symlinks and hard links
    rdev: int
    xattrs: dict[bytes, bytes]


class TarReader:
    """Reads members one after the other; what is not read of one member is passed over when the next is asked for."""

    def __init__(self, next_piece: Callable[[], bytes], limits: Limits) -> None:
        """Read the archive that *next_piece* gives in pieces of any size; an empty one is the end."""
        self._next_piece = next_piece
        self._limits = limits
        self._piece = b""
        self._at = 0
        self._before = 0  # bytes of the pieces before this one
        self._rest = 0  # stored bytes of the member that are still to come
        self._padding = 0
        self._map: SparseMap | None = None
        self._part = 0  # of the map
        self._offset = 0  # in the sparse file
        self._unpacked = 0
        self._entries = 0
        self._name: bytes | None = None  # of this member, as far as it is known
        self._previous: bytes | None = None

    @property
    def position(self) -> int:
        """Bytes of the archive that have been used so far."""
        return self._before + self._at

    def next(self) -> Member | None:
        """The next member; None at the end of the archive.

        Raises:
            LayerError: the archive is malformed or cut, or the member is of no type that a layer can have.
            LimitError: a limit is exceeded.
        """
        self._pass_over()
        self._previous, self._name = self._name, None
        try:
            return self._next()
        except LimitError:
            raise
        except LayerError as error:
            name = self._name if error.entry is None else error.entry
            raise LayerError(f"{error.reason}{self._where()}", name) from error

    def read(self, size: int) -> bytes:
        """The next *size* bytes of the member, fewer only at its end.

        Raises:
            LayerError: the archive ends within the member.
        """
        if self._map is not None:
            return self._read_sparse(self._map, size)
        return self._stored(min(size, self._rest))

    def drain(self) -> bool:
        """Read the stream to its end, because the layer's digest covers all of it; True if only zeros were left."""
        clean = not self._piece[self._at :].strip(b"\0")
        while self._advance():
            clean = clean and not self._piece.strip(b"\0")
        self._at = len(self._piece)
        return clean

    # --- headers

    def _next(self) -> Member | None:
        records: list[tuple[bytes, bytes]] = []
        long_name = long_link = None
        while (block := self._block()) is not None:
            header = parse_header(block)
            kind = header.kind
            if kind not in _EXTENDED:
                break
            body = self._extended(header)
            if kind == _PAX:
                records = parse_records(body)
            elif kind == _LONG_NAME:
                long_name = body.partition(b"\0")[0]
            elif kind == _LONG_LINK:
                long_link = body.partition(b"\0")[0]
        else:
            if records or long_name or long_link:
                raise LayerError("the archive ends behind an extended header")
            return None
        if records or long_name is not None or long_link is not None or kind == _OLD_SPARSE:
            return self._extended_member(header, block, records, long_name, long_link)
        return self._member(header)

    def _block(self) -> bytes | None:
        """The next header block; None at the end."""
        block = self._take(BLOCK_BYTES)
        if len(block) == BLOCK_BYTES and block[0]:
            return block
        if block.strip(b"\0"):
            if len(block) == BLOCK_BYTES:
                return block  # a header with an empty name
            raise LayerError("the archive ends within a header")
        if self._take(BLOCK_BYTES).strip(b"\0"):
            raise LayerError("the archive goes on behind a block of zeros")
        return None

    def _extended(self, header: Header) -> bytes:
        """The body of an extended header."""
        if header.size > self._limits.max_header_bytes:
            raise self._header_limit(header.size, header.name)
        body = self._take(header.size)
        if header.size < 0 or len(body) < header.size:
            raise LayerError("the archive ends within an extended header", header.name)
        self._take(-header.size % BLOCK_BYTES)
        return body

    def _header_limit(self, size: int, name: bytes) -> LimitError:
        return LimitError(
            f"an extended header of {size} bytes{self._where()}; the limit is {self._limits.max_header_bytes} "
            "(UNPACKD_CONVERTER_LIMITS_MAX_HEADER_BYTES)",
            name,
        )

    def _where(self) -> str:
        return "" if self._previous is None else f" (after '{shown(self._previous)}')"

    def _member(self, header: Header) -> Member:
        """The member that *header* describes; its data comes next."""
        name, mode, uid, gid, size, mtime, kind, link, _, _ = header
        self._name = name
        file_type = _TYPES.get(kind)
        if file_type is None:
            raise LayerError(f"members of type {kind.decode('latin-1')!r} cannot be part of a layer")
        if size < 0:
            raise LayerError(f"its size is negative ({size})")
        if kind == _OLD_REGULAR and name.endswith(b"/"):
            file_type, size = stat.S_IFDIR, 0  # before POSIX, directories were written so
        elif kind not in _WITH_DATA:
            size = 0
        if not (0 <= uid < _ID_LIMIT and 0 <= gid < _ID_LIMIT):
            raise LayerError(f"its owner {uid}:{gid} is out of range")
        if not -_SECONDS_LIMIT < mtime < _SECONDS_LIMIT:
            raise LayerError(f"its mtime of {mtime} s is out of range")
        rdev = os.makedev(*device_number(header)) if kind in _DEVICES else 0
        self._begin(size)
        return Member(name, file_type | (mode & 0o7777), uid, gid, size, mtime * 1_000_000_000, link, rdev, {})

    def _extended_member(
        self,
        header: Header,
        block: bytes,
        records: list[tuple[bytes, bytes]],
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> Member:
        """A member with extended headers before it, or with a sparse map."""
        named = {key: value for key, value in dict(records).items() if value}  # an empty value takes the record back
        name = named.get(b"GNU.sparse.name", named.get(b"path", header.name)) if long_name is None else long_name
        link = named.get(b"linkpath", header.link) if long_link is None else long_link
        self._name = name
        if b"\0" in name or b"\0" in link:
            raise LayerError("its name or its link holds a NUL")
        mtime_ns = parse_time_ns(named[b"mtime"]) if b"mtime" in named else header.mtime * 1_000_000_000
        member = self._member(
            header._replace(
                name=name,
                link=link,
                size=parse_decimal(named[b"size"], "size") if b"size" in named else header.size,
                uid=parse_decimal(named[b"uid"], "uid") if b"uid" in named else header.uid,
                gid=parse_decimal(named[b"gid"], "gid") if b"gid" in named else header.gid,
                mtime=mtime_ns // 1_000_000_000,
            )
        )._replace(mtime_ns=mtime_ns, xattrs=parse_xattrs(named))
        sparse = None
        if header.kind == _OLD_SPARSE:
            sparse = self._old_sparse(block)
        elif stat.S_ISREG(member.mode):
            sparse = self._pax_sparse(records)
        if sparse is None:
            return member
        if sparse.stored_bytes != self._rest:
            raise LayerError(f"its sparse map says {sparse.stored_bytes} bytes of data, but {self._rest} are there")
        self._map, self._part, self._offset = sparse, 0, 0
        self._account(sparse.size - self._rest)
        return member._replace(size=sparse.size)

    def _old_sparse(self, block: bytes) -> SparseMap:
        """The map of an old GNU sparse member; its extension blocks lie between header and data."""
        extensions = 0

        def extension() -> bytes:
            nonlocal extensions
            extensions += BLOCK_BYTES
            if extensions > self._limits.max_header_bytes:
                raise self._header_limit(extensions, self._name or b"")
            return self._take(BLOCK_BYTES)

        return old_gnu_map(block, extension)

    def _pax_sparse(self, records: list[tuple[bytes, bytes]]) -> SparseMap | None:
        """The map that pax records describe; in format 1.0 it fills the first blocks of the data."""
        used = 0
        text = b""

        def line() -> bytes:
            nonlocal used, text
            while b"\n" not in text:
                used += BLOCK_BYTES
                if used > self._limits.max_header_bytes:
                    raise self._header_limit(used, self._name or b"")
                if self._rest < BLOCK_BYTES:
                    raise LayerError("its sparse map is cut off")
                text += self._stored(BLOCK_BYTES)
            found, _, text = text.partition(b"\n")
            return found

        return pax_map(records, line)

    # --- data

    def _begin(self, size: int) -> None:
        """Start with a member that has *size* bytes stored behind its header."""
        self._entries += 1
        if self._entries > self._limits.max_entries:
            raise LimitError(
                f"the layer has more than {self._limits.max_entries} entries (UNPACKD_CONVERTER_LIMITS_MAX_ENTRIES)",
                self._name,
            )
        self._account(size + BLOCK_BYTES)
        self._rest = size
        self._padding = -size % BLOCK_BYTES
        self._map = None

    def _account(self, size: int) -> None:
        self._unpacked += size
        if self._unpacked > self._limits.max_layer_bytes:
            raise LimitError(
                f"the layer unpacks to more than {self._limits.max_layer_bytes} bytes "
                "(UNPACKD_CONVERTER_LIMITS_MAX_LAYER_BYTES)",
                self._name,
            )

    def _stored(self, size: int) -> bytes:
        """The next *size* stored bytes of the member; so many are there by its header."""
        data = self._take(size)
        self._rest -= size
        if len(data) < size:
            raise LayerError(
                f"the archive ends {self._rest + size - len(data)} bytes before the end of its data", self._name
            )
        return data

    def _read_sparse(self, sparse: SparseMap, size: int) -> bytes:
        """The next *size* bytes of a sparse file."""
        out = bytearray()
        size = min(size, sparse.size - self._offset)
        while len(out) < size:
            wanted = size - len(out)
            while self._part < len(sparse.parts) and sum(sparse.parts[self._part]) <= self._offset:
                self._part += 1
            start, length = sparse.parts[self._part] if self._part < len(sparse.parts) else (sparse.size, 0)
            if self._offset < start:
                piece = bytes(min(wanted, start - self._offset))
            else:
                piece = self._stored(min(wanted, start + length - self._offset))
            out += piece
            self._offset += len(piece)
        return bytes(out)

    def _pass_over(self) -> None:
        """Go to the end of the member, padding included; the padding of the last one may be absent."""
        while self._rest:
            self._stored(min(self._rest, _PASS_BYTES))
        if self._padding:
            self._take(self._padding)
            self._padding = 0

    # --- the stream

    def _take(self, size: int) -> bytes:
        """The next *size* bytes, fewer only at the end of the stream; *size* is bounded by the caller."""
        at = self._at
        end = at + size
        if end <= len(self._piece):
            self._at = end
            return self._piece[at:end]
        parts = [self._piece[at:]]
        missing = size - len(parts[0])
        self._at = len(self._piece)
        while missing > 0 and self._advance():
            part = self._piece[:missing]
            self._at = len(part)
            missing -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _advance(self) -> bool:
        """Go to the next piece; False at the end of the stream, where the last one stays."""
        piece = self._next_piece()
        if not piece:
            return False
        self._before += len(self._piece)
        self._piece, self._at = piece, 0
        return True
