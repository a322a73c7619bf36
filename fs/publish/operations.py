"""What a commit can do to a repository's tree. Paths are canonical and absolute: ``b"/a/b"``."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fs.format.entries import Entry
from fs.format.tree import Content
from fs.publish.catalogs import Subtree


@dataclass(frozen=True, slots=True)
class Graft:
    """Hang a prepared subtree into the tree; what was at its path goes."""

    path: bytes
    subtree: Subtree


@dataclass(frozen=True, slots=True)
class PutFile:
    """Make or replace a regular file whose content is stored already."""

    path: bytes
    content: Content
    mode: int = 0o644  # permission bits
    uid: int = 0
    gid: int = 0
    mtime_ns: int | None = None  # None: the time of the commit, which does not count as a change
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PutSymlink:
    """Make or replace a symbolic link.

    The target is what readers see, unless it *expands*: then readers replace ``$(NAME)`` and ``$(NAME:-default)``.
    """

    path: bytes
    target: bytes
    uid: int = 0
    gid: int = 0
    mtime_ns: int | None = None
    expands: bool = False


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    """Make a directory, and those above it, unless it is there.

    With *nested*, a catalog begins at it; one that is there already gets a catalog of its own.
    """

    path: bytes
    nested: bool = False
    mode: int = 0o755  # permission bits
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove what is at the path, with everything below; nothing there is no mistake."""

    path: bytes


@dataclass(frozen=True, slots=True)
class Require:
    """Commit only if there is something at the path; changes nothing."""

    path: bytes


@dataclass(frozen=True, slots=True)
class RequireSame:
    """Commit only if the file at the path is still what it was when it was read; changes nothing.

    So whoever reads a file, changes it and puts it back loses nothing that others did meanwhile.
    """

    path: bytes
    before: Entry | None  # None: there was nothing


@dataclass(frozen=True, slots=True)
class RequireRevision:
    """Commit only on top of this revision; changes nothing."""

    revision: int


Operation = Graft | PutFile | PutSymlink | MakeDirectory | Remove | Require | RequireSame | RequireRevision
