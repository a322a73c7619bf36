"""The writer's view of one repository: ingest, prepare, commit, read."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from fs.errors import AbsentError, FsError, RefusedError
from fs.format.catalog_rows import DEFAULT_TTL_S
from fs.format.compression import deflate_classic
from fs.format.databases import connect_bytes
from fs.format.entries import DIRECTORY_SIZE, Entry
from fs.format.hashes import Algorithm, Hash, Suffix
from fs.format.history import MAGIC_TAGS, TRUNK, Tag, check_tag_name
from fs.format.manifest import MAX_MANIFEST_BYTES, Manifest
from fs.format.paths import ROOT
from fs.format.reflog import ReferenceType, references
from fs.format.tree import Content, Node
from fs.format.whitelist import Whitelist
from fs.publish.catalogs import CatalogOptions, StoredCatalog, Subtree, publish_tree, store_catalog
from fs.publish.draft import Draft
from fs.publish.group import Group, Request
from fs.publish.ingest import Ingester, store_empty
from fs.publish.keys import Keys, create_keys, load_keys
from fs.publish.leases import DEFAULT_LIFETIME_S, HeldLease, LeaseKeeper, holder, holding
from fs.publish.lock import exclusive
from fs.publish.operations import Operation, RequireRevision
from fs.publish.packing import Codec, DedupIndex, Packer, Packing
from fs.publish.published import (
    MANIFEST,
    MASTER_REPLICA,
    MAX_REFLOG_BYTES,
    REFLOG,
    next_history,
    next_reflog,
    read_manifest,
    read_tags,
    read_whitelist,
)
from fs.publish.signers import Digest
from fs.publish.signing import (
    WHITELIST_LIFETIME,
    expiry_warnings,
    fingerprint,
    published_certificate,
    warn_of_expiry,
    write_whitelist,
)
from fs.publish.transaction import Base, Transaction, apply_all
from fs.publish.view import CatalogCache, View
from fs.publish.writer_processes import WriterProcesses
from fs.store.base import Store
from fs.store.local import LocalStore
from fs.store.places import Storage, open_storage

DEFAULT_TIMEOUT_S = 60.0

_WARN_EVERY_S = 6 * 3600
_NAME = re.compile(r"[A-Za-z0-9._-]{1,60}")
_ROOT_MODE = 0o040755


@dataclass(frozen=True, slots=True)
class Commit:
    """What came of a commit."""

    revision: int
    root_hash: Hash
    changed: bool  # False: there was nothing to do, and this is the revision that was there


@dataclass(frozen=True, slots=True)
class Settings:
    """How a repository is written; nothing of it has to be the same at each commit."""

    codec: Codec = field(default_factory=Codec)
    catalogs: CatalogOptions = field(default_factory=CatalogOptions)
    writer_processes: int = 0  # in which contents are packed, if the storage is a directory; 0: in this one
    ttl_s: int | None = None  # None: as it was
    clock: Callable[[], float] = time.time  # Unix seconds
    leases: LeaseKeeper | None = None  # needed if writers of several machines publish to one storage
    lease_lifetime_s: float = DEFAULT_LIFETIME_S  # after which others take over from a writer that is gone


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What one call of ``commit`` wants."""

    operations: Sequence[Operation]
    tag: str | None
    description: str


_Request = Request[_Wanted, Commit]


