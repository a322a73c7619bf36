"""What one layer changes: entries, whiteouts, opaque directories. PURE.

A change set is made once, while the layer is read, and is all that flattening ever needs again. It does not depend on
the layers below: parents that are symlinks and targets of hard links are looked up when it is applied (``flatten``).
Entries keep the order of the archive, because that is what symlinked parents and repeated paths depend on; whiteouts
have no order, because they act on lower layers only.

Source: OCI image specification 1.1, layer.md ("Change Types", "Whiteouts", "Opaque Whiteout"). What a name may be
follows umoci: ``.`` and ``..`` are resolved in the name itself before anything else, and never lead above the root.
"""

import json
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from converter.errors import ChangeSetError, LayerError, shown
from converter.layer_tar import Member
from converter.limits import NAME_MAX_BYTES, PATH_MAX_BYTES
from fs.errors import HashSyntaxError
from fs.format.compression import Compression
from fs.format.hashes import Hash
from fs.format.tree import Chunk, Content

_VERSION = 1
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."
_REPOSITORY_FILES = frozenset((b".cvmfscatalog", b".cvmfsautocatalog", b".cvmfsdirtab"))
_KEPT_NAMESPACES = (b"user.", b"security.", b"system.")
_DROPPED_XATTRS = frozenset((b"security.selinux", b"system.nfs4_acl"))  # of the builder's machine; umoci drops them too
_DROPPED_PREFIXES = (b"trusted.", b"user.overlay.")
_XATTR_MAX_BYTES = 255
_MOST_WARNINGS = 200
_LINK_COLUMNS, _COLUMNS = 2, 6
_DEVICE_TYPES = (stat.S_IFCHR, stat.S_IFBLK)
_TYPES_WITH_USER_XATTRS = (stat.S_IFREG, stat.S_IFDIR)


class Change(NamedTuple):
    """One entry of a layer. A tuple, not a dataclass: there is one for every file of every image.

    ``path`` and ``link`` are canonical and absolute; the root is empty. A hard link has a ``link`` and nothing else.
    """

    path: bytes
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    content: Content | None = None
    target: bytes = b""
    rdev: int = 0
    xattrs: dict[bytes, bytes] | None = None
    link: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeSet:
    """All that a layer changes."""

    diff_id: str  # digest of the layer's tar
    unpacked_bytes: int  # of that tar
    entries: tuple[Change, ...]  # as in the archive
    whiteouts: tuple[bytes, ...] = ()  # paths that are removed from the layers below, ascending
    opaque: tuple[bytes, ...] = ()  # directories of which nothing of the layers below shows, ascending
    warnings: tuple[str, ...] = ()  # what was left out, and why


