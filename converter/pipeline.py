"""From the name of an image to a commit that makes it visible. Collaborators are arguments.

Order of things: what the name leads to now; is that what is published already; config and manifest; the layers that the
repository does not have, in parallel; flattening; catalogs; one commit. Up to the commit nothing is visible, and all of
it can be repeated, or done twice at once, without harm.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from converter import placement
from converter.changeset import ChangeSet, decode
from converter.conversion import ConversionRequest, ConversionResult, ReadImage, ReadLayer
from converter.errors import ChangeSetError, CorruptLayerError, ImageRefusedError
from converter.image_platforms import PlatformChoice, leads_as_recorded
from converter.image_records import SourceRecord
from converter.image_trees import naming_layer
from converter.layer_fetching import fetch_layer
from converter.limits import Limits
from converter.placement import LayerDescription
from converter.progress import Meter, Progress
from converter.publication import Publication
from converter.sources import FoundImage, OpenSource
from converter.terms import Policy
from converter.thin_images import refuse_thin
from fs.errors import ChangedError, OvertakenError
from fs.publish.repository import Repository
from fs.runtime.errors import UnpackdError
from registry_proxy.oci import media_types
from registry_proxy.oci.digest import Digest
from registry_proxy.oci.manifest import Descriptor, ImageConfig, Platform, parse_config, require_image

if TYPE_CHECKING:
    from registry_proxy.client import RegistryClient

LAYERS_AT_ONCE = 4
_COMMIT_TRIES = 100  # each that fails means that somebody else's commit was made
_LONGEST_PAUSE_S = 0.2


async def convert_image(  # noqa: PLR0913  # collaborators, all by name
    request: ConversionRequest,
    repository: Repository,
    report: Callable[[Progress], None] = lambda _: None,
    *,
    limits: Limits | None = None,
    client: "RegistryClient | None" = None,
    layers_at_once: int = LAYERS_AT_ONCE,
) -> ConversionResult:
    """Publish an image.

    Args:
        request: which one.
        repository: where to.
        report: told, in the event loop, how far it is.
        limits: what a layer may cost.
        client: for registries; None for one of its own.
        layers_at_once: how many layers are fetched and unpacked at the same time.

    Raises:
        UnpackdError: the image is not published and nothing has changed; the message says why.
    """
    meter = Meter(report)
    meter.stage("resolving")
    async with request.source.open(client) as source:
        for last_try in (False, False, True):
            conversion = _Conversion(request, source, repository, limits or Limits(), meter, layers_at_once)
            try:
                result = await conversion.run()
                break
            except OvertakenError:  # what was there at the beginning was collected, or the tag moved on meanwhile
                if last_try:
                    raise
    meter.stage("done")
    return result


class _Conversion:
    """One image on its way."""

    def __init__(  # noqa: PLR0913, PLR0917  # made in one place
        self,
        request: ConversionRequest,
        source: OpenSource,
        repository: Repository,
        limits: Limits,
        meter: Meter,
        layers_at_once: int,
    ) -> None:
        self._request = request
        self._source = source
        self._repository = repository
        self._limits = limits
        self._meter = meter
        self._layers_at_once = layers_at_once
        self._notes: list[str] = []
        self._name = request.name or source.name
        self._choice = PlatformChoice(request)
        self._publication = Publication(repository, self._name, str(request.source), meter, self._notes.append)

    async def run(self) -> ConversionResult:
        if self._request.policy is Policy.PIN:  # then it does not matter what the name leads to now
            known = await anyio.to_thread.run_sync(self._published, None)
            if known is not None:
                return known
        await anyio.to_thread.run_sync(self._publication.note_history)
        resolved = await self._source.resolve()
        known = await anyio.to_thread.run_sync(self._published, resolved)
        if known is not None:
            return known
        images = [await self._image(resolved, platform) for platform in await self._platforms(resolved)]
        self._meter.stage("flattening")
        return await self._publish(resolved, images)

    async def _platforms(self, resolved: Digest) -> list[Platform]:
        """Whose images are to be converted."""
        if not self._choice.is_every:
            return self._choice.named
        offered = await self._source.platforms(resolved)
        for platform in offered:
            if platform.os != "linux":
                self._notes.append(f"the image for {platform} is left out: only Linux images can be unpacked")
        return self._choice.of(offered)

    async def _image(self, resolved: Digest, platform: Platform) -> ReadImage:
        found = await self._source.find(resolved, platform)
        require_image(found.manifest)
        config_bytes = await self._source.config(found.manifest.config)
        config = parse_config(config_bytes)
        self._check(found, config, platform)
        await refuse_thin(self._name, self._source, found.manifest, config)
        layers = await self._layers(found.manifest.layers, config.diff_ids)
        if self._choice.is_multiple and found.index_bytes is None:  # one image, whatever was asked for
            platform = config.platform
        for number, layer in enumerate(layers, 1):
            if self._request.refuses_losses and layer.changes.warnings:
                raise ImageRefusedError(
                    f"{self._name}: layer {number} of {len(layers)}: {layer.changes.warnings[0]}; "
                    "an image of which something has to be left out is refused, as --strict asks for"
                )
        return ReadImage(platform, found, config_bytes, config, layers)

    def _published(self, resolved: Digest | None) -> ConversionResult | None:
        """The result if the name leads to what is published under it; None if there is something to do.

        With *resolved* None, whatever is published will do.
        """
        view = self._repository.view()
        path = placement.record_path(self._name)
        if view.lookup(path) is None:
            return None
        record = SourceRecord.parse(view.read(path, placement.RECORD_LIMIT_BYTES))
        if record is None or not self._choice.is_covered_by(record) or not leads_as_recorded(view, self._name, record):
            return None
        if resolved is not None and record.resolved != str(resolved):
            return None
        if self._request.policy is Policy.ARCHIVE and not all(
            view.lookup(placement.pin_path(image.manifest)) for image in record.all_images
        ):
            return None
        return self._result(record, view.revision, changed=False)

    def _result(
        self, record: SourceRecord, revision: int, *, changed: bool, layers: Sequence[ReadLayer] = ()
    ) -> ConversionResult:
        new = {layer.description.digest: layer for layer in layers if layer.is_new}.values()
        return ConversionResult(
            reference=str(self._request.source),
            name=self._name,
            platform=record.platform,
            resolved_digest=record.resolved,
            manifest_digest=record.manifest,
            config_digest=record.config,
            public_path=placement.public_path(self._name).decode(),
            flat_path=placement.flat_path(record.config).decode(),
            revision=revision,
            changed=changed,
            layers_total=len(layers),
            layers_converted=len(new),
            bytes_fetched=self._meter.bytes_fetched,
            entries=sum(len(layer.changes.entries) for layer in new),
            seconds=self._meter.seconds,
            images=record.images,
            warnings=(
                *self._notes,
                *(
                    f"layer {number} of {len(layers)}: {text}"
                    for number, layer in enumerate(layers, 1)
                    for text in layer.changes.warnings
                ),
            ),
        )

    # --- the image and its layers

    def _check(self, found: FoundImage, config: ImageConfig, platform: Platform) -> None:
        """Refuse what is no Linux root file system, or not what was asked for."""
        layers = found.manifest.layers
        for layer in layers:
            if media_types.is_foreign(layer.media_type) and not self._request.takes_foreign_layers:
                raise ImageRefusedError(
                    f"{self._name}: layer {layer.digest} is a foreign layer ({layer.media_type}), which its owner does "
                    "not allow to be copied; if you may, let --foreign-layers fetch take it from the registry"
                )
        if len(layers) != len(config.diff_ids):
            raise CorruptLayerError(
                f"{self._name}: the manifest has {len(layers)} layers, but the config {len(config.diff_ids)} DiffIDs"
            )
        self._choice.check(self._name, config.platform, platform)

    async def _layers(self, descriptors: Sequence[Descriptor], diff_ids: Sequence[Digest]) -> list[ReadLayer]:
        """All layers, lowest first; those that the repository does not have are fetched, several at a time."""
        pairs = list(zip(descriptors, diff_ids, strict=True))
        found: dict[tuple[Digest, Digest], tuple[ChangeSet, bool]] = {}
        for pair in dict.fromkeys((descriptor.digest, diff_id) for descriptor, diff_id in pairs):
            stored = await anyio.to_thread.run_sync(self._stored_layer, *pair)
            if stored is not None:
                found[pair] = (stored, False)
        missing = {(d.digest, diff_id): d for d, diff_id in pairs if (d.digest, diff_id) not in found}
        self._meter.layers_total = len(pairs)
        self._meter.layers_done = len(pairs) - len(missing)
        self._meter.bytes_total = sum(descriptor.size_bytes for descriptor in missing.values())
        self._meter.stage("layers")
        threads = anyio.CapacityLimiter(self._layers_at_once)

        async def fetch(descriptor: Descriptor, diff_id: Digest) -> None:
            with naming_layer(descriptors.index(descriptor) + 1, len(descriptors), str(descriptor.digest)):
                changes = await fetch_layer(
                    self._source,
                    descriptor,
                    diff_id,
                    store=self._repository.ingester(),
                    limits=self._limits,
                    threads=threads,
                    fetched=self._meter.fetched,
                    entered=self._meter.count_entries,
                )
            found[descriptor.digest, diff_id] = (changes, True)
            self._meter.layers_done += 1

        with _one_error():
            async with anyio.create_task_group() as tasks:
                for (_, diff_id), descriptor in missing.items():
                    tasks.start_soon(fetch, descriptor, diff_id)
        return [
            ReadLayer(
                LayerDescription(str(d.digest), d.media_type, d.size_bytes, str(diff_id)), *found[d.digest, diff_id]
            )
            for d, diff_id in pairs
        ]

    def _stored_layer(self, digest: Digest, diff_id: Digest) -> ChangeSet | None:
        """The change set of a layer that the repository has; None if it has none that this program can read."""
        view = self._repository.view()
        path = placement.change_set_path(str(digest))
        if view.lookup(path) is None or view.lookup(placement.layerfs_path(str(digest))) is None:
            return None
        try:
            changes = decode(view.read(path, placement.CHANGE_SET_LIMIT_BYTES))
        except ChangeSetError as error:
            self._notes.append(f"layer {digest} was read again: {error}")
            return None
        if changes.diff_id != str(diff_id):
            raise CorruptLayerError(
                f"layer {digest} has the DiffID {changes.diff_id}, but the config of {self._name} says {diff_id}"
            )
        return changes

    # --- publishing

    async def _publish(self, resolved: Digest, images: Sequence[ReadImage]) -> ConversionResult:
        """Flatten, build the catalogs, commit."""
        publication = self._publication
        is_archive = self._request.policy is Policy.ARCHIVE
        await anyio.to_thread.run_sync(publication.prepare, images)
        self._meter.stage("publishing")
        default = self._choice.default_of(images)
        for tries_left in reversed(range(_COMMIT_TRIES)):
            record = SourceRecord(
                platform=self._choice.asked,
                resolved=str(resolved),
                manifest=default.digests.manifest,
                config=default.digests.config,
                images=tuple(image.digests for image in images) if self._choice.is_multiple else (),
                converted=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            try:
                commit = await anyio.to_thread.run_sync(
                    partial(publication.commit, record, images, default, pins=is_archive)
                )
                break
            except ChangedError:  # others publish at the same time, perhaps under the same name
                if not tries_left:
                    raise
            await anyio.to_thread.run_sync(publication.note_history)
            if await self._source.resolve() != resolved:
                raise OvertakenError(f"{self._name} came to lead elsewhere while it was converted; try again")
            await anyio.sleep(random.random() * _LONGEST_PAUSE_S)  # noqa: S311  # so that not all come back at once
        layers = [layer for image in images for layer in image.layers]
        return self._result(record, commit.revision, changed=commit.changed, layers=layers)


@contextmanager
def _one_error() -> Iterator[None]:
    """Of the errors of several tasks, raise the first that has a message for people; bugs pass as they are."""
    try:
        yield
    except BaseExceptionGroup as group:
        known, rest = group.split(UnpackdError)
        if known is None or rest is not None:
            raise
        error: BaseException = known
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
