"""The operations of the snapshots service: what each call does, whatever carries it.

State is changed in one write transaction of the metastore, in a worker thread that is not left before it ends, so a
call that is cancelled is done or undone. The repository is looked at before that, never inside.
"""

import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import anyio
import anyio.to_thread
import structlog

from snapshotter.directories import Directories
from snapshotter.errors import LayerUnavailableError, TargetAvailableError
from snapshotter.filesystem import FoundLayer, LayerFilesystem
from snapshotter.filters import parse_filters
from snapshotter.labels import (
    GID_MAPPING,
    PARENT_CHAIN_ID,
    SNAPSHOT_REF,
    UID_MAPPING,
    RootOwner,
    WantedLayer,
    mapped_root,
    stored_labels,
    updated_labels,
    wanted_layer,
)
from snapshotter.metastore import Metastore, Reading
from snapshotter.mounts import Mount, OverlayTraits, active_mounts, view_mounts
from snapshotter.root_images import RootImages
from snapshotter.snapshots import (
    Info,
    Kind,
    LayerSource,
    Snapshot,
    Usage,
    check_active,
    check_free,
    check_mountable,
    check_name,
    check_parent,
    check_rebase,
    check_removable,
    stands_on,
)

_log = structlog.get_logger()
_T = TypeVar("_T")
_Arguments = TypeVarTuple("_Arguments")
_PAGE = 100
_THREADS = 16
_NOTHING = Usage(size_bytes=0, inodes=0)


@dataclass(frozen=True, slots=True)
class _Stack:
    """The snapshots whose content lies below a new one, uppermost first."""

    members: tuple[Snapshot, ...]

    @classmethod
    def below(cls, chain: Sequence[Snapshot]) -> "_Stack":
        """From a chain, uppermost first: nothing below a whole root file system is needed."""
        members: list[Snapshot] = []
        for snapshot in chain:
            members.append(snapshot)
            if snapshot.source is not None and snapshot.source.is_whole:
                break
        return cls(tuple(members))

    @property
    def sources(self) -> tuple[LayerSource, ...]:
        """The members that lie in the repository."""
        return tuple(member.source for member in self.members if member.source is not None)

    @property
    def whole(self) -> tuple[int, LayerSource] | None:
        """Number and place of the whole root file system at the bottom, if there is one."""
        if not self.members:
            return None
        lowest = self.members[-1]
        return (lowest.number, lowest.source) if lowest.source is not None and lowest.source.is_whole else None


