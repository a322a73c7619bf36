"""Garbage collection: what no kept revision needs is removed, while others go on publishing.

1. Mark: every catalog of every kept revision is read; one that cannot be read stops the run before anything is lost.
2. List the store. What is neither marked nor young is garbage: objects of old revisions, and of uploads that were
   never published. Writers make young again what they count on (``ObjectWriter.claim``).
3. Forget the revisions that go, then remove: under the writer's lock, a few objects at a time. Before each batch the
   newest revision is marked if it is a new one, and each age is looked at again.

Catalogs go before the objects they refer to, and parents before children: the presence of a catalog implies that of
everything below it at every moment, so a run may stop anywhere. Source of the rules about what is kept: CernVM-FS 2.12,
swissknife_gc.cc, garbage_collection/.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import structlog

from fs.errors import AbsentError, FsError, RefusedError
from fs.format.databases import connect_bytes
from fs.format.entries import NestedReference
from fs.format.hashes import Hash, Suffix
from fs.format.manifest import MAX_MANIFEST_BYTES, Manifest
from fs.format.paths import ROOT
from fs.format.reflog import ReferenceType, references, remove_references
from fs.format.signature import SignedText
from fs.publish.keys import Keys
from fs.publish.leases import LeaseKeeper, holder, holding
from fs.publish.lock import exclusive
from fs.publish.marks import Marks, parents_first, read_catalog
from fs.publish.published import MANIFEST, MAX_REFLOG_BYTES, REFLOG, read_manifest, read_tags
from fs.publish.replica_state import ReplicaState, Scope
from fs.publish.repository import DEFAULT_TIMEOUT_S
from fs.publish.revisions import Revision, revisions
from fs.store.base import REFRESH_AFTER_S, StoredObject, TendedStore

DAY_S = 86_400.0
SHORTEST_GRACE_S = 2 * REFRESH_AFTER_S
"""What a writer counts on stays for one REFRESH_AFTER_S; the other is its time to publish."""

_BATCH = 500
_log = structlog.get_logger()

Reflog = dict[Hash, tuple[ReferenceType, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GcOptions:
    """What is kept, and how the run goes."""

    keep_revisions: int = 2  # the newest ones
    keep_newer_s: float = 3 * DAY_S  # and all that were the newest at some time since then
    pins: Sequence[Hash] = ()  # root catalogs to keep beside these and the named ones
    grace_s: float = 3 * DAY_S  # no object younger than this is removed
    is_alone: bool = False  # nobody else writes: the grace period may be short
    dry_run: bool = False
    most_objects: int | None = None  # that are removed in this run
    leases: LeaseKeeper | None = None  # needed if writers of other machines publish to the storage
    timeout_s: float = DEFAULT_TIMEOUT_S  # to wait for writers, each time
    clock: Callable[[], float] = time.time  # as the publishers'; ages of objects go by the store's own
    report: Callable[[int, int], None] = lambda _done, _total: None  # objects removed, of how many


@dataclass(frozen=True, slots=True)
class Garbage:
    """One object that is removed, and why."""

    object: StoredObject
    reason: str


@dataclass(slots=True, kw_only=True)
class GcReport:
    """What a run found and did."""

    name: str = ""
    revision: int = 0
    is_resumed: bool = False  # marks of an interrupted run were used
    kept: list[int] = field(default_factory=list)  # revisions of the main line
    kept_tags: int = 0
    live_objects: int = 0
    listed_objects: int = 0
    listed_bytes: int = 0
    young_objects: int = 0  # not needed, but too young to go
    garbage_objects: int = 0
    garbage_bytes: int = 0
    garbage: list[Garbage] = field(default_factory=list)  # of a dry run
    removed_objects: int = 0
    removed_bytes: int = 0
    spared_objects: int = 0  # became needed again during the run
    leftovers: int = 0  # unfinished uploads removed

    @property
    def is_complete(self) -> bool:
        """False if garbage is left for a further run."""
        return self.removed_objects + self.spared_objects >= self.garbage_objects


def collect(store: TendedStore, private: Path, options: GcOptions, keys: Keys | None = None) -> GcReport:
    """Remove what is not needed from the repository in *store*.

    Args:
        store: of the repository.
        private: its writer's private folder.
        options: what is kept, and how.
        keys: if given, the manifest is signed anew so that it names the new reflog; without them it names the old one,
            as after a collection by the reference's tools.

    Raises:
        RefusedError: the repository does not allow it, or the options are not safe.
        AbsentError, CorruptError, CatalogError, UnreachableError: something that is kept cannot be read; nothing was
            removed.
        LockedError: somebody else wrote all the time; running again goes on.
    """
    _check_options(options)
    run = _Run(store, private, options, keys)
    scope = _mirrored(store)
    with exclusive(private / "gc.lock", timeout_s=0), Marks(private / "gc.db", store, scope) as marks:
        run.go(marks)
        if run.report.is_complete or options.dry_run:
            marks.discard()
    return run.report


class _Run:
    def __init__(self, store: TendedStore, private: Path, options: GcOptions, keys: Keys | None) -> None:
        self._store = store
        self._private = private
        self._options = options
        self._keys = keys
        self._known: Manifest | None = None  # the newest one whose tree is marked
        self._oldest_kept_unix_s = 0
        self.report = GcReport()

    def go(self, marks: Marks) -> None:
        manifest = read_manifest(self._store)
        if not manifest.garbage_collectable:
            raise RefusedError(f"{manifest.name} says that no revision may be removed (G is no in its manifest)")
        self.report.name, self.report.revision = manifest.name, manifest.revision
        reflog = self._reflog()
        roots = self._kept_roots(manifest, reflog)
        self.report.is_resumed = marks.begin(roots)
        self._mark(marks, manifest, reflog)
        garbage = self._find(marks, reflog)
        if self._options.dry_run:
            self._explain(marks, garbage, reflog)
            return
        if garbage:
            self._sweep(marks, garbage)
        if self._keys is not None:
            self._sign(self._keys)
        self.report.leftovers = self._store.remove_leftovers(self._limit())

    def _limit(self) -> float:
        """Objects from before that time are old enough."""
        return self._store.now_unix_s() - self._options.grace_s

    def _reflog(self) -> Reflog:
        try:
            database = self._store.read_named(REFLOG, limit_bytes=MAX_REFLOG_BYTES)
        except AbsentError as error:
            raise RefusedError("without its reflog nobody knows which revisions a repository has") from error
        with closing(connect_bytes(database)) as connection:
            return references(connection)

    def _kept_roots(self, manifest: Manifest, reflog: Reflog) -> list[Hash]:
        line = list(self._main_line(manifest, reflog))
        tags = read_tags(self._store, manifest)
        self._oldest_kept_unix_s = reflog.get(line[-1].root_catalog, (None, line[-1].published_unix_s))[1]
        self.report.kept = [revision.number for revision in line]
        self.report.kept_tags = len(tags)
        roots = [revision.root_catalog for revision in line] + [tag.root_catalog for tag in tags]
        return list(dict.fromkeys([*roots, *self._options.pins, *_pinned(self._private)]))

    def _main_line(self, manifest: Manifest, reflog: Reflog) -> Iterator[Revision]:
        """From the newest revision back to the last that is kept."""
        since = self._options.clock() - self._options.keep_newer_s
        last: Revision | None = None
        for index, revision in enumerate(revisions(self._store, manifest)):
            last = revision
            yield revision
            published = reflog.get(revision.root_catalog, (None, revision.published_unix_s))[1]
            # the first that is older was the newest one at that time, so it is kept as well
            if index + 1 >= self._options.keep_revisions and published < since:
                return
        self._check_end(last, reflog)

    def _check_end(self, last: Revision | None, reflog: Reflog) -> None:
        """The line ends where nothing came before, or where an earlier collection ended it; never at a lost catalog."""
        if last is None:
            raise AbsentError("the root catalog of the newest revision is not there; nothing is removed")
        with closing(read_catalog(self._store, NestedReference(ROOT, last.root_catalog, 0))) as catalog:
            previous = catalog.previous
        if previous is not None and previous in reflog and not self._store.has(previous, Suffix.CATALOG):
            text = f"the root catalog {previous} before revision {last.number} is lost; nothing is removed"
            raise AbsentError(text)

    def _mark(self, marks: Marks, manifest: Manifest, reflog: Reflog) -> None:
        """Mark what *manifest* needs, and all that is queued."""
        own = (manifest.certificate, manifest.history, manifest.metainfo)
        marks.add_objects(name for name in own if name is not None)
        marks.add_objects(
            name
            for name, (kind, published) in reflog.items()
            if kind is not ReferenceType.CATALOG and published >= self._oldest_kept_unix_s
        )
        marks.add_roots([manifest.root_catalog, *(tag.root_catalog for tag in read_tags(self._store, manifest))])
        try:
            catalogs = marks.walk()
        except FsError as error:
            _log.error("collection_stopped", repository=manifest.name, reason=str(error))
            raise
        self._known = manifest
        _log.info("marked", repository=manifest.name, revision=manifest.revision, catalogs=catalogs)

    def _find(self, marks: Marks, reflog: Reflog) -> list[StoredObject]:
        """The garbage, in the order in which it may be removed."""
        limit = self._limit()
        unneeded: list[StoredObject] = []
        for each in self._store.objects():
            self.report.listed_objects += 1
            self.report.listed_bytes += each.size_bytes
            if not marks.is_live(each.name):
                unneeded.append(each)
        young = [each for each in unneeded if each.modified_unix_s >= limit]
        marks.add_young(each.name for each in young if each.suffix is Suffix.CATALOG)
        marks.walk()
        self.report.young_objects = len(young)
        self.report.live_objects = len(marks)
        garbage = [each for each in unneeded if each.modified_unix_s < limit and not marks.is_live(each.name)]
        self.report.garbage_objects = len(garbage)
        self.report.garbage_bytes = sum(each.size_bytes for each in garbage)
        catalogs = parents_first(self._store, [each for each in garbage if each.suffix is Suffix.CATALOG])
        # roots have no parents; those that the reflog knows go first, so that a capped run removes whole revisions
        catalogs.sort(key=lambda each: each.name not in reflog)
        return catalogs + [each for each in garbage if each.suffix is not Suffix.CATALOG]

    def _explain(self, marks: Marks, garbage: Sequence[StoredObject], reflog: Reflog) -> None:
        roots = [
            name for name, (kind, _) in reflog.items() if kind is ReferenceType.CATALOG and not marks.is_live(name)
        ]
        numbered = [(revision, name) for name in roots if (revision := self._number(name)) is not None]
        marks.explain(sorted(numbered, key=lambda pair: -pair[0]))
        self.report.garbage = [Garbage(each, _reason(each, marks, reflog)) for each in garbage]

    def _number(self, root: Hash) -> int | None:
        try:
            with closing(read_catalog(self._store, NestedReference(ROOT, root, 0))) as catalog:
                return catalog.revision
        except FsError:
            return None

    def _sweep(self, marks: Marks, garbage: Sequence[StoredObject]) -> None:
        cap = self._options.most_objects
        chosen = iter(garbage if cap is None else garbage[:cap])
        total = len(garbage) if cap is None else min(cap, len(garbage))
        while batch := list(islice(chosen, _BATCH)):
            with self._locked():
                manifest = read_manifest(self._store)
                if manifest != self._known:
                    self._mark(marks, manifest, self._reflog())
                doomed = self._still_garbage(marks, batch)
                self._forget([each.name for each in doomed])
                self._store.remove(doomed)
            self.report.removed_objects += len(doomed)
            self.report.removed_bytes += sum(each.size_bytes for each in doomed)
            self.report.spared_objects += len(batch) - len(doomed)
            self._options.report(self.report.removed_objects, total)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep all writers out, those of other machines by a lease."""
        timeout_s, keeper = self._options.timeout_s, self._options.leases
        with ExitStack() as stack:
            stack.enter_context(exclusive(self._private / "lock", timeout_s=timeout_s))
            if keeper is not None:
                held = holding(keeper, self.report.name, ROOT, owner=holder("gc"), timeout_s=timeout_s)
                stack.enter_context(held)
            yield

    def _still_garbage(self, marks: Marks, batch: Sequence[StoredObject]) -> list[StoredObject]:
        """Those of *batch* that nobody has claimed since they were listed."""
        limit = self._limit()
        unneeded = [each for each in batch if not marks.is_live(each.name)]
        return [each for each in self._store.survey(unneeded) if each is not None and each.modified_unix_s < limit]

    def _forget(self, doomed: Sequence[Hash]) -> None:
        """Take what is about to be removed out of the reflog first: it may name too little for a moment, never more."""
        with closing(connect_bytes(self._store.read_named(REFLOG, limit_bytes=MAX_REFLOG_BYTES))) as connection:
            gone = references(connection).keys() & set(doomed)
            if gone:
                connection.execute("PRAGMA query_only=OFF")
                remove_references(connection, gone)
                self._store.replace_named(REFLOG, connection.serialize())

    def _sign(self, keys: Keys) -> None:
        """Let the manifest name the reflog as it is now; nothing else of it changes."""
        with self._locked():
            envelope = self._store.read_named(MANIFEST, limit_bytes=MAX_MANIFEST_BYTES)
            manifest = Manifest.parse(SignedText.parse(envelope).text)
            algorithm = manifest.root_catalog.algorithm
            reflog = Hash.of(self._store.read_named(REFLOG, limit_bytes=MAX_REFLOG_BYTES), algorithm)
            if manifest.reflog != reflog:
                signed = keys.sign_manifest(replace(manifest, reflog=reflog).encode(), algorithm)
                self._store.swap_named(MANIFEST, signed, expected=envelope)


