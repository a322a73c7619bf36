"""What must be true inside one catalog, and between it and the entry that it hangs from.

Source: CernVM-FS 2.12, swissknife_check.cc.
"""

import sqlite3
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from fs.errors import CatalogError
from fs.format.catalog import Catalog
from fs.format.compression import Compression
from fs.format.entries import COUNTER_NAMES, Entry, Flag, NestedReference, count_entry, is_name, type_flags
from fs.format.hashes import Hash, Suffix
from fs.format.paths import ROOT, name_of, path_key
from fs.publish.catalogs import MARKER

_TRANSITION = Flag.NESTED_MOUNTPOINT | Flag.NESTED_ROOT
_REGULAR_ONLY = Flag.CHUNKED | Flag.EXTERNAL | Flag.DIRECT_IO
_KIND = Flag.DIRECTORY | Flag.FILE | Flag.LINK | Flag.SPECIAL


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be."""

    kind: str  # one word: manifest, signature, catalog, entry, counter, link, chunk, object, …
    where: str  # path in the repository, or name of a file or object
    message: str
    is_note: bool = False  # worth knowing, but legal


@dataclass(frozen=True, slots=True)
class ObjectUse:
    """An object that the repository refers to, and what it must hold."""

    hash: Hash
    suffix: Suffix
    size: int  # plain bytes
    compression: Compression
    path: bytes  # one of the files that need it


@dataclass(slots=True)
class CatalogReport:
    """What one catalog holds, for those above it."""

    own: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTER_NAMES, 0))
    subtree: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTER_NAMES, 0))
    entries: int = 0
    root: Entry | None = None
    mountpoints: dict[bytes, Entry] = field(default_factory=dict)
    nested: list[NestedReference] = field(default_factory=list)
    uses: list[ObjectUse] = field(default_factory=list)
    shown_linkcounts: dict[bytes, int] = field(default_factory=dict)  # of mount points and root, if not as stored
    links: list[tuple[int, int]] = field(default_factory=list)  # group over several directories, its stated count
    findings: list[Finding] = field(default_factory=list)

    @property
    def total(self) -> dict[str, int]:
        """Own plus subtree, as counted, not as stated."""
        return {name: self.own[name] + self.subtree[name] for name in COUNTER_NAMES}


def shown(path: bytes) -> str:
    """*path* for people."""
    return path.decode("utf-8", "backslashreplace") or "/"


def check_catalog(connection: sqlite3.Connection, reference: NestedReference) -> tuple[Catalog, CatalogReport]:
    """Check the rows of the catalog that is open on *connection*.

    Counters of what lies below are not known yet; see ``check_counters``.

    Raises:
        CatalogError: it is not a catalog at all.
    """
    catalog = Catalog(connection, reference.path, as_stored=True)
    check = _Check(connection, catalog, reference.path)
    check.run()
    return catalog, check.report


def check_counters(report: CatalogReport, catalog: Catalog) -> Iterator[Finding]:
    """Compare the catalog's own numbers with what was counted in it and below it."""
    stated = catalog.counters()
    where = shown(catalog.mountpoint)
    for scope, counted, written in (("self", report.own, stated.own), ("subtree", report.subtree, stated.subtree)):
        yield from _different(where, scope, counted, written)


def _different(where: str, scope: str, counted: Mapping[str, int], stated: Mapping[str, int]) -> Iterator[Finding]:
    for name in COUNTER_NAMES:
        if counted[name] != stated[name]:
            text = f"counter {scope}_{name} is {stated[name]}, but there are {counted[name]}"
            yield Finding("counter", where, text)


def check_transition(above: Entry, inside: Entry, path: bytes) -> Iterator[Finding]:
    """The entry of a mount point and the root entry of its catalog say the same."""
    plain_above, plain_inside = (replace(entry, rowid=0, flags=entry.flags & ~_TRANSITION) for entry in (above, inside))
    if plain_above != plain_inside:
        differing = [
            name for name in Entry.__dataclass_fields__ if getattr(plain_above, name) != getattr(plain_inside, name)
        ]
        text = f"the mount point and the root of its catalog differ in {', '.join(differing)}"
        yield Finding("transition", shown(path), text)
    if not inside.flags & Flag.NESTED_ROOT:
        yield Finding("transition", shown(path), "the root entry is not marked as the root of a nested catalog")