class Snapshotter:
    """All operations over one state directory and one repository.

    Args:
        directories: the state directory, locked by the caller.
        metastore: its database.
        layers: the repository.
        traits: options of overlay mounts on this machine.
        now_ns: the clock.
        images: metadata images of root file systems; None if they are not used on this machine.
    """

    def __init__(  # noqa: PLR0913  # collaborators, all by name
        self,
        *,
        directories: Directories,
        metastore: Metastore,
        layers: LayerFilesystem,
        traits: OverlayTraits,
        now_ns: Callable[[], int],
        images: RootImages | None = None,
    ) -> None:
        self._directories = directories
        self._metastore = metastore
        self._layers = layers
        self._traits = traits
        self._now_ns = now_ns
        self._images = images
        self._limiter = anyio.CapacityLimiter(_THREADS)

    async def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> tuple[Mount, ...]:
        """Mounts of a new Active snapshot.

        Raises:
            TargetAvailableError: the labels ask for a layer that is in the repository; it is a Committed snapshot now.
            LayerUnavailableError: what lies below cannot be read now.
            SnapshotNotFoundError, InvalidRequestError, SnapshotExistsError: as the names say; nothing was made.
        """
        wanted = wanted_layer(labels)
        if wanted is not None:
            await self._serve(key, parent, stored_labels(labels), wanted)
        return await self._create(Kind.ACTIVE, key, parent, labels)

    async def view(self, key: str, parent: str, labels: Mapping[str, str]) -> tuple[Mount, ...]:
        """Mounts of a new View. Raises what ``prepare`` raises, without TargetAvailableError."""
        return await self._create(Kind.VIEW, key, parent, labels)

    async def mounts(self, key: str) -> tuple[Mount, ...]:
        """The mounts that Prepare or View gave.

        Raises:
            LayerUnavailableError: a container would start without a part of its file system.
            SnapshotNotFoundError, WrongKindError: as the names say.
        """

        def look() -> tuple[Snapshot, _Stack]:
            with self._metastore.reading() as rows:
                snapshot = check_mountable(rows.find(key), key)
                return snapshot, _Stack.below(rows.chain(snapshot.info.parent))

        snapshot, stack = await self._blocking(look)
        await self._layers.check(stack.sources)
        root = await self._mounted_root(snapshot.info.labels, stack)
        return await self._blocking(self._mounts, snapshot, stack, root)

    async def commit(self, name: str, key: str, parent: str, labels: Mapping[str, str]) -> None:
        """Turn the Active snapshot *key* into the Committed one *name*.

        Raises:
            SnapshotExistsError, SnapshotNotFoundError, WrongKindError, InvalidRequestError: as the names say; the
                Active snapshot is as it was.
        """
        check_name(name, role="name")
        kept = stored_labels(labels)

        def change() -> None:
            with self._metastore.writing() as rows:
                check_free(rows.find(name))
                active = check_active(rows.find(key), key)
                if parent:
                    check_rebase(active, rows.find(parent), parent)
                now_ns = self._now_ns()
                info = Info(
                    name=name,
                    parent=parent or active.info.parent,
                    kind=Kind.COMMITTED,
                    created_ns=now_ns,
                    updated_ns=now_ns,
                    labels=kept,
                )
                rows.change(active.number, info)

        await self._blocking(change)

    async def remove(self, key: str) -> None:
        """Forget a snapshot; its data is deleted by ``cleanup``.

        Raises:
            SnapshotNotFoundError, HasChildrenError: as the names say.
        """

        def change() -> None:
            with self._metastore.writing() as rows:
                found = rows.find(key)
                has_children = found is not None and rows.has_children(found)
                rows.delete(check_removable(found, key, has_children=has_children).number)

        await self._blocking(change)

    async def stat(self, key: str) -> Info:
        """What is known about a snapshot. Raises SnapshotNotFoundError."""

        def look() -> Info:
            with self._metastore.reading() as rows:
                return rows.get(key).info

        return await self._blocking(look)

    async def update(self, name: str, labels: Mapping[str, str], paths: Sequence[str]) -> Info:
        """Change labels as the field mask *paths* says. Raises SnapshotNotFoundError, InvalidRequestError."""

        def change() -> Info:
            with self._metastore.writing() as rows:
                found = rows.get(name)
                changed = updated_labels(found.info.labels, labels, paths)
                info = replace(found.info, labels=changed, updated_ns=self._now_ns())
                rows.change(found.number, info)
                return info

        return await self._blocking(change)

    async def listed(self, filters: Sequence[str]) -> AsyncIterator[tuple[Info, ...]]:
        """What matches any of *filters*, in blocks; nothing is locked between them. Raises FilterSyntaxError."""
        wanted = parse_filters(filters)
        reference = wanted.required_reference
        after = 0
        while True:
            page = await self._blocking(self._page, reference, after)
            matching = tuple(snapshot.info for snapshot in page if wanted.matches(snapshot.info))
            for start in range(0, len(matching), _PAGE):
                yield matching[start : start + _PAGE]
            if reference is not None or len(page) < _PAGE:
                return
            after = page[-1].number

    async def usage(self, key: str) -> Usage:
        """Disk space of a snapshot without its parents; nothing for what lies in the repository.

        What is Committed is measured once, when somebody asks first: Commit itself has to be fast.

        Raises:
            SnapshotNotFoundError: as the name says.
        """

        def look() -> Snapshot:
            with self._metastore.reading() as rows:
                return rows.get(key)

        snapshot = await self._blocking(look)
        if snapshot.usage is not None:
            return snapshot.usage
        cancelled = threading.Event()
        try:
            usage = await anyio.to_thread.run_sync(
                lambda: self._directories.measure(snapshot.number, cancelled),
                abandon_on_cancel=True,
                limiter=self._limiter,
            )
        except FileNotFoundError:
            await self._blocking(look)  # it was removed meanwhile, and that is the answer
            raise
        finally:
            cancelled.set()
        if snapshot.info.kind is Kind.COMMITTED:
            await self._blocking(self._store_usage, snapshot.number, usage)
        return usage

    async def cleanup(self) -> None:
        """Delete the data of removed snapshots and what crashes have left."""

        def in_use() -> Mapping[int, LayerSource]:
            with self._metastore.reading() as rows:
                return rows.roots_in_use()

        def set_aside() -> tuple[Path, ...]:
            if self._images is not None:
                self._images.release(in_use)
            with self._metastore.writing() as rows:
                return self._directories.set_aside(rows.numbers())

        garbage = await self._blocking(set_aside)
        await self._blocking(self._directories.delete, garbage)

    async def _serve(self, key: str, parent: str, labels: dict[str, str], wanted: WantedLayer) -> None:
        """Raise TargetAvailableError if the repository has the layer; return if it is to be unpacked as usual.

        When in doubt the answer is no: that costs a download, a wrong yes breaks the image for as long as it exists.
        """
        log = _log.bind(reference=wanted.reference, parent=parent)

        def look() -> Snapshot | None:
            with self._metastore.reading() as rows:
                above = _check_place(rows, key, parent)
                if _is_offered(rows, wanted, parent):
                    raise TargetAvailableError(wanted.reference)
                return above

        above = await self._blocking(look)
        try:
            found = await self._layers.find(wanted)
        except LayerUnavailableError as error:
            log.warning("layer_not_reachable", path=error.path, reason=error.reason)
            return
        if found is None:
            log.info("layer_absent")
            return
        if not _fits(found, above, labels):
            log.info("layer_stands_on_another_parent", parent_chain=found.parent_chain_id)
            return

        def offer() -> bool:
            with self._metastore.writing() as rows:
                _check_place(rows, key, parent)
                if _is_offered(rows, wanted, parent):
                    return True
                if any(row.info.parent == parent for row in rows.with_reference(wanted.reference) if row.source):
                    return False  # other content under that ChainID: containerd could not tell them apart
                now_ns = self._now_ns()
                info = Info(
                    name=_free_name(rows, wanted.reference, parent),
                    parent=parent,
                    kind=Kind.COMMITTED,
                    created_ns=now_ns,
                    updated_ns=now_ns,
                    labels=labels,
                )
                rows.insert(info, source=found.source, usage=_NOTHING)
                return True

        if await self._blocking(offer):
            log.info("layer_served", source=str(found.source))
            raise TargetAvailableError(wanted.reference)
        log.warning("layer_conflicts")

    async def _create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> tuple[Mount, ...]:
        check_name(key, role="key")
        kept = stored_labels(labels)
        mapped = mapped_root(kept)

        def look() -> _Stack:
            with self._metastore.reading() as rows:
                _check_place(rows, key, parent)
                return _Stack.below(rows.chain(parent))

        def make(checked: _Stack, owner: RootOwner | None) -> Snapshot | None:
            with self._metastore.writing() as rows:
                _check_place(rows, key, parent)
                if _Stack.below(rows.chain(parent)) != checked:
                    return None
                now_ns = self._now_ns()
                info = Info(name=key, parent=parent, kind=kind, created_ns=now_ns, updated_ns=now_ns, labels=kept)
                snapshot = rows.insert(info)
                self._directories.create(snapshot.number, mapped or owner or self._local_owner(checked))
                return snapshot

        while True:
            stack = await self._blocking(look)
            owners = await self._layers.check(stack.sources)
            top_is_remote = bool(stack.members) and stack.members[0].source is not None
            owner = owners[0] if top_is_remote else None
            await self._mounted_root(kept, stack)  # what may take long is done before there is a row
            snapshot = await self._blocking(make, stack, owner)
            if snapshot is not None:  # None: the parent was replaced meanwhile by another one of its name
                root = await self._mounted_root(snapshot.info.labels, stack)
                return await self._blocking(self._mounts, snapshot, stack, root)

    def _local_owner(self, stack: _Stack) -> RootOwner | None:
        """Owner of the root directory of an ordinary parent."""
        return self._directories.owner_of(stack.members[0].number) if stack.members else None

    async def _mounted_root(self, labels: Mapping[str, str], stack: _Stack) -> Path | None:
        """The metadata image of the root file system at the bottom, mounted; None if the tree itself is to be used."""
        whole = stack.whole
        if self._images is None or whole is None or _id_mapping(labels):
            return None  # overlay cannot be mapped, and that is what an image is mounted as
        return await self._images.lower(*whole)

    def _mounts(self, snapshot: Snapshot, stack: _Stack, root: Path | None) -> tuple[Mount, ...]:
        """The mounts of an Active snapshot or a View."""
        paths = [
            self._directories.lower(member.number, None if member.source is None else self._layers.path(member.source))
            for member in stack.members
        ]
        lowers = paths if root is None else [*paths[:-1], root]
        id_mapping = _id_mapping(snapshot.info.labels)
        content = self._directories.content(snapshot.number)
        if snapshot.info.kind is Kind.VIEW:
            return view_mounts(own=content, lowers=lowers, traits=self._traits, id_mapping=id_mapping)
        work = self._directories.work(snapshot.number)
        return active_mounts(upper=content, work=work, lowers=lowers, traits=self._traits, id_mapping=id_mapping)

    def _page(self, reference: str | None, after: int) -> tuple[Snapshot, ...]:
        with self._metastore.reading() as rows:
            if reference is not None:
                return rows.with_reference(reference)
            return rows.page(after=after, limit=_PAGE)

    def _store_usage(self, number: int, usage: Usage) -> None:
        with self._metastore.writing() as rows:
            rows.measure(number, usage)

    async def _blocking(self, function: Callable[[*_Arguments], _T], *arguments: *_Arguments) -> _T:
        """Result of *function* from a worker thread, which is waited for also when the call is cancelled."""
        return await anyio.to_thread.run_sync(function, *arguments, limiter=self._limiter)


