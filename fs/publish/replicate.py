"""Mirrors: a repository, or a part of it, copied from any server or mirror of the format.

Nothing is believed that is not signed or named by its hash. A catalog is stored after everything below it, so its
presence says that all of that is there, and a further run needs to look only at what is new; the manifest is replaced
last, so readers never see what is not there yet. Source: CernVM-FS 2.12, swissknife_pull.cc,
server/cvmfs_server_snapshot.sh.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import islice

import anyio
import anyio.to_thread
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from fs.errors import AbsentError, CorruptError, RefusedError, RollbackError, UnreachableError
from fs.format.catalog import Catalog
from fs.format.compression import inflate
from fs.format.databases import connect_bytes
from fs.format.entries import Flag, NestedReference
from fs.format.hashes import Hash, Suffix
from fs.format.history import History, Tag
from fs.format.manifest import MAX_MANIFEST_BYTES, Manifest
from fs.format.paths import ROOT, is_below
from fs.format.reflog import ReferenceType, add_references, create_reflog
from fs.format.signature import SignedText
from fs.format.trust import TrustedWhitelist, named_certificate
from fs.format.whitelist import MAX_WHITELIST_BYTES
from fs.publish.lock import exclusive
from fs.publish.published import MANIFEST, MASTER_REPLICA, MAX_HISTORY_BYTES, MAX_REFLOG_BYTES, REFLOG
from fs.publish.replica_state import ReplicaState, Scope
from fs.publish.repository import DEFAULT_TIMEOUT_S
from fs.publish.signing import WHITELIST
from fs.publish.transfers import Crew, SpoolReceiver
from fs.publish.view import MAX_CATALOG_BYTES
from fs.store.base import TendedStore
from fs.store.limits import HttpLimits
from fs.store.mirrors import open_mirrors
from fs.store.places import Storage
from fs.store.reading import BytesReceiver, Request, StorageReader

WHITELIST_PKCS7 = ".cvmfswhitelist.pkcs7"
LAST_SNAPSHOT = ".cvmfs_last_snapshot"
IS_SNAPSHOTTING = ".cvmfs_is_snapshotting"
STATUS = ".cvmfs_status.json"

_MAX_SMALL_BYTES = 1 << 20
_PKCS7_LINE = b"\nVpkcs7\n"  # of a whitelist that has another form as well
_AT_ONCE = 8  # objects that one job looks for and fetches
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOptions:
    """What is mirrored, and how."""

    name: str | None = None  # None: whatever the source is, if it is signed with the keys
    keys: Sequence[RSAPublicKey]
    scope: Scope = field(default_factory=Scope)
    with_tags: bool = True  # named revisions beside the newest
    transfers: int = 16  # at once
    needs_consent: bool = True  # the source must say that it may be replicated
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    report: Callable[[int, int], None] = lambda _objects, _bytes: None  # fetched so far


@dataclass(slots=True)
class ReplicaReport:
    """What came of it."""

    name: str
    revision: int
    previous_revision: int  # 0: there was none
    revisions: int = 0  # the newest and those with names
    catalogs: int = 0  # looked at; those that were there with everything below are not
    objects: int = 0  # fetched, catalogs included
    stored_bytes: int = 0  # fetched
    objects_there: int = 0  # needed, and there already


@dataclass(slots=True, eq=False)
class _Subtree:
    """A catalog on its way: it is stored when nothing is left below it."""

    reference: NestedReference
    parent: "_Subtree | None"
    left: int = 0  # jobs and subtrees
    catalog: SpoolReceiver | None = None


def replicate_from(
    urls: Sequence[str],
    storage: Storage,
    options: ReplicaOptions,
    *,
    proxy: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> ReplicaReport:
    """Make or update the mirror in *storage* from the first of *urls* that answers. Raises as ``replicate`` does.

    Args:
        urls: where the repository is served, best first.
        storage: what becomes the mirror.
        options: what is mirrored.
        proxy: URL of an HTTP proxy.
        timeout_s: how long to wait for whoever else writes to the storage.
    """

    async def work() -> ReplicaReport:
        async with open_mirrors(urls, limits=HttpLimits(transfers=options.transfers), proxy=proxy) as source:
            return await replicate(source, storage.store, options)

    storage.prepare()
    with exclusive(storage.private / "lock", timeout_s=timeout_s):
        return anyio.run(work)


async def replicate(source: StorageReader, store: TendedStore, options: ReplicaOptions) -> ReplicaReport:
    """Make or update the mirror in *store*. The caller holds the writer's lock of the storage.

    Raises:
        NotTrustedError: a signature does not hold, or the source is older than the mirror.
        RefusedError: the storage holds something else, or the source does not want to be replicated.
        AbsentError, CorruptError, UnreachableError: the source does not give an object; running again goes on.
    """
    return await _Replication(source, store, options).run()


class _Replication:
    def __init__(self, source: StorageReader, store: TendedStore, options: ReplicaOptions) -> None:
        self._source = source
        self._store = store
        self._options = options
        self._scope = options.scope
        self._crew = Crew(options.transfers)
        self._state = ReplicaState()
        self._believes_partial = False
        self._completed: list[Hash] = []
        self._report = ReplicaReport("", 0, 0)

    async def run(self) -> ReplicaReport:
        envelope = await self._named(MANIFEST, MAX_MANIFEST_BYTES)
        whitelist = await self._named(WHITELIST, MAX_WHITELIST_BYTES)
        certificate = await self._small(named_certificate(envelope), Suffix.CERTIFICATE, _MAX_SMALL_BYTES)
        manifest = self._verify(envelope, whitelist, certificate)
        before = await anyio.to_thread.run_sync(self._compare, manifest)
        await self._check_consent()
        await anyio.to_thread.run_sync(self._begin, before is None)

        tags = await self._tags(manifest)
        head = NestedReference(ROOT, manifest.root_catalog, manifest.catalog_size)
        for root in dict.fromkeys([head, *(NestedReference(ROOT, tag.root_catalog, tag.size) for tag in tags)]):
            self._report.revisions += 1
            self._crew.add(partial(self._look, _Subtree(root, None)))
            await self._crew.run()
        await anyio.to_thread.run_sync(self._store.put, manifest.certificate, Suffix.CERTIFICATE, certificate)
        if manifest.metainfo is not None:
            stored = await self._small(manifest.metainfo, Suffix.METAINFO, _MAX_SMALL_BYTES)
            await anyio.to_thread.run_sync(self._store.put, manifest.metainfo, Suffix.METAINFO, stored)
        pkcs7 = await self._named(WHITELIST_PKCS7, _MAX_SMALL_BYTES) if _PKCS7_LINE in whitelist else None
        await anyio.to_thread.run_sync(self._publish, manifest, tags, before, envelope, whitelist, pkcs7)
        return self._report

    def _verify(self, envelope: bytes, whitelist: bytes, certificate: bytes) -> Manifest:
        options = self._options
        name = options.name or Manifest.parse(SignedText.parse(envelope).text).name
        pem = inflate(certificate, limit_bytes=_MAX_SMALL_BYTES, name="of the certificate")
        trusted = TrustedWhitelist.verify(whitelist, name=name, keys=options.keys, now=options.clock())
        return trusted.certificate(pem).manifest(envelope)

    def _compare(self, manifest: Manifest) -> bytes | None:
        """The manifest that the mirror has, as it is, if *manifest* may replace it."""
        self._report.name, self._report.revision = manifest.name, manifest.revision
        try:
            envelope = self._store.read_named(MANIFEST, limit_bytes=MAX_MANIFEST_BYTES)
        except AbsentError:
            return None
        try:
            self._store.read_named(MASTER_REPLICA, limit_bytes=_MAX_SMALL_BYTES)
        except AbsentError:
            pass
        else:
            raise RefusedError("the storage holds the original of a repository, which no mirror may replace")
        ours = Manifest.parse(SignedText.parse(envelope).text)
        if ours.name != manifest.name:
            raise RefusedError(f"the storage mirrors {ours.name}, not {manifest.name}")
        if ours.revision > manifest.revision:
            raise RollbackError(
                f"{self._source.url} is at revision {manifest.revision}, the mirror at {ours.revision} already"
            )
        self._report.previous_revision = ours.revision
        return envelope

    async def _check_consent(self) -> None:
        """Originals say so in a file; mirrors say when they were made."""
        if not self._options.needs_consent:
            return
        unclear: UnreachableError | None = None
        for name in (MASTER_REPLICA, LAST_SNAPSHOT):
            try:
                await self._named(name, _MAX_SMALL_BYTES)
            except AbsentError:
                continue
            except UnreachableError as error:  # of several servers one does not answer, whatever the others said
                unclear = error
            else:
                return
        refusal = RefusedError(f"{self._source.url} has no {MASTER_REPLICA}: it does not want to be replicated")
        raise unclear or refusal

    def _begin(self, is_first: bool) -> None:  # noqa: FBT001  # run_sync passes by position
        self._store.prepare()
        self._state = ReplicaState.read(self._store)
        self._believes_partial = self._state.begin(self._store, self._scope)
        if is_first:
            self._store.replace_named(IS_SNAPSHOTTING, b"")

    async def _tags(self, manifest: Manifest) -> list[Tag]:
        if manifest.history is None:
            return []
        stored = await self._small(manifest.history, Suffix.HISTORY, MAX_HISTORY_BYTES)

        def parse() -> list[Tag]:
            database = inflate(stored, limit_bytes=MAX_HISTORY_BYTES, name=f"{manifest.history}H")
            with closing(connect_bytes(database)) as connection:
                return History(connection).tags()

        tags = await anyio.to_thread.run_sync(parse)
        await anyio.to_thread.run_sync(self._store.put, manifest.history, Suffix.HISTORY, stored)
        return tags if self._options.with_tags else []

    async def _look(self, subtree: _Subtree) -> None:
        """Fetch a catalog, unless it is there with everything below, and see to what it refers to."""
        name = subtree.reference.hash
        is_believed = name not in self._state.partial or self._believes_partial
        if is_believed and await anyio.to_thread.run_sync(self._store.claim, name, Suffix.CATALOG):
            self._report.objects_there += 1
            self._done(subtree.parent)
            return
        receiver = SpoolReceiver(name, Suffix.CATALOG, MAX_CATALOG_BYTES)
        try:
            await self._fetch(name, Suffix.CATALOG, receiver)
        except AbsentError:
            if not subtree.reference.is_bind:  # originals do not keep what is only bound elsewhere
                raise
            _log.warning("bound_catalog_absent", path=subtree.reference.path, catalog=str(name))
            self._done(subtree.parent)
            return
        subtree.catalog = receiver
        self._report.catalogs += 1
        objects, nested = await anyio.to_thread.run_sync(self._needs, subtree)
        jobs = [partial(self._bring, subtree, batch) for batch in objects]
        below = [_Subtree(reference, subtree) for reference in nested]
        subtree.left = len(jobs) + len(below) + 1
        for child in below:
            self._crew.add(partial(self._look, child))
        for job in jobs:
            self._crew.add(job)
        self._done(subtree)

    def _needs(self, subtree: _Subtree) -> tuple[list[list[tuple[Hash, Suffix, int]]], list[NestedReference]]:
        """Objects, in batches, and catalogs that a catalog refers to, as far as the scope goes."""
        assert subtree.catalog is not None  # noqa: S101  # for the type checker: it was fetched a moment ago
        reference = subtree.reference
        with subtree.catalog.stored() as stored:
            database = inflate(stored, limit_bytes=MAX_CATALOG_BYTES, name=f"{reference.hash}C")
        with closing(connect_bytes(database)) as connection:
            catalog = Catalog(connection, reference.path)
            nested = [each for each in catalog.nested() if self._scope.leads_to(each.path)]
            if self._scope.holds(reference.path):
                wanted = {(name, suffix): size for name, suffix, size in catalog.objects()}
            else:
                wanted = {(name, suffix): size for name, suffix, size in _objects_of(catalog, self._scope)}
        rows = iter([(name, suffix, size) for (name, suffix), size in wanted.items()])
        return list(iter(lambda: list(islice(rows, _AT_ONCE)), [])), nested

    async def _bring(self, subtree: _Subtree, batch: list[tuple[Hash, Suffix, int]]) -> None:
        """Fetch those objects of *batch* that are not there."""

        def missing() -> list[tuple[Hash, Suffix, int]]:
            return [each for each in batch if not self._store.claim(each[0], each[1])]

        absent = await anyio.to_thread.run_sync(missing)
        self._report.objects_there += len(batch) - len(absent)
        for name, suffix, size in absent:
            receiver = SpoolReceiver(name, suffix, size)
            await self._fetch(name, suffix, receiver)
            await anyio.to_thread.run_sync(self._keep, name, suffix, receiver)
        self._done(subtree)

    def _done(self, subtree: _Subtree | None) -> None:
        """One thing less is left below *subtree*."""
        if subtree is None:
            return
        subtree.left -= 1
        if subtree.left == 0:
            self._crew.add(partial(self._complete, subtree))

    async def _complete(self, subtree: _Subtree) -> None:
        assert subtree.catalog is not None  # noqa: S101  # for the type checker: something was below it
        name, receiver = subtree.reference.hash, subtree.catalog
        subtree.catalog = None
        await anyio.to_thread.run_sync(self._keep_catalog, subtree.reference, receiver)
        if self._scope.holds(subtree.reference.path) and name in self._state.partial:
            self._completed.append(name)
        self._done(subtree.parent)

    def _keep_catalog(self, reference: NestedReference, receiver: SpoolReceiver) -> None:
        if not self._scope.holds(reference.path) and reference.hash not in self._state.partial:
            # said before it is there: whoever stops between the two is safe
            self._state.partial.add(reference.hash)
            self._state.write(self._store)
        self._keep(reference.hash, Suffix.CATALOG, receiver)

    def _keep(self, name: Hash, suffix: Suffix, receiver: SpoolReceiver) -> None:
        with receiver.stored() as stored:
            self._store.put(name, suffix, stored)
        receiver.close()

    async def _fetch(self, name: Hash, suffix: Suffix, receiver: SpoolReceiver) -> None:
        await self._source.read(Request(name.object_path(suffix)), receiver)
        self._report.objects += 1
        self._report.stored_bytes += receiver.stored_bytes
        self._options.report(self._report.objects, self._report.stored_bytes)

    async def _small(self, name: Hash, suffix: Suffix, limit_bytes: int) -> bytes:
        """An object that is wanted whole: the mirror's own copy, if there is a good one."""
        with suppress(AbsentError, CorruptError):
            return await anyio.to_thread.run_sync(partial(self._store.get, name, suffix, limit_bytes=limit_bytes))
        receiver = SpoolReceiver(name, suffix, limit_bytes)
        await self._fetch(name, suffix, receiver)
        stored = receiver.whole()
        receiver.close()
        return stored

    async def _named(self, name: str, limit_bytes: int) -> bytes:
        receiver = BytesReceiver(name, limit_bytes)
        await self._source.read(Request(name, is_fresh=True), receiver)
        return receiver.content

    def _publish(  # noqa: PLR0913, PLR0917  # run_sync passes by position
        self,
        manifest: Manifest,
        tags: Sequence[Tag],
        before: bytes | None,
        envelope: bytes,
        whitelist: bytes,
        pkcs7: bytes | None,
    ) -> None:
        """Everything is there: let readers see it."""
        now = self._options.clock()
        self._store.settle()
        self._store.replace_named(REFLOG, self._reflog(manifest, tags, now))
        if pkcs7 is not None:
            self._store.replace_named(WHITELIST_PKCS7, pkcs7)
        self._store.replace_named(WHITELIST, whitelist)
        self._store.swap_named(MANIFEST, envelope, expected=before)
        self._state.end(self._store, self._scope, self._completed)
        self._store.remove_named(IS_SNAPSHOTTING)
        stamp = now.astimezone(UTC).strftime("%a %b %e %H:%M:%S UTC %Y")
        self._store.replace_named(LAST_SNAPSHOT, f"{stamp}\n".encode())
        self._store.replace_named(STATUS, _status(self._store, "last_snapshot", stamp))

    def _reflog(self, manifest: Manifest, tags: Sequence[Tag], now: datetime) -> bytes:
        """A mirror has a reflog of its own: what it holds is not what the original holds."""
        try:
            connection = connect_bytes(self._store.read_named(REFLOG, limit_bytes=MAX_REFLOG_BYTES))
            connection.execute("PRAGMA query_only=OFF")
        except AbsentError:
            connection = sqlite3.connect(":memory:", isolation_level=None)
            create_reflog(connection, manifest.name)
        known = [
            (ReferenceType.CATALOG, manifest.root_catalog),
            *((ReferenceType.CATALOG, tag.root_catalog) for tag in tags),
            (ReferenceType.CERTIFICATE, manifest.certificate),
            (ReferenceType.HISTORY, manifest.history),
            (ReferenceType.METAINFO, manifest.metainfo),
        ]
        with closing(connection):
            add_references(connection, [(kind, name) for kind, name in known if name is not None], int(now.timestamp()))
            return connection.serialize()