class _Check:
    def __init__(self, connection: sqlite3.Connection, catalog: Catalog, mountpoint: bytes) -> None:
        self._db = connection
        self._catalog = catalog
        self._mountpoint = mountpoint
        self._has_marker = False
        self._shown = catalog.shown_linkcounts()
        self.report = CatalogReport()

    def run(self) -> None:
        self._check_database()
        if self._catalog.root_prefix != self._mountpoint:
            self._find("catalog", self._mountpoint, f"its root_prefix is {shown(self._catalog.root_prefix)}")
        self.report.nested = self._catalog.nested()
        self.report.own["nested"] = sum(not reference.is_bind for reference in self.report.nested)
        self.report.root = root = self._catalog.lookup(self._mountpoint)
        if root is None or not root.is_directory:
            self._find("catalog", self._mountpoint, "it has no root directory")
            return
        if self._mountpoint == ROOT and root.flags & _TRANSITION:
            self._find("entry", ROOT, "the root of the repository is marked as a nested catalog")
        self._count(root)
        self._note_shown(self._mountpoint)
        pending = [(self._mountpoint, root)]
        while pending:
            pending.extend(self._directory(*pending.pop()))
        self._check_whole()

    def _note_shown(self, path: bytes) -> None:
        if (key := path_key(path)) in self._shown:
            self.report.shown_linkcounts[path] = self._shown[key]

    def _check_database(self) -> None:
        verdict = bytes(self._db.execute("PRAGMA integrity_check(1)").fetchone()[0])
        if verdict != b"ok":
            self._find("catalog", self._mountpoint, f"its database is damaged: {verdict.decode(errors='replace')}")

    def _check_whole(self) -> None:
        rows = self._db.execute("SELECT count(*) FROM catalog").fetchone()[0]
        if rows != self.report.entries:
            text = f"{rows - self.report.entries} entries cannot be reached by their names"
            self._find("entry", self._mountpoint, text)
        known = {reference.path for reference in self.report.nested if not reference.is_bind}
        for path in known ^ set(self.report.mountpoints):
            has = "row but no mount point" if path in known else "mount point but no row"
            self._find("transition", path, f"a nested catalog has a {has}")
        if self._mountpoint != ROOT and not self._has_marker:
            self._find("transition", self._mountpoint, "a nested catalog has no marker")
        orphans = self._db.execute(
            "SELECT count(*) FROM chunks WHERE NOT EXISTS (SELECT 1 FROM catalog WHERE"
            " catalog.md5path_1 = chunks.md5path_1 AND catalog.md5path_2 = chunks.md5path_2)"
        ).fetchone()[0]
        if orphans:
            self._find("chunk", self._mountpoint, f"{orphans} chunks belong to no file")

    def _find(self, kind: str, where: bytes, message: str, *, is_note: bool = False) -> None:
        self.report.findings.append(Finding(kind, shown(where), message, is_note))

    def _count(self, entry: Entry, chunks: int = 0) -> None:
        self.report.entries += 1
        count_entry(self.report.own, entry, chunks=chunks)

    def _directory(self, path: bytes, directory: Entry) -> list[tuple[bytes, Entry]]:
        """Check what one directory holds; gives the directories in it that are in the same catalog."""
        below: list[tuple[bytes, Entry]] = []
        groups: dict[int, list[Entry]] = {}
        subdirectories = hidden = 0
        for key, entry in self._catalog.rows_in(path):
            here = path + b"/" + entry.name
            if not self._has_true_name(here, entry, key):
                continue
            self._entry(here, entry)
            if entry.is_directory:
                subdirectories += 1
                hidden += bool(entry.flags & Flag.HIDDEN)
                if entry.flags & Flag.NESTED_MOUNTPOINT:
                    self.report.mountpoints[here] = entry
                    self._note_shown(here)
                elif not entry.flags & Flag.BIND_MOUNTPOINT:
                    below.append((here, entry))
            elif entry.link_group > 0:
                groups.setdefault(entry.link_group, []).append(entry)
            elif entry.link_group < 0:
                self.report.links.append((entry.link_group, entry.linkcount))
        self._linkcounts(path, directory, subdirectories, hidden)
        for members in groups.values():
            self._group(path, members)
        return below

    def _linkcounts(self, path: bytes, directory: Entry, subdirectories: int, hidden: int) -> None:
        if directory.linkcount != subdirectories + 2:
            text = f"its link count is {directory.linkcount} with {subdirectories} subdirectories"
            self._find("link", path, text)
        shown = self._shown.get(path_key(path))
        if shown not in (None, subdirectories - hidden + 2):
            text = f"it shows the link count {shown} with {subdirectories - hidden} subdirectories that are not hidden"
            self._find("link", path, text)

    def _has_true_name(self, path: bytes, entry: Entry, key: tuple[int, int]) -> bool:
        """False if the entry cannot be found by its name."""
        if not entry.name or path_key(path) != key:
            self._find("entry", path, "its name does not belong to its path key")
            return False
        if not is_name(entry.name):
            self._find("entry", path, "no reader can show a file of this name", is_note=True)
        return True

    def _group(self, path: bytes, members: list[Entry]) -> None:
        first = members[0]
        where = path + b"/" + first.name
        if first.linkcount != len(members):
            self._find("link", where, f"its link count is {first.linkcount}, but it has {len(members)} names")
        if any(replace(member, name=b"", rowid=0) != replace(first, name=b"", rowid=0) for member in members):
            self._find("link", where, "names of one hard link differ in what they say")

    def _entry(self, path: bytes, entry: Entry) -> None:
        if entry.linkcount == 0:
            self._find("link", path, "its link count is 0")
        if entry.linkcount > 1 and entry.link_group == 0 and not entry.is_directory:
            self._find("link", path, f"it has {entry.linkcount} names but no hard link group")
        if entry.flags & _KIND != type_flags(entry.mode):
            self._find("entry", path, "its flags and its mode say different types")
        if not stat.S_IFMT(entry.mode):
            self._find("entry", path, "its mode has no type")
        if entry.is_directory and entry.link_group:
            self._find("link", path, "a directory is in a hard link group")
        if entry.name == MARKER:
            self._marker(path, entry)
        chunks = 0
        if entry.is_regular:
            chunks = self._content(path, entry)
        else:
            if entry.hash is not None and not entry.is_directory:
                self._find("entry", path, "something that is not a file has a content hash")
            if entry.flags & _REGULAR_ONLY:
                self._find("entry", path, "something that is not a file has flags of files")
            self._special(path, entry)
        self._count(entry, chunks)

    def _special(self, path: bytes, entry: Entry) -> None:
        if entry.is_directory or entry.is_symlink:
            return
        if entry.target:
            self._find("entry", path, "a special file has a link target")
        if stat.S_ISFIFO(entry.mode) or stat.S_ISSOCK(entry.mode):
            size = self._db.execute("SELECT size FROM catalog WHERE rowid=?", (entry.rowid,)).fetchone()[0]
            if size:
                self._find("entry", path, f"a pipe or socket has {size} bytes")

    def _marker(self, path: bytes, entry: Entry) -> None:
        if path == self._mountpoint + b"/" + name_of(path) and self._mountpoint != ROOT:
            self._has_marker = entry.is_regular
        else:
            self._find("transition", path, "the marker of nested catalogs lies where none begins")

    def _content(self, path: bytes, entry: Entry) -> int:
        """Note which objects a file needs; gives the number of its chunks."""
        is_external = bool(entry.flags & Flag.EXTERNAL)
        if not entry.flags & Flag.CHUNKED:
            if entry.hash is None:
                self._find("entry", path, "a file has neither a content hash nor chunks")
            elif not is_external:
                self._use(entry.hash, Suffix.PLAIN, entry.size, entry, path)
            return 0
        chunks = self._catalog.chunks(path, entry.algorithm)
        try:
            self._catalog.content(path, entry)
        except CatalogError as error:
            self._find("chunk", path, str(error))
        if entry.hash is not None and not is_external:
            self._use(entry.hash, Suffix.PLAIN, entry.size, entry, path)
        if not is_external:
            for chunk in chunks:
                self._use(chunk.hash, Suffix.CHUNK, chunk.size, entry, path)
        return len(chunks)

    def _use(self, name: Hash, suffix: Suffix, size: int, entry: Entry, path: bytes) -> None:
        self.report.uses.append(ObjectUse(name, suffix, size, entry.compression, path))