class ChangeSetBuilder:
    """Collects the members of one layer."""

    def __init__(self) -> None:
        self._entries: list[Change] = []
        self._seen: set[bytes] = set()
        self._whiteouts: set[bytes] = set()
        self._opaque: set[bytes] = set()
        self._warnings: list[str] = []

    def accept(self, member: Member) -> Change | None:
        """The change that *member* makes, still without content; None if it is none of its own.

        Whiteouts are taken up; what an image may not bring is left out with a warning.

        Raises:
            LayerError: the member cannot be part of a file tree.
        """
        path = canonical_name(member.name)
        if b"/.wh." in path and self._is_whiteout(path, member.name):
            return None
        if b"/.cvmfs" in path and not _REPOSITORY_FILES.isdisjoint(path.split(b"/")):
            self.warn(member.name, "left out: files of this name steer a repository, which no image may")
            return None
        mode = member.mode
        file_type = stat.S_IFMT(mode)
        if not path and file_type != stat.S_IFDIR:
            raise LayerError("the root of an image is a directory and cannot become anything else", member.name)
        if not file_type:
            return Change(path, link=_link_path(member))
        if file_type == stat.S_IFCHR and not member.rdev:
            self.warn(member.name, "left out: the character device 0:0 is how overlayfs marks removed names")
            return None
        target = b""
        if file_type == stat.S_IFLNK:
            target = member.link
            mode = stat.S_IFLNK | 0o777  # Linux has no other mode for symlinks
            if not 0 < len(target) <= PATH_MAX_BYTES:
                raise LayerError(f"its target has {len(target)} bytes; 1 to {PATH_MAX_BYTES} are possible", member.name)
        xattrs = self._kept_xattrs(member, file_type) if member.xattrs else None
        return Change(path, mode, member.uid, member.gid, member.mtime_ns, None, target, member.rdev, xattrs)

    def add(self, change: Change) -> int:
        """Take up a change that ``accept`` gave; gives its number, by which it can be given its content later."""
        if change.path in self._seen and not stat.S_ISDIR(change.mode):
            self.warn(change.path[1:], "is in the layer more than once; the last one counts")
        self._seen.add(change.path)
        self._entries.append(change)
        return len(self._entries) - 1

    def complete(self, numbers: Iterable[int], contents: Iterable[Content]) -> None:
        """Give the changes with *numbers* their *contents*."""
        for number, content in zip(numbers, contents, strict=True):
            self._entries[number] = self._entries[number]._replace(content=content)

    def warn(self, name: bytes, reason: str) -> None:
        """Note that something about the member *name* is not as it was asked for."""
        if len(self._warnings) < _MOST_WARNINGS:
            self._warnings.append(f"entry '{shown(name)}' {reason}")
        elif len(self._warnings) == _MOST_WARNINGS:
            self._warnings.append("there are more warnings than are kept")

    def finish(self, *, diff_id: str, unpacked_bytes: int) -> ChangeSet:
        """The change set of all that was taken up."""
        return ChangeSet(
            diff_id=diff_id,
            unpacked_bytes=unpacked_bytes,
            entries=tuple(self._entries),
            whiteouts=tuple(sorted(self._whiteouts)),
            opaque=tuple(sorted(self._opaque)),
            warnings=tuple(self._warnings),
        )

    def _is_whiteout(self, path: bytes, name: bytes) -> bool:
        """Take up *path* if it is a whiteout; True if nothing is left to be done about it."""
        parent, _, last = path.rpartition(b"/")
        if b"/.wh." in parent:
            if _AUFS in path:
                self.warn(name, "left out: bookkeeping of aufs")
                return True
            raise LayerError("only the last component of a name can be a whiteout", name)
        if last == _OPAQUE:
            self._opaque.add(parent)
        elif last.startswith(_AUFS):
            self.warn(name, "left out: bookkeeping of aufs")
        else:
            removed = last.removeprefix(_WHITEOUT)
            if removed in (b"", b".", b".."):
                raise LayerError("a whiteout of this name would remove a directory it lies in", name)
            self._whiteouts.add(parent + b"/" + removed)
        return True

    def _kept_xattrs(self, member: Member, file_type: int) -> dict[bytes, bytes] | None:
        kept: dict[bytes, bytes] = {}
        for key, value in sorted(member.xattrs.items()):
            if key in _DROPPED_XATTRS or key.startswith(_DROPPED_PREFIXES):
                reason = "which no image may set"
            elif not key.startswith(_KEPT_NAMESPACES):
                reason = "which Linux does not know"
            elif key.startswith(b"user.") and file_type not in _TYPES_WITH_USER_XATTRS:
                reason = "which only files and directories can have"
            elif len(key) > _XATTR_MAX_BYTES or len(value) > _XATTR_MAX_BYTES:
                reason = f"of {len(value)} bytes; the repository's format holds {_XATTR_MAX_BYTES}"
            elif len(kept) == _XATTR_MAX_BYTES:
                reason = f"as the repository's format holds {_XATTR_MAX_BYTES} of them"
            else:
                kept[key] = value
                continue
            self.warn(member.name, f"is taken without its extended attribute '{shown(key)}', {reason}")
        return kept or None


def canonical_name(name: bytes) -> bytes:
    """The absolute path that a member's *name* stands for, ``.`` and ``..`` resolved; the root is empty.

    Raises:
        LayerError: it is longer than any path, or one of its components is.
    """
    if name.startswith(b"./"):
        name = name[2:]
    path = b"/" + name
    if path.endswith(b"/") or b"/." in path or b"//" in path:
        names: list[bytes] = []
        for part in path.split(b"/"):
            if part == b"..":
                del names[-1:]
            elif part not in (b"", b"."):
                names.append(part)
        path = b"".join(b"/" + part for part in names)
    if len(path) > NAME_MAX_BYTES:
        if len(path) > PATH_MAX_BYTES:
            raise LayerError(f"its path has {len(path)} bytes; {PATH_MAX_BYTES} are possible", name)
        if max(map(len, path.split(b"/"))) > NAME_MAX_BYTES:
            raise LayerError(f"a component of its path has more than {NAME_MAX_BYTES} bytes", name)
    return path