def _id_mapping(labels: Mapping[str, str]) -> tuple[str, ...]:
    mapping = (("uidmap", labels.get(UID_MAPPING)), ("gidmap", labels.get(GID_MAPPING)))
    return tuple(f"{option}={value}" for option, value in mapping if value)


def _check_place(rows: Reading, key: str, parent: str) -> Snapshot | None:
    """The parent of a new snapshot *key*, None for none. Raises in the order in which containerd's own store does."""
    above = rows.find(parent) if parent else None
    if parent:
        check_parent(above, parent)
    check_free(rows.find(key))
    return above


def _is_offered(rows: Reading, wanted: WantedLayer, parent: str) -> bool:
    """True if the wanted layer is a snapshot already, made by us, on this parent and with the same content."""
    known = {(False, wanted.chain_digits), (True, wanted.layer_digits)}
    return any(
        row.source is not None and row.source.identity in known and row.info.parent == parent
        for row in rows.with_reference(wanted.reference)
    )


def _fits(found: FoundLayer, parent: Snapshot | None, labels: Mapping[str, str]) -> bool:
    """True if the layer belongs on *parent*.

    A puller that prepares every layer without a parent, to rebase at Commit, is refused here: the chain would break.
    """
    said = labels.get(PARENT_CHAIN_ID)
    if not found.parent_known:
        return (said is None) if parent is None else True
    if said is not None and said != found.parent_chain_id:
        return False
    reference = None if parent is None else parent.info.labels.get(SNAPSHOT_REF)
    return stands_on(parent, found.parent_chain_id, reference_label=reference)


def _free_name(rows: Reading, reference: str, parent: str) -> str:
    """The ChainID, so that namespaces share; told apart by the parent if another snapshot has that name."""
    if rows.find(reference) is None:
        return reference
    base = f"{reference}@{hashlib.sha256(parent.encode()).hexdigest()[:16]}"
    name, count = base, 1
    while rows.find(name) is not None:
        count += 1
        name = f"{base}-{count}"
    return name
