"""What a tree of files says, entry by entry, from memory or from a published revision, and a digest of all of it. PURE.

The digest is SHA-256 over one record an entry, parents before children, names in the order of their bytes. A record is
a sequence of fields, each as a netstring (``<length in decimal>:<bytes>,``): path below the root of the tree (empty for
the root itself), path of the first name of the same inode, mode with type bits in octal, uid, gid, modification time in
ns, target of a symlink, device number, size and objects of a file (``<size>`` and then ``<hash>``, or
``<offset>+<size>=<hash>`` of each chunk, with blanks between), number of extended attributes, and of each, by name,
name and value. Numbers are decimal. So whoever can read the catalogs can check it, without reading a single file.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fs.format.entries import Entry, Flag
from fs.format.tree import Content, Node, walk
from fs.publish.view import View


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One name in a tree, with the attributes of its inode."""

    path: bytes  # below the root of the tree; the root's own is empty
    first: bytes  # the first name of the same inode in this tree
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    target: bytes = b""
    rdev: int = 0
    content: Content | None = None
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


def items_of_tree(root: Node) -> Iterator[Item]:
    """What the tree in memory says."""
    first: dict[int, bytes] = {}
    for path, node in walk(root):
        yield Item(
            path=path,
            first=path if node.is_directory else first.setdefault(id(node), path),
            mode=node.mode,
            uid=node.uid,
            gid=node.gid,
            mtime_ns=node.mtime_ns,
            target=node.target,
            rdev=node.rdev,
            content=node.content,
            xattrs=node.xattrs,
        )


def items_of_view(view: View, top: bytes) -> Iterator[Item]:
    """What the tree at *top* of a published revision says.

    Raises:
        AbsentError: there is nothing there.
        FsError: a catalog cannot be read.
    """
    first: dict[tuple[bytes, int], bytes] = {}
    root = view.lookup(top)
    pending: list[tuple[bytes, Entry]] = [] if root is None else [(b"", root)]
    if root is None:
        view.list(top)  # raises what is to be raised
    while pending:
        path, entry = pending.pop()
        yield _item(view, top, path, entry, first)
        if entry.is_directory:
            below = [(path + b"/" + child.name, child) for child in view.list(top + path)]
            pending.extend(reversed(below))


def _item(view: View, top: bytes, path: bytes, entry: Entry, first: dict[tuple[bytes, int], bytes]) -> Item:
    named = path
    if entry.link_group and not entry.is_directory:
        is_local = entry.link_group > 0  # numbers are unique in a directory; negative ones everywhere
        named = first.setdefault((path.rpartition(b"/")[0] if is_local else b"", entry.link_group), path)
    content = None
    if entry.is_regular:
        is_whole = entry.hash is not None and not entry.flags & (Flag.CHUNKED | Flag.EXTERNAL)
        content = Content(entry.size, entry.hash) if is_whole else view.content(top + path)
    return Item(
        path=path,
        first=named,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        mtime_ns=entry.mtime_ns,
        target=view.readlink(top + path) if entry.is_symlink else b"",
        rdev=entry.rdev,
        content=content,
        xattrs=entry.xattrs,
    )


def objects_of(content: Content | None) -> str:
    """Size and objects of a file, as the digest has them; nothing for what is no file."""
    if content is None:
        return ""
    chunks = [f"{chunk.offset}+{chunk.size}={chunk.hash}" for chunk in content.chunks]
    return " ".join([str(content.size), *([str(content.hash)] if content.hash is not None else chunks)])


def digest_of(items: Iterable[Item]) -> str:
    """The digest of a tree, ``sha256:<hex>``."""
    hasher = hashlib.sha256()
    for item in items:
        fields = [
            item.path,
            item.first,
            b"%o" % item.mode,
            *(b"%d" % number for number in (item.uid, item.gid, item.mtime_ns)),
            item.target,
            b"%d" % item.rdev,
            objects_of(item.content).encode(),
            b"%d" % len(item.xattrs),
        ]
        for name in sorted(item.xattrs):
            fields += [name, item.xattrs[name]]
        hasher.update(b"".join([b"%d:%b," % (len(one), one) for one in fields]))
    return f"sha256:{hasher.hexdigest()}"