def _check_options(options: GcOptions) -> None:
    if options.keep_revisions < 1:
        raise RefusedError("the newest revision is always kept: keep_revisions is at least 1")
    if options.grace_s < SHORTEST_GRACE_S and not options.is_alone:
        raise RefusedError(
            f"a grace period below {SHORTEST_GRACE_S / 3600:g} hours can take objects from a writer at work; it is "
            "allowed only if nobody writes during the run, which you have to say"
        )


def _mirrored(store: TendedStore) -> Scope:
    """The part of the repository that is there. Raises RefusedError if a mirror is only half made."""
    state = ReplicaState.read(store)
    if state.unsettled_since_unix_s:
        raise RefusedError("the mirror is not complete; let replication finish first")
    return state.scope or Scope()


def _pinned(private: Path) -> list[Hash]:
    """Root catalogs that somebody keeps by a file in ``pins``: one hash in each, the file's name is free."""
    folder = private / "pins"
    if not folder.is_dir():
        return []
    return [Hash.parse(file.read_text().strip()) for file in sorted(folder.iterdir())]


def _reason(each: StoredObject, marks: Marks, reflog: Reflog) -> str:
    revision = marks.revision_of(each.name)
    match each.suffix:
        case Suffix.HISTORY:
            return "a list of tags that a newer one has replaced"
        case Suffix.CERTIFICATE | Suffix.METAINFO:
            return "no kept revision was signed or described with it"
        case Suffix.CATALOG if revision is not None and each.name in reflog:
            return f"root of revision {revision}, which is not kept"
    if revision is not None:
        return f"last used by revision {revision}, which is not kept"
    return "no revision refers to it: left by an upload that was never published"
