"""The operations of the snapshots service: what each call does, whatever carries it.

State is changed in one write transaction of the metastore, in a worker thread that is not left before it ends, so a
call that is cancelled is done or undone. The repository is looked at before that, never inside.
"""

import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import anyio
import anyio.to_thread
import structlog

from snapshotter.directories import Directories
from snapshotter.errors import LayerUnavailableError, TargetAvailableError
from snapshotter.figures import Figures
from snapshotter.filesystem import LayerFilesystem
from snapshotter.filters import parse_filters
from snapshotter.idmapping import IdMapping
from snapshotter.labels import (
    RootOwner,
    WantedLayer,
    mapped_root,
    stored_labels,
    updated_labels,
    wanted_layer,
)
from snapshotter.metastore import Metastore
from snapshotter.mounts import Mount, OverlayTraits, active_mounts, view_mounts
from snapshotter.pinning import Pinner
from snapshotter.placing import Stack, check_place, fits, free_name, id_mapping, is_offered
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
    check_rebase,
    check_removable,
)

_log = structlog.get_logger()
_T = TypeVar("_T")
_Arguments = TypeVarTuple("_Arguments")
_PAGE = 100
_THREADS = 16
_NOTHING = Usage(size_bytes=0, inodes=0)


class Snapshotter:
    """All operations over one state directory and one repository.

    Args:
        directories: the state directory, locked by the caller.
        metastore: its database.
        layers: the repository.
        traits: options of overlay mounts on this machine.
        now_ns: the clock.
        images: metadata images of root file systems; None if they are not used on this machine.
        pinner: tells the mounts what is in use.
        figures: counts layers that are asked for.
        count_served: say of a served layer what it holds.
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
        pinner: Pinner | None = None,
        figures: Figures | None = None,
        count_served: bool = True,
    ) -> None:
        self._directories = directories
        self._metastore = metastore
        self._layers = layers
        self._traits = traits
        self._now_ns = now_ns
        self._images = images
        self._pinner = pinner
        self._figures = figures or Figures()
        self._count_served = count_served
        self._id_mapping = IdMapping()
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

        def look() -> tuple[Snapshot, Stack]:
            with self._metastore.reading() as rows:
                snapshot = check_mountable(rows.find(key), key)
                return snapshot, Stack.below(rows.chain(snapshot.info.parent))

        snapshot, stack = await self._blocking(look)
        await self._layers.check(stack.sources)
        lowers = await self._lowers(snapshot.info.labels, stack)
        return self._mounts(snapshot, lowers)

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
        """Disk space of a snapshot without its parents; of what lies in the repository, what the layer holds.

        What is Committed is measured once, when somebody asks first: Commit itself has to be fast.

        Raises:
            SnapshotNotFoundError: as the name says.
        """

        def look() -> Snapshot:
            with self._metastore.reading() as rows:
                return rows.get(key)

        snapshot = await self._blocking(look)
        if snapshot.source is not None:
            return await self._usage_of_served(snapshot, snapshot.source)
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

    async def _usage_of_served(self, snapshot: Snapshot, source: LayerSource) -> Usage:
        if not self._count_served:
            return _NOTHING
        if snapshot.usage is not None and snapshot.usage != _NOTHING:
            return snapshot.usage
        usage = await self._layers.measure(source)
        if usage is None:
            return _NOTHING
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
        if self._pinner is not None:
            await self._pinner.tell()

    async def _serve(self, key: str, parent: str, labels: dict[str, str], wanted: WantedLayer) -> None:
        """Raise TargetAvailableError if the repository has the layer; return if it is to be unpacked as usual.

        When in doubt the answer is no: that costs a download, a wrong yes breaks the image for as long as it exists.
        """
        log = _log.bind(reference=wanted.reference, parent=parent)

        def look() -> Snapshot | None:
            with self._metastore.reading() as rows:
                above = check_place(rows, key, parent)
                if is_offered(rows, wanted, parent):
                    self._figures.layers["there already"] += 1
                    raise TargetAvailableError(wanted.reference)
                return above

        above = await self._blocking(look)
        try:
            found = await self._layers.find(wanted)
        except LayerUnavailableError as error:
            log.warning("layer_not_reachable", path=error.path, reason=error.reason)
            self._figures.layers["not reachable"] += 1
            return
        if found is None:
            log.info("layer_absent")
            self._figures.layers["absent"] += 1
            return
        if not fits(found, above, labels):
            self._figures.layers["on another parent"] += 1
            log.info("layer_stands_on_another_parent", parent_chain=found.parent_chain_id)
            return

        def offer() -> bool:
            with self._metastore.writing() as rows:
                check_place(rows, key, parent)
                if is_offered(rows, wanted, parent):
                    return True
                if any(row.info.parent == parent for row in rows.with_reference(wanted.reference) if row.source):
                    return False  # other content under that ChainID: containerd could not tell them apart
                now_ns = self._now_ns()
                info = Info(
                    name=free_name(rows, wanted.reference, parent),
                    parent=parent,
                    kind=Kind.COMMITTED,
                    created_ns=now_ns,
                    updated_ns=now_ns,
                    labels=labels,
                )
                rows.insert(info, source=found.source)
                return True

        if await self._blocking(offer):
            log.info("layer_served", source=str(found.source))
            self._figures.layers["served"] += 1
            raise TargetAvailableError(wanted.reference)
        self._figures.layers["conflicting"] += 1
        log.warning("layer_conflicts")

    async def _create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> tuple[Mount, ...]:
        check_name(key, role="key")
        kept = stored_labels(labels)
        mapped = mapped_root(kept)

        def look() -> Stack:
            with self._metastore.reading() as rows:
                check_place(rows, key, parent)
                return Stack.below(rows.chain(parent))

        def make(checked: Stack, owner: RootOwner | None) -> Snapshot | None:
            with self._metastore.writing() as rows:
                check_place(rows, key, parent)
                if Stack.below(rows.chain(parent)) != checked:
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
            await self._lowers(kept, stack)  # what may take long, or be refused, is done before there is a row
            snapshot = await self._blocking(make, stack, owner)
            if snapshot is not None:  # None: the parent was replaced meanwhile by another one of its name
                lowers = await self._lowers(snapshot.info.labels, stack)
                if self._pinner is not None and stack.sources:
                    await self._pinner.tell()
                return self._mounts(snapshot, lowers)

    def _local_owner(self, stack: Stack) -> RootOwner | None:
        """Owner of the root directory of an ordinary parent."""
        return self._directories.owner_of(stack.members[0].number) if stack.members else None

    async def _mounted_root(self, labels: Mapping[str, str], stack: Stack) -> Path | None:
        """The metadata image of the root file system at the bottom, mounted; None if the tree itself is to be used."""
        whole = stack.whole
        if self._images is None or whole is None or id_mapping(labels):
            return None  # overlay cannot be mapped, and that is what an image is mounted as
        return await self._images.lower(*whole)

    async def _lowers(self, labels: Mapping[str, str], stack: Stack) -> tuple[Path, ...]:
        """The directories below a snapshot with *labels*, uppermost first.

        Raises:
            CannotMapError: the labels map IDs, and that cannot be done there.
        """
        root = await self._mounted_root(labels, stack)

        def links() -> tuple[Path, ...]:
            return tuple(
                self._directories.lower(one.number, None if one.source is None else self._layers.path(one.source))
                for one in stack.members
            )

        lowers = await self._blocking(links)
        if id_mapping(labels) and lowers:
            return await self._id_mapping.real(lowers)
        return lowers if root is None else (*lowers[:-1], root)

    def _mounts(self, snapshot: Snapshot, lowers: Sequence[Path]) -> tuple[Mount, ...]:
        """The mounts of an Active snapshot or a View."""
        mapping = id_mapping(snapshot.info.labels)
        content = self._directories.content(snapshot.number)
        if snapshot.info.kind is Kind.VIEW:
            return view_mounts(own=content, lowers=lowers, traits=self._traits, id_mapping=mapping)
        work = self._directories.work(snapshot.number)
        return active_mounts(upper=content, work=work, lowers=lowers, traits=self._traits, id_mapping=mapping)

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