class Repository:
    """One repository in a store, with the right to publish. Thread-safe."""

    def __init__(
        self,
        name: str,
        store: Store,
        keys: Keys,
        *,
        private: Path,
        settings: Settings | None = None,
    ) -> None:
        """Put together what ``open`` and ``create`` make.

        Args:
            name: fully qualified repository name.
            store: where everything goes.
            keys: what is signed with.
            private: a directory of the writer, for the lock and the index of contents.
            settings: how it is written.
        """
        self.name = name
        self._store = store
        self._keys = keys
        self._private = private
        self._settings = settings or Settings()
        self._clock = self._settings.clock
        self._cache = CatalogCache(store)
        self._guard = threading.Lock()
        self._lease: HeldLease | None = None  # these two belong to whoever is in _locked
        self._base: bytes | None = None  # the manifest that is to be replaced
        self._group: Group[_Wanted, Commit] = Group(self._locked, self._commit_together)
        self._warn_again_unix_s = 0
        self._ingester: Ingester | None = None
        self._view: View | None = None

    @classmethod
    def create(
        cls, name: str, storage: str, keys: Path, *, settings: Settings | None = None, durable: bool = True
    ) -> "Repository":
        """Make a new repository: directories, keys that are missing, whitelist, first revision.

        Raises:
            RefusedError: the name or the storage will not do, or there is a repository already.
        """
        if not _NAME.fullmatch(name):
            raise RefusedError(f"{name!r} cannot name a repository: up to 60 of letters, digits and . _ - can")
        place = open_storage(storage, durable=durable)
        _refuse_if_there(place)
        place.prepare()
        now = datetime.now(UTC)
        made = cls(name, place.store, create_keys(keys, name, now), private=place.private, settings=settings)
        with made._locked(DEFAULT_TIMEOUT_S):
            _refuse_if_there(place)  # whoever made it while this one waited
            made._publish_first()
        return made

    @classmethod
    def open(
        cls, name: str, storage: str, keys: Path, *, settings: Settings | None = None, durable: bool = True
    ) -> "Repository":
        """The repository *name* in *storage*, with the keys in directory *keys*.

        Raises:
            AbsentError: there is no repository, or a key is missing.
            RefusedError: it has another name, or others may read a key.
        """
        place = open_storage(storage, durable=durable)
        manifest = read_manifest(place.store)
        if manifest.name != name:
            raise RefusedError(f"the repository in {place.shown} is {manifest.name}, not {name}")
        place.prepare()
        return cls(name, place.store, load_keys(keys, name), private=place.private, settings=settings)

    @property
    def revision(self) -> int:
        """Number of the newest revision."""
        return read_manifest(self._store).revision

    @property
    def manifest(self) -> Manifest:
        """The newest manifest."""
        return read_manifest(self._store)

    def sign(self, data: bytes) -> bytes:
        """A signature of *data* by the key that signs revisions (RSA, PKCS#1 v1.5, SHA-256)."""
        return self._keys.repository.sign(data, Digest.SHA256)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate of that key."""
        return self._keys.certificate_pem

    @property
    def certificate_expires(self) -> datetime:
        """Until when that certificate is valid."""
        return self._keys.certificate_expires

    def ingester(self) -> Ingester:
        """Adds contents; the same one at each call."""
        with self._guard:
            if self._ingester is None:
                algorithm = read_manifest(self._store).root_catalog.algorithm
                codec = replace(self._settings.codec, algorithm=algorithm)
                self._ingester = Ingester(self._store, self._packing(codec))
            return self._ingester

    def _packing(self, codec: Codec) -> Packing:
        index = self._private / "contents.db"
        processes = self._settings.writer_processes
        if processes and isinstance(self._store, LocalStore):
            return WriterProcesses(self._store, index, codec, processes)
        return Packer(self._store, DedupIndex(index), codec)

    def prepare_subtree(self, path: bytes, root: Node) -> Subtree:
        """Build and store the catalogs of the tree *root* for *path*; takes no lock, changes nothing that is visible.

        Raises:
            RefusedError: the tree holds something that the format cannot.
        """
        return publish_tree(path, root, self._store, self._catalog_options())

    def prepare_subtrees(self, trees: Mapping[bytes, Node]) -> list[Subtree]:
        """As ``prepare_subtree`` for each path and tree of *trees*, in another process if there is one."""
        packing = self.ingester().packing
        if isinstance(packing, WriterProcesses):
            return packing.build(trees, self._catalog_options())
        return [self.prepare_subtree(path, root) for path, root in trees.items()]

    def _catalog_options(self) -> CatalogOptions:
        return replace(self._settings.catalogs, algorithm=read_manifest(self._store).root_catalog.algorithm)

    def commit(
        self,
        operations: Sequence[Operation],
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        tag: str | None = None,
        description: str = "",
    ) -> Commit:
        """Apply *operations* in their order to the newest revision and publish the result, all or nothing.

        What other threads want committed meanwhile goes into the same revision. Its number is the result's, even if
        these operations change nothing themselves.

        Args:
            operations: what to do.
            timeout_s: how long to wait for another writer.
            tag: a name for the new revision.
            description: of the tag.

        Raises:
            LockedError: another writer held the lock all the time.
            RefusedError: an operation makes no sense for what is there; nothing was changed.
            OvertakenError: something that an operation requires is not there any more; nothing was changed.
        """
        if tag is not None:
            check_tag_name(tag)
        if self._ingester is not None:
            self._ingester.flush()
        return self._group.submit(_Wanted(tuple(operations), tag, description), timeout_s)

    def _commit_together(self, waiting: Sequence[_Request]) -> None:
        """Publish all that is *waiting* as one revision; who insists on what is the newest one gets it to itself."""
        alone: list[_Request] = []
        together: list[_Request] = []
        for request in waiting:
            insists = any(isinstance(each, RequireRevision) for each in request.wanted.operations)
            (alone if insists else together).append(request)
        for group in [[request] for request in alone] + [together]:
            if group:
                self._commit(group)

    def _commit(self, group: Sequence[_Request]) -> None:
        """Publish one revision with everything in *group* that makes sense."""
        manifest = read_manifest(self._store)
        now_ns = self._now_ns(manifest)
        now_s = now_ns // 1_000_000_000
        transaction, changed = self._applied(manifest, group, now_ns)
        try:
            ttl_s = self._settings.ttl_s or manifest.ttl_s
            named = [request for request in changed if request.wanted.tag is not None]
            if not transaction.changes and not named and ttl_s == manifest.ttl_s:
                _settle(changed, manifest.revision, manifest.root_catalog, is_new=False)
                return
            revision = manifest.revision + 1
            keep = partial(self._keep, manifest.root_catalog.algorithm)
            sizes = self._settings.catalogs
            transaction.split(sizes.most_changed_rows, sizes.least_changed_rows)
            root = transaction.seal(keep, revision=revision, last_modified_unix_s=now_s, ttl_s=ttl_s)
        finally:
            transaction.close()
        tags = [_tag(TRUNK, root, revision, now_s)]
        for request in named:
            name, description = str(request.wanted.tag), request.wanted.description
            tags.append(replace(tags[0], name=name, description=description))
        self._publish(
            replace(
                manifest,
                root_catalog=root.hash,
                catalog_size=root.size,
                ttl_s=ttl_s,
                revision=revision,
                published_unix_s=now_s,
            ),
            tags,
        )
        self._warn(now_s)
        _settle(changed, revision, root.hash, is_new=ttl_s != manifest.ttl_s)

    def _applied(
        self, manifest: Manifest, group: Sequence[_Request], now_ns: int
    ) -> tuple[Transaction, dict[_Request, bool]]:
        """A transaction with everything in *group* that makes sense, and which of that changes something.

        Operations cannot be taken back, so if some make no sense it is begun again without them.
        """
        base = Base(StoredCatalog(manifest.root_catalog, manifest.catalog_size), manifest.revision)
        empty = self._empty(manifest.root_catalog.algorithm)
        while True:
            transaction = Transaction(base, fetch=self._cache.fetch, now_ns=now_ns, empty=empty)
            changed: dict[_Request, bool] = {}
            for request in group:
                if request.is_done:
                    continue
                try:
                    changed[request] = apply_all(transaction, request.wanted.operations)
                except FsError as error:
                    request.fail(error)
                    break
                except BaseException:
                    transaction.close()
                    raise
            else:
                return transaction, changed
            transaction.close()

    def _warn(self, now_s: int) -> None:
        """Say, now and then, what expires soon."""
        if now_s >= self._warn_again_unix_s:
            self._warn_again_unix_s = now_s + _WARN_EVERY_S
            with suppress(FsError):  # what was published is published
                warn_of_expiry(self.name, self.expiry_warnings())

    def rollback(self, root: Hash, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Commit:
        """Publish a new revision with the content of an older one, whose root catalog is *root*.

        Raises:
            AbsentError: that revision was collected.
            LockedError: another writer held the lock all the time.
        """
        with self._locked(timeout_s):
            manifest = read_manifest(self._store)
            if root == manifest.root_catalog:
                return Commit(manifest.revision, root, changed=False)
            self._check_kept(root)
            revision, now_s = manifest.revision + 1, self._now_ns(manifest) // 1_000_000_000
            draft = Draft.of_stored(self._cache.fetch(root), ROOT, None)
            stored = self._keep(
                manifest.root_catalog.algorithm,
                draft.finish(
                    revision=revision,
                    last_modified_unix_s=now_s,
                    previous=manifest.root_catalog,
                    ttl_s=manifest.ttl_s,
                ),
            )
            changed = replace(
                manifest,
                root_catalog=stored.hash,
                catalog_size=stored.size,
                revision=revision,
                published_unix_s=now_s,
            )
            self._publish(changed, [_tag(TRUNK, stored, revision, now_s)])
            return Commit(revision, stored.hash, changed=True)

    def _check_kept(self, root: Hash) -> None:
        """Refuse a revision whose objects may be going at this moment: collections take it out of the reflog first."""
        with closing(connect_bytes(self._store.read_named(REFLOG, limit_bytes=MAX_REFLOG_BYTES))) as connection:
            is_known = root in references(connection)
        if not is_known or not self._store.claim(root, Suffix.CATALOG):
            raise AbsentError(f"the revision with the root catalog {root} was collected as garbage, or never published")

    def view(self) -> View:
        """A reader of the newest revision; cheap to ask for again and again."""
        manifest = read_manifest(self._store)
        with self._guard:
            if self._view is None or self._view.root_catalog != manifest.root_catalog:
                # readers of the old view may be at work: it goes when they let it go
                self._view = View(self._store, manifest.root_catalog, revision=manifest.revision, cache=self._cache)
            return self._view

    def tags(self) -> list[Tag]:
        """The named tags, newest revision first."""
        return read_tags(self._store, read_manifest(self._store))

    def set_tag(self, tag: Tag, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Name a revision, or move a name. Raises AbsentError, RefusedError, LockedError."""
        check_tag_name(tag.name)
        with self._locked(timeout_s):
            self._check_kept(tag.root_catalog)
            self._publish(read_manifest(self._store), [tag])

    def remove_tag(self, name: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Remove a name. Raises AbsentError, RefusedError, LockedError."""
        check_tag_name(name)
        with self._locked(timeout_s):
            manifest = read_manifest(self._store)
            if all(tag.name != name for tag in read_tags(self._store, manifest)):
                raise AbsentError(f"there is no tag {name}")
            self._publish(manifest, [], removed=name)

    def whitelist_expires(self) -> datetime:
        """Until when clients take new revisions."""
        return read_whitelist(self._store).expires

    def resign(self, *, lifetime: timedelta = WHITELIST_LIFETIME) -> datetime:
        """Sign a new whitelist; gives its expiry."""
        return self._write_whitelist([self._keys.certificate_pem], self.manifest.root_catalog.algorithm, lifetime)

    def allow_certificate(self, certificate_pem: bytes) -> None:
        """Sign a new whitelist with a further certificate, beside that of the newest revision and the present one."""
        manifest = self.manifest
        known = [self._keys.certificate_pem, certificate_pem]
        if manifest.certificate is not None:
            known.append(published_certificate(self._store, manifest.certificate))
        self._write_whitelist(known, manifest.root_catalog.algorithm, WHITELIST_LIFETIME)

    def sign_again(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Sign the newest revision with the present key. Raises LockedError."""
        with self._locked(timeout_s):
            self._publish(self.manifest, [])

    def expiry_warnings(self) -> list[str]:
        """What whoever looks after the repository should do soon, one sentence each."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        return expiry_warnings(self.whitelist_expires(), self._keys.certificate_expires, now)

    def _write_whitelist(self, certificates: Sequence[bytes], algorithm: Algorithm, lifetime: timedelta) -> datetime:
        now = datetime.fromtimestamp(self._clock(), UTC)
        known = dict.fromkeys(fingerprint(certificate, algorithm) for certificate in certificates)
        whitelist = Whitelist(issued=now, expires=now + lifetime, name=self.name, fingerprints=tuple(known))
        write_whitelist(self._store, self._keys, whitelist)
        return whitelist.expires

    @contextmanager
    def _locked(self, timeout_s: float) -> Iterator[None]:
        """Keep other writers out: those of this machine by a file lock, those of others by a lease."""
        with exclusive(self._private / "lock", timeout_s=timeout_s), self._leased(timeout_s) as lease:
            self._lease = lease
            try:
                self._base = self._store.read_named(MANIFEST, limit_bytes=MAX_MANIFEST_BYTES)
            except AbsentError:
                self._base = None
            yield

    def _leased(self, timeout_s: float) -> AbstractContextManager[HeldLease | None]:
        keeper = self._settings.leases
        if keeper is None:
            return nullcontext()
        lifetime_s = self._settings.lease_lifetime_s
        owner = holder("publish")
        return holding(keeper, self.name, ROOT, owner=owner, timeout_s=timeout_s, lifetime_s=lifetime_s)

    def _publish_first(self) -> None:
        codec = self._settings.codec
        now = datetime.fromtimestamp(self._clock(), UTC)
        now_s = int(now.timestamp())
        self._write_whitelist([self._keys.certificate_pem], codec.algorithm, WHITELIST_LIFETIME)
        self._store.replace_named(MASTER_REPLICA, b"This file allows others to replicate the repository.\n")
        root = Entry(
            name=b"", mode=_ROOT_MODE, uid=0, gid=0, size=DIRECTORY_SIZE, mtime_ns=now_s * 1_000_000_000, linkcount=2
        )
        ttl_s = self._settings.ttl_s or DEFAULT_TTL_S
        empty = store_empty(self._store, codec.algorithm)
        draft = Draft.empty(ROOT, root, None, empty)
        database = draft.finish(revision=1, last_modified_unix_s=now_s, previous=None, ttl_s=ttl_s)
        stored = store_catalog(database, self._store, algorithm=codec.algorithm, level=codec.level)
        manifest = Manifest(
            root_catalog=stored.hash,
            catalog_size=stored.size,
            ttl_s=ttl_s,
            revision=1,
            garbage_collectable=True,
            name=self.name,
            certificate=self._put_classic(self._keys.certificate_pem, Suffix.CERTIFICATE, codec.algorithm),
            metainfo=self._put_classic(_metainfo(), Suffix.METAINFO, codec.algorithm),
            published_unix_s=now_s,
        )
        self._publish(manifest, [_tag(TRUNK, stored, 1, now_s)])

    def _publish(self, manifest: Manifest, tags: Sequence[Tag], *, removed: str | None = None) -> None:
        """Store history and reflog, then swap the manifest in: until then nothing is visible."""
        algorithm = manifest.root_catalog.algorithm
        certificate = self._put_classic(self._keys.certificate_pem, Suffix.CERTIFICATE, algorithm)
        history_bytes = next_history(self._store, manifest, tags, removed)
        history = Hash.of(history_bytes, algorithm)
        self._store.put(history, Suffix.HISTORY, history_bytes)
        known = [
            (ReferenceType.CATALOG, manifest.root_catalog),
            (ReferenceType.CERTIFICATE, certificate),
            (ReferenceType.HISTORY, history),
            (ReferenceType.METAINFO, manifest.metainfo),
        ]
        now_s = self._now_ns(manifest) // 1_000_000_000
        references_now = [(kind, name) for kind, name in known if name is not None]
        old_reflog, reflog = next_reflog(self._store, self.name, references_now, now_s)
        published = replace(
            manifest,
            certificate=certificate,
            history=history,
            reflog=Hash.of(reflog, algorithm),
            published_unix_s=now_s,
        )
        envelope = self._keys.sign_manifest(published.encode(), algorithm)
        self._store.settle()
        if self._lease is not None:
            self._lease.check()
        # swapped, not replaced: a writer that was held up, and lost its lock meanwhile, must not undo what came after;
        # the reflog may name more than is visible, never less; so it goes first
        self._store.swap_named(REFLOG, reflog, expected=old_reflog)
        self._store.swap_named(MANIFEST, envelope, expected=self._base)
        self._base = envelope

    def _keep(self, algorithm: Algorithm, database: bytes) -> StoredCatalog:
        stored = store_catalog(database, self._store, algorithm=algorithm, level=self._settings.catalogs.level)
        self._cache.add(stored.hash, database)
        return stored

    def _put_classic(self, data: bytes, suffix: Suffix, algorithm: Algorithm) -> Hash:
        stored = deflate_classic(data)
        name = Hash.of(stored, algorithm)
        self._store.put(name, suffix, stored)
        return name

    def _empty(self, algorithm: Algorithm) -> Content:
        return store_empty(self._store, algorithm)

    def _now_ns(self, manifest: Manifest) -> int:
        """The time, but never before the last revision: readers refuse a manifest that is older."""
        return max(int(self._clock() * 1e9), manifest.published_unix_s * 1_000_000_000)


def _refuse_if_there(place: Storage) -> None:
    with suppress(AbsentError):
        place.store.read_named(MANIFEST, limit_bytes=MAX_MANIFEST_BYTES)
        raise RefusedError(f"there is a repository in {place.shown} already")


def _settle(changed: Mapping[_Request, bool], revision: int, root: Hash, *, is_new: bool) -> None:
    """Tell everybody which revision has what they wanted."""
    for request, has_changed in changed.items():
        is_changed = is_new or has_changed or request.wanted.tag is not None
        request.succeed(Commit(revision, root, changed=is_changed))


def _tag(name: str, root: StoredCatalog, revision: int, now_s: int) -> Tag:
    return Tag(
        name=name,
        root_catalog=root.hash,
        revision=revision,
        published_unix_s=now_s,
        size=root.size,
        description=MAGIC_TAGS.get(name, ""),
    )


def _metainfo() -> bytes:
    texts = ("administrator", "email", "organisation", "description", "url", "recommended-stratum0")
    document: dict[str, object] = dict.fromkeys(texts, "")
    document |= {"recommended-stratum1s": [], "custom": {}}
    return json.dumps(document, indent=2).encode()
