"""Change sets become trees: the whole root file system of an image, and each layer in the form of overlayfs. PURE.

The host's file system is never asked: parents, symlinks in them and targets of hard links are looked up in the tree
that is being built, as ``chroot`` would, with a limit on the number of symlinks.

Attributes are those that ``umoci unpack`` gives: a directory keeps the time of its entry whatever is added to or
removed from it later; a directory over a directory replaces its attributes, extended ones too, and keeps what it holds;
anything else is removed and made anew; a hard link has the attributes of what it links to. Directories without an
entry are 0755 root:root; in one with the set-group-ID bit they have that bit and its group, as Linux gives them. Their
time, which umoci takes from the clock, is 0, so that one image gives one tree.
"""

import stat
from contextlib import suppress
from dataclasses import dataclass

from converter.changeset import Change, ChangeSet
from converter.errors import LayerError, shown
from fs.format.paths import name_of
from fs.format.tree import Node

OPAQUE_XATTR = b"trusted.overlay.opaque"
"""Source: Linux, Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"."""

_SYMLINK_LIMIT = 40  # as the kernel's
_DOTS = frozenset((b"", b".", b".."))
_DIRECTORY = stat.S_IFDIR | 0o755
_WHITEOUT = stat.S_IFCHR


class Tree:
    """A file tree that layers are applied to, lowest first."""

    def __init__(self) -> None:
        self.root = Node(mode=_DIRECTORY)
        self._known: dict[bytes, _Place] = {}

    def apply(self, changes: ChangeSet) -> Node:
        """Apply a layer: what it removes from the layers below, then its entries in their order.

        Returns:
            The layer over exactly these lower layers in the form of overlayfs. It shares nodes of files with the tree.

        Raises:
            LayerError: a parent is not a directory, symlinks go in circles, or a hard link has no target.
        """
        overlay = _Overlay()
        emptied = [place for path in changes.opaque if (place := self._existing(path)) is not None]
        removed = [
            (place, name)
            for parent, _, name in (path.rpartition(b"/") for path in changes.whiteouts)
            if (place := self._existing(parent)) is not None and name in place.node.children
        ]
        for place in emptied:
            overlay.empty(place)
        for place, name in removed:
            overlay.remove(place, name)
        for place in emptied:
            place.node.children.clear()
        for place, name in removed:
            place.node.children.pop(name, None)
        self._known.clear()
        for change in changes.entries:
            if change.path:
                parent, name, node = self.put(change)
                overlay.put(parent, name, node)
            else:
                _set_attributes(self.root, change)
        _copy_attributes(self.root, overlay.root)
        return overlay.root

    def put(self, change: Change) -> "tuple[_Place, bytes, Node]":
        """Apply one entry other than the root; gives the directory, name and node that it came to be.

        Raises:
            LayerError: as ``apply`` says.
        """
        parent_path, _, name = change.path.rpartition(b"/")
        try:
            parent = self._known.get(parent_path) or self._directory(parent_path, create=True)
            node = self._link_target(change.link) if change.link is not None else None
        except LayerError as error:
            raise LayerError(error.reason, change.path[1:]) from error
        children = parent.node.children
        before = children.get(name)
        if node is None:
            if before is not None and stat.S_ISDIR(before.mode) and stat.S_ISDIR(change.mode):
                _set_attributes(before, change)
                return parent, name, before
            node = _node(change)
        children[name] = node
        if before is not None and stat.S_IFMT(before.mode) in (stat.S_IFDIR, stat.S_IFLNK):
            self._known.clear()  # paths through what was here lead elsewhere now
        return parent, name, node

    def directory(self, path: bytes) -> Node:
        """The directory at *path*, made if it is missing. Raises LayerError."""
        return self._directory(path, create=True).node

    def _link_target(self, link: bytes) -> Node:
        parent_path, _, name = link.rpartition(b"/")
        parent = self._existing(parent_path)
        node = parent.node.children.get(name) if parent is not None else None
        if node is None:
            raise LayerError(f"the target of this hard link, '{shown(link[1:])}', is not in the image")
        if node.is_directory:
            raise LayerError("hard links to directories are not possible")
        return node

    def _existing(self, path: bytes) -> "_Place | None":
        """The directory at *path*, if there is one."""
        try:
            return self._known.get(path) or self._directory(path, create=False)
        except _NoDirectoryError:
            return None

    def _directory(self, path: bytes, *, create: bool) -> "_Place":
        """The directory at *path*, symlinks followed inside the tree."""
        pending = path.split(b"/")[:0:-1]  # components, the next one last
        walked = [_Place(b"", self.root, None)]
        symlinks = 0
        while pending:
            name = pending.pop()
            here = walked[-1]
            if name in _DOTS:
                walked = walked[:-1] or walked if name == b".." else walked
                continue
            node = here.node.children.get(name)
            if node is None:
                if not create:
                    raise _NoDirectoryError("a directory in its path is missing")
                node = here.node.children[name] = _directory_without_entry(here.node)
            if stat.S_ISLNK(node.mode):
                symlinks += 1
                if symlinks > _SYMLINK_LIMIT:
                    raise _NoDirectoryError("its path runs through too many symbolic links; they may go in circles")
                if node.target.startswith(b"/"):
                    del walked[1:]
                pending.extend(reversed(node.target.split(b"/")))
            elif node.is_directory:
                walked.append(_Place(here.path + b"/" + name, node, here))
            else:
                raise _NoDirectoryError("a component of its path is not a directory")
        self._known[path] = walked[-1]
        return walked[-1]


