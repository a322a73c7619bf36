"""Operations applied to the newest revision: only the small catalogs on the way are opened and rewritten."""

import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import assert_never

from fs.errors import CatalogError, ChangedError, OvertakenError, RefusedError
from fs.format.entries import DIRECTORY_SIZE, Entry, Flag, NestedReference
from fs.format.hashes import Algorithm, Hash
from fs.format.paths import ROOT, is_below, name_of, parent_path
from fs.format.symlinks import encode_literal
from fs.format.tree import Content
from fs.publish.catalogs import MARKER, StoredCatalog
from fs.publish.draft import Draft
from fs.publish.link_groups import Departed
from fs.publish.operations import (
    Graft,
    MakeDirectory,
    Operation,
    PutFile,
    PutSymlink,
    Remove,
    Require,
    RequireRevision,
    RequireSame,
)

Fetch = Callable[[Hash], bytes]
"""Gives the bytes of the uncompressed catalog with that name."""

Keep = Callable[[bytes], StoredCatalog]
"""Stores the bytes of an uncompressed catalog."""

_LOOKS = 10
_THREADS = 2

UNKNOWN = Hash(bytes(20))
"""Stands for the hash of a catalog that is not stored yet."""


@dataclass(frozen=True, slots=True)
class Base:
    """What a transaction starts from."""

    catalog: StoredCatalog
    revision: int