def _link_path(member: Member) -> bytes:
    link = canonical_name(member.link)
    if not link:
        raise LayerError("hard links to directories are not possible", member.name)
    return link


# --- the stored form


def encode(changes: ChangeSet) -> bytes:
    """The stored form of *changes*: compact JSON, the same bytes for the same change set.

    ``entries`` is an array of arrays: path and link target of a hard link; or path, mode, uid, gid, mtime in
    nanoseconds, and what the type asks for: of a file its content (size, hash, chunks, compression number), of a
    symlink its target, of a device its number, else null; last, where there are any, the extended attributes.
    Names are UTF-8 with lone surrogates for other bytes; values of extended attributes are hexadecimal.
    """
    document = {
        "version": _VERSION,
        "diff_id": changes.diff_id,
        "unpacked_bytes": changes.unpacked_bytes,
        "warnings": changes.warnings,
        "whiteouts": [_text(path) for path in changes.whiteouts],
        "opaque": [_text(path) for path in changes.opaque],
        "entries": [_row(change) for change in changes.entries],
    }
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def decode(stored: bytes) -> ChangeSet:
    """Inverse of ``encode``.

    Raises:
        ChangeSetError: it is of another version, or no change set.
    """
    try:
        document = json.loads(stored)
        if document["version"] != _VERSION:
            raise ChangeSetError(f"the change set has version {document['version']}; this program reads {_VERSION}")
        return ChangeSet(
            diff_id=str(document["diff_id"]),
            unpacked_bytes=int(document["unpacked_bytes"]),
            entries=tuple(_change(row) for row in document["entries"]),
            whiteouts=_paths(document["whiteouts"]),
            opaque=_paths(document["opaque"]),
            warnings=tuple(str(text) for text in document["warnings"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, HashSyntaxError) as error:
        raise ChangeSetError(f"the stored change set is malformed ({error!r})") from error


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _paths(texts: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(_bytes(text) for text in texts)


def _row(change: Change) -> list[Any]:
    path, mode, uid, gid, mtime_ns, content, target, rdev, xattrs, link = change
    if link is not None:
        return [_text(path), _text(link)]
    detail: Any = None
    file_type = stat.S_IFMT(mode)
    if content is not None:
        detail = [
            content.size,
            None if content.hash is None else str(content.hash),
            [[chunk.offset, chunk.size, str(chunk.hash)] for chunk in content.chunks],
            content.compression.value,
        ]
    elif file_type == stat.S_IFLNK:
        detail = _text(target)
    elif file_type in _DEVICE_TYPES:
        detail = rdev
    row = [_text(path), mode, uid, gid, mtime_ns, detail]
    if xattrs:
        row.append({_text(key): xattrs[key].hex() for key in sorted(xattrs)})
    return row


def _change(row: list[Any]) -> Change:
    """Inverse of ``_row``. What is wrong with it raises one of the errors that ``decode`` translates."""
    path = _bytes(row[0])
    if len(row) == _LINK_COLUMNS:
        return Change(path, link=_bytes(row[1]))
    mode, uid, gid, mtime_ns, detail = row[1:_COLUMNS]
    if not all(isinstance(number, int) for number in (mode, uid, gid, mtime_ns)):
        raise TypeError(path)
    file_type = stat.S_IFMT(mode)
    xattrs = {_bytes(key): bytes.fromhex(value) for key, value in row[_COLUMNS].items()} if row[_COLUMNS:] else None
    return Change(
        path,
        mode,
        uid,
        gid,
        mtime_ns,
        _content(*detail) if file_type == stat.S_IFREG else None,
        _bytes(detail) if file_type == stat.S_IFLNK else b"",
        int(detail) if file_type in _DEVICE_TYPES else 0,
        xattrs,
    )


def _content(size: int, name: str | None, chunks: list[Any], compression: int) -> Content:
    return Content(
        size,
        None if name is None else Hash.parse(name),
        tuple(Chunk(offset, length, Hash.parse(chunk)) for offset, length, chunk in chunks),
        Compression(compression),
    )