def _objects_of(catalog: Catalog, scope: Scope) -> Iterator[tuple[Hash, Suffix, int]]:
    """The objects of the files of *catalog* that belong to *scope*, path by path."""
    nested = {reference.path for reference in catalog.nested()}
    pending = [path for path in scope.paths if is_below(path, catalog.mountpoint)]
    while pending:
        path = pending.pop()
        if any(is_below(path, other) for other in nested):
            continue
        entry = catalog.lookup(path)
        if entry is None or entry.is_symlink:
            continue
        if entry.is_directory:
            pending += [path + b"/" + child.name for child in catalog.listing(path)]
        elif entry.is_regular and not entry.flags & Flag.EXTERNAL:
            content = catalog.content(path, entry)
            if content.hash is not None:
                yield content.hash, Suffix.PLAIN, content.size
            for chunk in content.chunks:
                yield chunk.hash, Suffix.CHUNK, chunk.size


def _status(store: TendedStore, key: str, value: str) -> bytes:
    """The file that says what was done last, with one more fact."""
    try:
        document = json.loads(store.read_named(STATUS, limit_bytes=_MAX_SMALL_BYTES))
    except (AbsentError, ValueError):
        document = {}
    if not isinstance(document, dict):
        document = {}
    return (json.dumps(document | {key: value}) + "\n").encode()