class Transaction:
    """Changes to the tree of one revision; nothing is stored before ``seal``."""

    def __init__(self, base: Base, *, fetch: Fetch, now_ns: int, empty: Content) -> None:
        """Open the root catalog of *base*.

        Args:
            base: the revision to change.
            fetch: reads catalogs.
            now_ns: the time of the commit.
            empty: the content of no bytes, for markers.
        """
        self._base = base
        self._fetch = fetch
        self._now_ns = now_ns
        self._empty = empty
        self._root = Draft.of_stored(fetch(base.catalog.hash), ROOT, None)
        self._drafts: dict[bytes, Draft] = {ROOT: self._root}
        self._forgotten_changes = 0

    @property
    def changes(self) -> int:
        """How much was changed; equal before and after what changed nothing. Not 0: a new revision is needed."""
        return self._forgotten_changes + sum(draft.changes for draft in self._drafts.values())

    def apply(self, operation: Operation) -> None:
        """Apply one operation.

        Raises:
            RefusedError: it makes no sense for what is there.
            OvertakenError, ChangedError: what it requires is not, or not any more.
            AbsentError, CorruptError, CatalogError: a catalog on the way cannot be read.
        """
        if isinstance(operation, Require | RequireSame | RequireRevision):
            self._require(operation)
            return
        _check_path(operation.path)
        match operation:
            case Graft():
                self._graft(operation)
            case PutFile():
                self._put_file(operation)
            case PutSymlink():
                self._put_symlink(operation)
            case MakeDirectory():
                self._make_directory(operation)
            case Remove():
                self._remove(operation.path)
            case _:
                assert_never(operation)

    def split(self, most_rows: int, least_rows: int) -> None:
        """Give catalogs of their own to directories of those that grew above *most_rows*, if they have *least_rows*.

        So the catalogs that every commit rewrites stay small, however many images a repository comes to have. It is
        tried now and then only, in case that there is nothing to divide.
        """
        step = max(most_rows // _LOOKS, 1)
        for draft in list(self._drafts.values()):
            has_grown = draft.rows // step > (draft.rows - draft.inserted) // step
            if draft.rows > most_rows and has_grown and not draft.has_binds:
                for path in draft.heavy_directories(most_rows, least_rows):
                    self._divide(path)

    def _require(self, condition: Require | RequireSame | RequireRevision) -> None:
        """Raise OvertakenError or ChangedError if *condition* does not hold."""
        if isinstance(condition, RequireRevision):
            if condition.revision != self._base.revision:
                raise OvertakenError(f"the newest revision is {self._base.revision}, not {condition.revision}")
            return
        _check_path(condition.path)
        shown = condition.path.decode("utf-8", "backslashreplace")
        found = self._entry(condition.path)
        if isinstance(condition, Require):
            if found is None:
                raise OvertakenError(f"there is no {shown} any more")
        elif _identity(found) != _identity(condition.before):
            raise ChangedError(f"{shown} was changed meanwhile")

    def seal(self, keep: Keep, *, revision: int, last_modified_unix_s: int, ttl_s: int) -> StoredCatalog:
        """Store the changed catalogs, leaves first, those of one depth in parallel; gives the new root catalog."""
        stored = self._base.catalog
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="catalogs") as pool:
            for level in self._levels():
                finished = []
                for draft in level:
                    is_root = draft is self._root
                    previous = self._base.catalog.hash if is_root else self._previous(draft)
                    if draft.parent is not None:
                        draft.parent.adopt_total(draft)
                    database = draft.finish(
                        revision=revision if is_root else draft.catalog.revision + 1,
                        last_modified_unix_s=last_modified_unix_s,
                        previous=previous,
                        ttl_s=ttl_s if is_root else None,
                    )
                    finished.append((draft, pool.submit(keep, database)))
                for draft, future in finished:
                    stored = future.result()
                    if draft.parent is not None:
                        draft.parent.register(draft.mountpoint, stored)
        self._drafts.clear()
        return stored

    def _levels(self) -> Iterator[list[Draft]]:
        """The drafts to be stored, the deepest first; what changed in one changes those above it."""
        by_depth: dict[int, list[Draft]] = {}
        for draft in self._drafts.values():
            by_depth.setdefault(draft.mountpoint.count(b"/"), []).append(draft)
        for depth in sorted(by_depth, reverse=True):
            changed = [draft for draft in by_depth[depth] if draft.is_changed or draft is self._root]
            for draft in by_depth[depth]:
                if draft not in changed:
                    draft.close()
            yield changed

    def close(self) -> None:
        """Forget everything that was not sealed."""
        for draft in self._drafts.values():
            draft.close()
        self._drafts.clear()

    @staticmethod
    def _previous(draft: Draft) -> Hash | None:
        reference = draft.parent.nested_at(draft.mountpoint) if draft.parent is not None else None
        return None if reference is None or reference.hash == UNKNOWN else reference.hash

    def _serving(self, path: bytes) -> Draft:
        """The draft that holds what is below the directory at *path*."""
        draft = self._root
        position = 0
        while position < len(path):
            end = path.find(b"/", position + 1)
            position = len(path) if end < 0 else end
            prefix = path[:position]
            reference = draft.nested_at(prefix) if prefix not in self._drafts else None
            if prefix in self._drafts:
                draft = self._drafts[prefix]
            elif reference is not None:
                draft = self._open(reference, draft)
        return draft

    def _open(self, reference: NestedReference, parent: Draft) -> Draft:
        known = self._drafts.get(reference.path)
        if known is not None:
            return known
        if reference.is_bind:
            raise RefusedError(f"{reference.path!r} shows an older revision and cannot be changed")
        draft = Draft.of_stored(self._fetch(reference.hash), reference.path, parent)
        if draft.catalog.root_prefix != reference.path:
            raise CatalogError(f"the catalog of {reference.path!r} says it belongs to {draft.catalog.root_prefix!r}")
        self._drafts[reference.path] = draft
        return draft

    def _entry(self, path: bytes) -> Entry | None:
        if path == ROOT:
            return self._root.lookup(ROOT)
        return self._serving(parent_path(path)).lookup(path)

    def _ensure_directory(self, path: bytes) -> None:
        """Make the directory at *path* and those above it where they are missing."""
        missing: list[bytes] = []
        while (entry := self._entry(path)) is None:
            missing.append(path)
            path = parent_path(path)
        if not entry.is_directory:
            raise RefusedError(f"{path!r} is not a directory")
        for each in reversed(missing):
            self._insert(each, self._directory(each, 0o755, 0, 0))

    def _directory(self, path: bytes, mode: int, uid: int, gid: int) -> Entry:
        return Entry(
            name=name_of(path),
            mode=stat.S_IFDIR | mode,
            uid=uid,
            gid=gid,
            size=DIRECTORY_SIZE,
            mtime_ns=self._now_ns,
            linkcount=2,
        )

    def _insert(
        self, path: bytes, entry: Entry, content: Content | None = None, *, shown_linkcount: int | None = None
    ) -> None:
        """Add an entry to a directory that is there."""
        parent = parent_path(path)
        self._serving(parent).insert(path, entry, content, shown_linkcount=shown_linkcount)
        self._touch(parent, 1 if entry.is_directory else 0)

    def _touch(self, path: bytes, subdirectories: int) -> None:
        """A name came to or left the directory at *path*: both rows of a mount point say so."""
        inside = self._serving(path)
        holders = {inside}
        if inside.mountpoint == path and inside.parent is not None:
            holders.add(inside.parent)
        for draft in holders:
            before = draft.lookup(path)
            if before is None:
                raise CatalogError(f"the catalog of {draft.mountpoint!r} has no entry for {path!r}")
            after = replace(before, linkcount=before.linkcount + subdirectories, mtime_ns=self._now_ns)
            draft.update(path, before, after)

    def _graft(self, operation: Graft) -> None:
        path, subtree = operation.path, operation.subtree
        if subtree.path != path:
            raise RefusedError(f"the subtree was prepared for {subtree.path!r}, not for {path!r}")
        self._ensure_directory(parent_path(path))
        draft = self._serving(parent_path(path))
        known = draft.nested_at(path)
        opened = self._drafts.get(path)
        if known is not None and known.hash == subtree.catalog.hash and (opened is None or not opened.is_changed):
            return
        self._remove(path)
        root = replace(subtree.root, flags=Flag.NESTED_MOUNTPOINT)
        self._insert(path, root, shown_linkcount=subtree.shown_linkcount)
        draft.attach(NestedReference(path, subtree.catalog.hash, subtree.catalog.size), subtree.counters)

    def _put_file(self, operation: PutFile) -> None:
        content = operation.content
        algorithm = content.hash.algorithm if content.hash is not None else content.chunks[0].hash.algorithm
        entry = Entry(
            name=name_of(operation.path),
            mode=stat.S_IFREG | stat.S_IMODE(operation.mode),
            uid=operation.uid,
            gid=operation.gid,
            size=content.size,
            mtime_ns=self._now_ns if operation.mtime_ns is None else operation.mtime_ns,
            hash=content.hash,
            compression=content.compression,
            algorithm=algorithm,
            xattrs=dict(operation.xattrs),
            flags=Flag.CHUNKED if content.chunks else Flag(0),
        )
        self._put(operation.path, entry, content, fixed_time=operation.mtime_ns is not None)

    def _put_symlink(self, operation: PutSymlink) -> None:
        target = operation.target if operation.expands else encode_literal(operation.target)
        entry = Entry(
            name=name_of(operation.path),
            mode=stat.S_IFLNK | 0o777,
            uid=operation.uid,
            gid=operation.gid,
            size=0,
            mtime_ns=self._now_ns if operation.mtime_ns is None else operation.mtime_ns,
            target=target,
            algorithm=Algorithm.SHA1,
        )
        self._put(operation.path, entry, None, fixed_time=operation.mtime_ns is not None)

    def _put(self, path: bytes, entry: Entry, content: Content | None, *, fixed_time: bool) -> None:
        known = self._entry(path)
        if known is not None:
            if known.is_directory:
                raise RefusedError(f"{path!r} is a directory and is not replaced by a file")
            if self._is_same(path, known, entry, content, fixed_time=fixed_time):
                return
            self._remove(path)
        self._ensure_directory(parent_path(path))
        self._insert(path, entry, content)

    def _is_same(self, path: bytes, known: Entry, entry: Entry, content: Content | None, *, fixed_time: bool) -> bool:
        kept = replace(
            known,
            rowid=0,
            flags=known.flags & Flag.CHUNKED,
            mtime_ns=known.mtime_ns if fixed_time else entry.mtime_ns,
        )
        if kept != entry:
            return False
        if content is None or not content.chunks:
            return True
        return self._serving(parent_path(path)).catalog.chunks(path, known.algorithm) == content.chunks

    def _make_directory(self, operation: MakeDirectory) -> None:
        path = operation.path
        entry = self._entry(path)
        if entry is None:
            self._ensure_directory(parent_path(path))
            entry = self._directory(path, stat.S_IMODE(operation.mode), operation.uid, operation.gid)
            self._insert(path, entry)
        if not entry.is_directory:
            raise RefusedError(f"{path!r} is not a directory")
        if operation.nested and not entry.flags & (Flag.NESTED_MOUNTPOINT | Flag.BIND_MOUNTPOINT):
            self._divide(path)

    def _divide(self, path: bytes) -> None:
        """Let a catalog of its own begin at the directory at *path*, which is inside a catalog."""
        above = self._serving(path)
        entry = above.lookup(path)
        if entry is None:
            raise CatalogError(f"the catalog of {above.mountpoint!r} has no entry for {path!r}")
        child = Draft.empty(path, replace(entry, rowid=0), above, self._empty)
        child.total_above = dict.fromkeys(child.total_above, 0)
        if (shown := above.shown_linkcount(path)) is not None:
            child.show_linkcount(path, shown)
        pending = [path]
        while pending:
            for below, found in above.children(pending.pop()):
                if below == path + b"/" + MARKER:
                    above.delete(below, found)
                    continue
                above.move(below, found, child)
                if found.flags & Flag.NESTED_MOUNTPOINT:
                    self._rehang(below, above, child)
                elif found.flags & Flag.BIND_MOUNTPOINT:
                    raise RefusedError(f"{below!r} shows an older revision and cannot be moved to another catalog")
                elif found.is_directory:
                    pending.append(below)
        above.update(path, entry, replace(entry, flags=entry.flags | Flag.NESTED_MOUNTPOINT))
        above.attach(NestedReference(path, UNKNOWN, 0), child.total_above)
        self._drafts[path] = child

    def _rehang(self, path: bytes, above: Draft, child: Draft) -> None:
        reference = above.nested_at(path)
        if reference is None:
            raise CatalogError(f"the mount point {path!r} has no catalog")
        opened = self._open(reference, above)
        above.detach(path, opened.total_above)
        child.attach(reference, opened.total_above)
        opened.parent = child

    def _remove(self, path: bytes) -> None:
        entry = self._entry(path)
        if entry is None:
            return
        draft = self._serving(parent_path(path))
        departed = Departed()
        pending = [(path, entry)]
        while pending:
            here, found = pending.pop()
            if found.flags & Flag.NESTED_MOUNTPOINT:
                self._forget(here, draft, departed)
            elif found.flags & Flag.BIND_MOUNTPOINT:
                raise RefusedError(f"{here!r} shows an older revision; removing it is not supported")
            elif found.is_directory:
                pending.extend(draft.children(here))
            elif found.link_group > 0:
                self._leave_group(here, found, draft)
            elif found.link_group < 0:
                departed.add(-found.link_group, found.linkcount)
            draft.delete(here, found)
        self._touch(parent_path(path), -1 if entry.is_directory else 0)
        self._restate_links(draft, departed)

    def _forget(self, path: bytes, draft: Draft, departed: Departed) -> None:
        """Take the nested catalog at *path*, and all that is open below it, out of the tree."""
        reference = draft.nested_at(path)
        if reference is None:
            return
        nested = self._open(reference, draft)
        total: Mapping[str, int] = nested.total_above
        if not nested.ends_links:
            for each in self._with_all_below(nested):
                each.add_departed(departed)
        draft.detach(path, total)
        for mountpoint in [known for known in self._drafts if is_below(known, path)]:
            dropped = self._drafts.pop(mountpoint)
            self._forgotten_changes += dropped.changes
            dropped.close()

    def _restate_links(self, draft: Draft, departed: Departed) -> None:
        """Names of links went that were served by *draft* or from below it: the others, wherever they are, say so.

        The nearest catalogs are looked at first, and no more of them than it takes to find all names.
        """
        left = departed.left()
        missing = sum(left.values())
        searched: Draft | None = None
        top: Draft | None = draft
        while missing > 0 and top is not None:
            for each in self._with_all_below(top, but=searched):
                missing -= each.restate_links(left)
                if missing <= 0:
                    return
            if top.ends_links:
                return
            searched, top = top, top.parent

    def _with_all_below(self, top: Draft, *, but: Draft | None = None) -> Iterator[Draft]:
        """*top* and every catalog below it, but not *but* and what is below that; untouched ones are closed again."""
        yield top
        for reference in list(top.catalog.nested()):
            if reference.is_bind or (but is not None and reference.path == but.mountpoint):
                continue
            is_new = reference.path not in self._drafts
            nested = self._open(reference, top)
            if not nested.ends_links:  # a tree that was grafted into this one has links of its own
                yield from self._with_all_below(nested, but=but)
            if is_new and not nested.is_changed and not self._has_below(reference.path):
                nested.close()
                del self._drafts[reference.path]

    def _has_below(self, mountpoint: bytes) -> bool:
        return any(is_below(known, mountpoint) and known != mountpoint for known in self._drafts)

    @staticmethod
    def _leave_group(path: bytes, entry: Entry, draft: Draft) -> None:
        """The other names of a hard link have one name less; a single one is no link."""
        others = [
            (other, found)
            for other, found in draft.children(parent_path(path))
            if found.link_group == entry.link_group and other != path
        ]
        for other, found in others:
            alone = len(others) == 1
            draft.relink(other, 0 if alone else found.link_group, len(others))


def _identity(entry: Entry | None) -> tuple[object, ...] | None:
    """What tells one state of a file from another. Chunked files have no hash of their own, but a time."""
    return None if entry is None else (entry.mode, entry.size, entry.mtime_ns, entry.hash, entry.target)


def apply_all(transaction: Transaction, operations: Sequence[Operation]) -> bool:
    """Apply *operations* in their order; True if they changed something."""
    before = transaction.changes
    for operation in operations:
        transaction.apply(operation)
    return transaction.changes != before


def _check_path(path: bytes) -> None:
    names = path.split(b"/")
    if len(names) < 2 or names[0] or any(name in (b"", b".", b"..") or b"\0" in name for name in names[1:]):  # noqa: PLR2004
        raise RefusedError(f"{path!r} is not a canonical path below the root")
    if names[-1] == MARKER:
        raise RefusedError(f"{path!r}: the marker of nested catalogs is set by MakeDirectory(nested=True)")