class _Overlay:
    """One layer as overlayfs wants it, over layers that are known."""

    def __init__(self) -> None:
        self.root = Node(mode=_DIRECTORY)
        self._known: dict[bytes, Node] = {}

    def empty(self, place: "_Place") -> None:
        """Let nothing show of what the layers below have in the directory *place*."""
        self._directory(place).xattrs[OPAQUE_XATTR] = b"y"
        if not place.path:  # overlayfs takes no notice of an opaque root
            for name in place.node.children:
                self.remove(place, name)

    def remove(self, place: "_Place", name: bytes) -> None:
        """Hide *name* of the layers below."""
        children = self._directory(place).children
        if name in children:
            self._known.clear()  # a directory that was emptied, too, goes with all that is known of it
        children[name] = Node(mode=_WHITEOUT)

    def put(self, place: "_Place", name: bytes, node: Node) -> None:
        """Add *node*, which is in the merged tree as *name* in *place*."""
        if node.is_directory:
            self._child(self._directory(place), name, node)
            return
        children = self._directory(place).children
        before = children.get(name)
        children[name] = node
        if before is not None and before.is_directory:
            self._known.clear()

    def _directory(self, place: "_Place") -> Node:
        """The layer's own copy of a directory of the merged tree."""
        missing = []
        at = place
        while at.above is not None and at.path not in self._known:
            missing.append(at)
            at = at.above
        node = self.root if at.above is None else self._known[at.path]
        for step in reversed(missing):
            node = self._known[step.path] = self._child(node, name_of(step.path), step.node)
        return node

    @staticmethod
    def _child(parent: Node, name: bytes, merged: Node) -> Node:
        before = parent.children.get(name)
        if before is None or not before.is_directory:
            child = parent.children[name] = Node(mode=_DIRECTORY)
            if before is not None:  # what this layer removed or replaced must not show through the new directory
                child.xattrs[OPAQUE_XATTR] = b"y"
        else:
            child = before
        _copy_attributes(merged, child)
        return child


def layer_alone(changes: ChangeSet) -> Node:
    """The layer in the form of overlayfs, whatever lies below.

    It is the best that can be said without knowing the layers below: directories without an entry have default
    attributes, symlinks that a lower layer brings are not followed, and what makes no sense without the layers below,
    such as a hard link into them, is absent. Where that makes a difference, the chain has its own form of the layer
    (``Tree.apply``, which also tells if the layer makes sense at all).
    """
    tree = Tree()
    for change in changes.entries:
        if not change.path:
            _set_attributes(tree.root, change)
            continue
        with suppress(LayerError):
            tree.put(change)
    for path in changes.opaque:
        with suppress(LayerError):  # below a file there is nothing to hide
            tree.directory(path).xattrs[OPAQUE_XATTR] = b"y"
    for path in changes.whiteouts:
        parent, _, name = path.rpartition(b"/")
        with suppress(LayerError):
            node = tree.directory(parent).children.setdefault(name, Node(mode=_WHITEOUT))
            if node.is_directory:
                node.xattrs[OPAQUE_XATTR] = b"y"
    return tree.root


def same_tree(first: Node, second: Node) -> bool:
    """True if both trees have the same names with the same attributes, contents and groups of hard links."""
    pending = [(first, second)]
    partners: dict[int, int] = {}
    while pending:
        one, other = pending.pop()
        if partners.setdefault(id(one), id(other)) != id(other):
            return False
        if _attributes(one) != _attributes(other) or one.children.keys() != other.children.keys():
            return False
        pending.extend((child, other.children[name]) for name, child in one.children.items())
    return len(set(partners.values())) == len(partners)


@dataclass(frozen=True, slots=True)
class _Place:
    """A directory of the tree: its path without symlinks, and the one above it."""

    path: bytes
    node: Node
    above: "_Place | None"


class _NoDirectoryError(LayerError):
    """A path that does not lead to a directory."""


def _directory_without_entry(parent: Node) -> Node:
    if parent.mode & stat.S_ISGID:
        return Node(mode=_DIRECTORY | stat.S_ISGID, gid=parent.gid)
    return Node(mode=_DIRECTORY)


def _node(change: Change) -> Node:
    return Node(
        mode=change.mode,
        uid=change.uid,
        gid=change.gid,
        mtime_ns=change.mtime_ns,
        content=change.content,
        target=change.target,
        rdev=change.rdev,
        xattrs=dict(change.xattrs) if change.xattrs else {},
    )


def _set_attributes(directory: Node, change: Change) -> None:
    directory.mode = change.mode
    directory.uid = change.uid
    directory.gid = change.gid
    directory.mtime_ns = change.mtime_ns
    directory.xattrs = dict(change.xattrs) if change.xattrs else {}


def _copy_attributes(merged: Node, copy: Node) -> None:
    """Give a directory of an overlay the attributes it has in the merged tree; opaque stays opaque."""
    opaque = copy.xattrs.get(OPAQUE_XATTR)
    copy.mode, copy.uid, copy.gid, copy.mtime_ns = merged.mode, merged.uid, merged.gid, merged.mtime_ns
    copy.xattrs = dict(merged.xattrs) if opaque is None else {**merged.xattrs, OPAQUE_XATTR: opaque}


def _attributes(node: Node) -> tuple[object, ...]:
    return (node.mode, node.uid, node.gid, node.mtime_ns, node.content, node.target, node.rdev, node.xattrs)
