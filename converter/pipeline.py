"""From the name of an image to a commit that makes it visible. Collaborators are arguments.

Order of things: what the name leads to now; is that what is published already; config and manifest; the layers that the
repository does not have, in parallel; flattening; catalogs; one commit. Up to the commit nothing is visible, and all of
it can be repeated, or done twice at once, without harm.
"""

import platform as machine
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from converter import placement
from converter.apptainer import with_apptainer_files
from converter.changeset import ChangeSet, decode, encode
from converter.errors import ChangeSetError, ConverterError, CorruptLayerError, ImageRefusedError
from converter.flatten import Tree, layer_alone, same_tree
from converter.image_records import (
    Event,
    LayerRecord,
    PlatformImage,
    Provenance,
    SignedStatement,
    SourceRecord,
    decode_history,
    encode_history,
)
from converter.inventory import PROVENANCE_FILE, STATEMENT_FILE
from converter.layer_fetching import fetch_layer
from converter.limits import Limits
from converter.placement import LayerDescription, Naming, NewChain, NewLayer, Placement
from converter.sources import FoundImage, ImageSource, OpenSource
from converter.tree_digest import digest_of, items_of_tree
from fs.errors import OvertakenError, RefusedError
from fs.format.tree import Content, Node
from fs.publish.repository import Repository
from fs.publish.view import View
from fs.rootfs.erofs import build_metadata_image
from fs.runtime.errors import UnpackdError
from registry_proxy.oci import media_types
from registry_proxy.oci.digest import Digest
from registry_proxy.oci.manifest import Descriptor, ImageConfig, Platform, parse_config, require_image

if TYPE_CHECKING:
    from fs.publish.operations import Operation
    from registry_proxy.client import RegistryClient

LAYERS_AT_ONCE = 4
COMMIT_TIMEOUT_S = 600.0
_REPORT_EVERY_S = 0.1
_MOST_MACHINES = Platform("linux", "amd64")
_ODD_PLATFORM = re.compile(r"[^a-z0-9_./-]|\.\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionRequest:
    """What is to be converted."""

    source: ImageSource
    platforms: tuple[Platform, ...] = ()  # none: that of this machine; several: each gets a name of its own
    every_platform: bool = False  # all that there are
    refuses_losses: bool = False  # an image of which something has to be left out is refused
    name: str | None = None  # ``registry/repository:tag`` in the repository; None: what the source says


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a conversion is."""

    stage: str  # "resolving", "layers", "flattening", "publishing", "done"
    layers_total: int = 0
    layers_done: int = 0
    bytes_total: int = 0  # of the layers that are fetched
    bytes_fetched: int = 0
    entries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionResult:
    """What came of a conversion."""

    reference: str
    name: str
    platform: str
    resolved_digest: str
    manifest_digest: str
    config_digest: str
    public_path: str  # in the repository, with a leading slash
    flat_path: str
    revision: int
    changed: bool
    layers_total: int = 0
    layers_converted: int = 0
    bytes_fetched: int = 0
    entries: int = 0  # of the layers that were converted
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    images: tuple[PlatformImage, ...] = ()  # one a platform, if platforms were asked for by name or all

    def as_json(self) -> dict[str, object]:
        """The result as JSON has it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer of the image, with what the repository knows of it."""

    description: LayerDescription
    changes: ChangeSet
    is_new: bool


@dataclass(frozen=True, slots=True)
class _Image:
    """The image of one platform, with all that is needed to publish it."""

    platform: Platform
    found: FoundImage
    config_bytes: bytes
    config: ImageConfig
    layers: list[_Layer]

    @property
    def digests(self) -> PlatformImage:
        """What the records say of it."""
        return PlatformImage(
            platform=str(self.platform),
            manifest=str(self.found.manifest_digest),
            config=str(self.found.manifest.config.digest),
        )


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
    meter = _Meter(report)
    meter.stage("resolving")
    async with request.source.open(client) as source:
        for last_try in (False, False, True):
            conversion = _Conversion(request, source, repository, limits or Limits(), meter, layers_at_once)
            try:
                result = await conversion.run()
                break
            except OvertakenError:  # what was there at the beginning was collected meanwhile
                if last_try:
                    raise
    meter.stage("done")
    return result


class _Meter:
    """Counts and tells. Threads count entries; telling is done in the event loop only."""

    def __init__(self, report: Callable[[Progress], None]) -> None:
        self._report = report
        self._stage = ""
        self._told = 0.0
        self._lock = threading.Lock()
        self._entered = time.monotonic()
        self.steps: dict[str, float] = {}  # seconds that stages took which are over
        self.layers_total = self.layers_done = self.bytes_total = self.bytes_fetched = self.entries = 0
        self.started = time.monotonic()

    def stage(self, name: str) -> None:
        """Tell of a new stage at once."""
        now = time.monotonic()
        if self._stage:
            self.steps[self._stage] = round(self.steps.get(self._stage, 0) + now - self._entered, 3)
        self._entered = now
        self._stage = name
        self._tell()

    def fetched(self, count: int) -> None:
        """Count bytes; tell now and then."""
        self.bytes_fetched += count
        if time.monotonic() - self._told > _REPORT_EVERY_S:
            self._tell()

    def count_entries(self, count: int) -> None:
        """Count entries; for threads."""
        with self._lock:
            self.entries += count

    def _tell(self) -> None:
        self._told = time.monotonic()
        self._report(
            Progress(
                stage=self._stage,
                layers_total=self.layers_total,
                layers_done=self.layers_done,
                bytes_total=self.bytes_total,
                bytes_fetched=self.bytes_fetched,
                entries=self.entries,
            )
        )

    @property
    def seconds(self) -> float:
        """Since the start."""
        return round(time.monotonic() - self.started, 3)


class _Conversion:
    """One image on its way."""

    def __init__(  # noqa: PLR0913, PLR0917  # made in one place
        self,
        request: ConversionRequest,
        source: OpenSource,
        repository: Repository,
        limits: Limits,
        meter: _Meter,
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
        self._machine = Platform.parse(f"linux/{machine.machine()}")
        self._is_multiple = request.every_platform or len(request.platforms) > 1
        self._asked = "all" if request.every_platform else ",".join(map(str, request.platforms or (self._machine,)))

    async def run(self) -> ConversionResult:
        resolved = await self._source.resolve()
        known = await anyio.to_thread.run_sync(self._published, resolved)
        if known is not None:
            return known
        images = [await self._image(resolved, platform) for platform in await self._platforms(resolved)]
        self._meter.stage("flattening")
        return await anyio.to_thread.run_sync(self._publish, resolved, images)

    async def _platforms(self, resolved: Digest) -> list[Platform]:
        """Whose images are to be converted."""
        if not self._request.every_platform:
            return list(dict.fromkeys(self._request.platforms or (self._machine,)))
        offered = await self._source.platforms(resolved)
        for platform in offered:
            if platform.os != "linux":
                self._notes.append(f"the image for {platform} is left out: only Linux images can be unpacked")
        return [platform for platform in offered if platform.os == "linux"] or [self._machine]

    async def _image(self, resolved: Digest, platform: Platform) -> _Image:
        found = await self._source.find(resolved, platform)
        require_image(found.manifest)
        config_bytes = await self._source.config(found.manifest.config)
        config = parse_config(config_bytes)
        self._check(found, config, platform)
        layers = await self._layers(found.manifest.layers, config.diff_ids)
        if self._is_multiple and found.index_bytes is None:  # one image, whatever was asked for
            platform = config.platform
        for number, layer in enumerate(layers, 1):
            if self._request.refuses_losses and layer.changes.warnings:
                raise ImageRefusedError(
                    f"{self._name}: layer {number} of {len(layers)}: {layer.changes.warnings[0]}; "
                    "an image of which something has to be left out is refused, as --strict asks for"
                )
        return _Image(platform, found, config_bytes, config, layers)

    # --- what is there

    def _published(self, resolved: Digest) -> ConversionResult | None:
        """The result if the name leads to what is published under it; None if there is something to do."""
        view = self._repository.view()
        path = placement.record_path(self._name)
        if view.lookup(path) is None:
            return None
        record = SourceRecord.parse(view.read(path, placement.RECORD_LIMIT_BYTES))
        if record is None or record.resolved != str(resolved) or not self._is_covered_by(record):
            return None
        for image in record.all_images:
            if view.lookup(placement.flat_path(image.config)) is None:
                return None
        public = placement.public_path(self._name)
        links = {public: placement.public_target(public, record.config)}
        if record.images:
            directories = {one: placement.platform_directory(Platform.parse(one.platform)) for one in record.images}
            links = {
                link: placement.public_target(link, one.config)
                for one, directory in directories.items()
                for link in [placement.platform_link(directory, self._name)]
            }
            default = next(directory for one, directory in directories.items() if one.config == record.config)
            links[public] = placement.variant_target(self._name, default)
        for link, target in links.items():
            entry = view.lookup(link)
            if entry is None or not entry.is_symlink or entry.target != target:
                return None
        return self._result(record, view.revision, changed=False)

    def _is_covered_by(self, record: SourceRecord) -> bool:
        if record.platform == self._asked:
            return True
        is_default = not self._request.platforms and not self._request.every_platform
        return is_default and str(self._machine) in {one.platform for one in record.images}

    def _result(
        self, record: SourceRecord, revision: int, *, changed: bool, layers: Sequence[_Layer] = ()
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
            if media_types.is_foreign(layer.media_type):
                raise ImageRefusedError(
                    f"{self._name}: layer {layer.digest} is a foreign layer ({layer.media_type}), which its owner does "
                    "not allow to be copied; build the image on a base without such layers"
                )
        if len(layers) != len(config.diff_ids):
            raise CorruptLayerError(
                f"{self._name}: the manifest has {len(layers)} layers, but the config {len(config.diff_ids)} DiffIDs"
            )
        if config.platform.os != "linux":
            raise ImageRefusedError(
                f"{self._name} is an image for {config.platform}; only Linux images can be unpacked"
            )
        if self._request.platforms and config.platform.architecture not in ("", platform.architecture):
            raise ImageRefusedError(f"{self._name} is an image for {config.platform}, not for {platform}")
        if _ODD_PLATFORM.search(str(config.platform)) or _ODD_PLATFORM.search(str(platform)):
            raise ImageRefusedError(f"{self._name}: {str(config.platform)!r} cannot be the name of a platform")

    async def _layers(self, descriptors: Sequence[Descriptor], diff_ids: Sequence[Digest]) -> list[_Layer]:
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
            with _naming_descriptor(descriptor, descriptors):
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
            _Layer(LayerDescription(str(d.digest), d.media_type, d.size_bytes, str(diff_id)), *found[d.digest, diff_id])
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

    def _publish(self, resolved: Digest, images: Sequence[_Image]) -> ConversionResult:
        """Flatten, build the catalogs, commit. Runs in a thread."""
        view = self._repository.view()
        done: list[Operation] = []
        for image in images:
            done += placement.image_operations(self._place(view, image))
            self._meter.stage("flattening")
        default = _default_of(images, self._machine)
        now = datetime.now(UTC)
        record = SourceRecord(
            platform=self._asked,
            resolved=str(resolved),
            manifest=default.digests.manifest,
            config=default.digests.config,
            images=tuple(image.digests for image in images) if self._is_multiple else (),
            converted=now.isoformat(timespec="seconds"),
        )
        self._meter.stage("publishing")
        done += placement.naming_operations(self._naming(view, record, now, images, default))
        commit = self._repository.commit(done, timeout_s=COMMIT_TIMEOUT_S)
        layers = [layer for image in images for layer in image.layers]
        return self._result(record, commit.revision, changed=commit.changed, layers=layers)

    def _place(self, view: View, image: _Image) -> Placement:
        """All that *image* adds to what *view* has; contents and catalogs are stored."""
        repository, layers, config = self._repository, image.layers, image.digests.config
        chains = placement.chain_ids([layer.description.diff_id for layer in layers])
        tree, new_chains = self._flatten(view, layers, chains)
        self._meter.stage("publishing")
        flat = apptainer = None
        if view.lookup(placement.flat_path(config)) is None:
            flat = repository.prepare_subtree(placement.flat_path(config), tree)
        if view.lookup(placement.apptainer_path(config)) is None:
            whole = with_apptainer_files(tree, image.config, self._put)
            apptainer = repository.prepare_subtree(placement.apptainer_path(config), whole)
        has_flat = bool(chains) and view.lookup(placement.chain_path(chains[-1]) + b"/flat") is not None
        return Placement(
            config=config,
            manifest=image.digests.manifest,
            layers=list(dict.fromkeys(layer.description.digest for layer in layers)),
            chains=chains,
            new_layers=self._new_layers(layers),
            origins=self._origins(view, layers, config),
            new_chains=new_chains,
            flat=flat,
            apptainer=apptainer,
            flat_chain=chains[-1] if chains and not has_flat else None,
            root_images=self._root_images(view, chains[-1], tree, config) if chains else {},
            image_files=self._image_files(view, image, tree),
        )

    def _naming(
        self, view: View, record: SourceRecord, now: datetime, images: Sequence[_Image], default: _Image
    ) -> Naming:
        """What becomes of the name."""
        directories = {
            placement.platform_directory(image.platform): image.digests.config
            for image in (images if self._is_multiple else ())
        }
        links = {placement.platform_link(directory, self._name) for directory in directories}
        return Naming(
            name=self._name,
            config=record.config,
            platforms=directories,
            default=placement.platform_directory(default.platform) if directories else "",
            stale=[link for link in platform_links(view, self._name) if link not in links],
            ducc_manifest=self._put(self._ducc_manifest(default.found, default.layers)),
            record=self._put(record.encode()),
            history=self._put(self._history(view, record, now)),
        )

    def _history(self, view: View, record: SourceRecord, now: datetime) -> bytes:
        path = placement.history_path(self._name)
        events: list[Event] = []
        if view.lookup(path) is not None:
            events = decode_history(view.read(path, placement.RECORD_LIMIT_BYTES))
        if not events or replace(events[-1].record, converted="") != replace(record, converted=""):
            events.append(Event(record, now))
        return encode_history(events)

    def _flatten(self, view: View, layers: Sequence[_Layer], chains: Sequence[str]) -> tuple[Node, dict[str, NewChain]]:
        """The image's tree, and the chains that the repository does not have."""
        tree = Tree()
        new_chains: dict[str, NewChain] = {}
        for number, (layer, chain) in enumerate(zip(layers, chains, strict=True)):
            digest = layer.description.digest
            with _naming_layer(number + 1, len(layers), digest):
                overlay = tree.apply(layer.changes)
            if view.lookup(placement.chain_path(chain) + b"/layer") is not None:
                continue
            own = None
            if not same_tree(overlay, layer_alone(layer.changes)):
                own = self._repository.prepare_subtree(placement.chain_path(chain) + b"/layerfs", overlay)
            parent = chains[number - 1] if number else None
            new_chains[chain] = NewChain(layer=digest, parent=parent, own_layer=own)
        return tree.root, new_chains

    def _root_images(self, view: View, chain: str, tree: Node, config: str) -> dict[str, Content]:
        """The metadata image of the chain *chain*, whose tree is *tree*; nothing if it is there or cannot be made."""
        if view.lookup(placement.root_image_path(chain)) is not None:
            return {}
        link = placement.chain_path(chain) + b"/flat"
        flat = placement.flat_path(config)
        if view.lookup(link) is not None:  # another image with the same layers was first
            flat = placement.linked_flat_path(view.readlink(link))

        def data_path(path: bytes, node: Node) -> bytes | None:
            return flat + path if node.content is not None and node.content.size else None

        try:
            image = build_metadata_image(tree, data_path)
        except RefusedError as error:  # nodes use the tree itself then
            self._notes.append(f"the root file system has no metadata image: {error}")
            return {}
        return {chain: self._put(image)}

    def _new_layers(self, layers: Sequence[_Layer]) -> dict[str, NewLayer]:
        now = datetime.now(UTC)
        new: dict[str, NewLayer] = {}
        for layer in layers:
            digest = layer.description.digest
            if layer.is_new and digest not in new:
                path = placement.layerfs_path(digest)
                new[digest] = NewLayer(
                    subtree=self._repository.prepare_subtree(path, layer_alone(layer.changes)),
                    change_set=self._put(encode(layer.changes)),
                    record=self._put(placement.layer_record(layer.description, layer.changes.unpacked_bytes, now)),
                )
        return new

    def _origins(self, view: View, layers: Sequence[_Layer], config: str) -> dict[str, Content]:
        origins: dict[str, Content] = {}
        for digest in dict.fromkeys(layer.description.digest for layer in layers):
            path = placement.origin_path(digest)
            before = view.read(path, placement.RECORD_LIMIT_BYTES) if view.lookup(path) is not None else None
            record = placement.origin_record(before, config)
            if record is not None:
                origins[digest] = self._put(record)
        return origins

    def _image_files(self, view: View, image: _Image, tree: Node) -> Mapping[bytes, Content]:
        """The files of ``.unpackd/images``; none if they are there."""
        path = placement.image_path(image.digests.manifest)
        if view.lookup(path + b"/" + STATEMENT_FILE) is not None:
            return {}
        items = list(items_of_tree(tree))
        files = [item for item in items if item.content is not None and item.first == item.path]
        provenance = Provenance(
            source=str(self._request.source),
            name=self._name,
            platform=str(image.platform),
            resolved=str(image.found.resolved),
            manifest=image.digests.manifest,
            config=image.digests.config,
            layers=tuple(
                LayerRecord(digest=one.digest, diff_id=one.diff_id, media_type=one.media_type, size=one.size)
                for one in (layer.description for layer in image.layers)
            ),
            tree=digest_of(items),
            tool=f"unpackd {metadata.version('unpackd')}",
            converted=datetime.now(UTC),
            files=len(files),
            size=sum(item.content.size for item in files if item.content is not None),
            entries=len(items),
            seconds=dict(self._meter.steps),
        ).encode()
        statement = SignedStatement(
            provenance,
            self._repository.sign(SignedStatement.signed_bytes(provenance)),
            self._repository.certificate_pem,
        )
        contents = {
            b"manifest.json": image.found.manifest_bytes,
            b"config.json": image.config_bytes,
            PROVENANCE_FILE: provenance,
            STATEMENT_FILE: statement.encode(),
        }
        if image.found.index_bytes is not None:
            contents[b"index.json"] = image.found.index_bytes
        return {name: self._put(data) for name, data in contents.items()}

    @staticmethod
    def _ducc_manifest(found: FoundImage, layers: Sequence[_Layer]) -> bytes:
        config = found.manifest.config
        return placement.ducc_manifest(
            found.manifest.media_type,
            (config.media_type, str(config.digest), config.size_bytes),
            [layer.description for layer in layers],
        )

    def _put(self, data: bytes) -> Content:
        return self._repository.ingester().add_bytes(data)


def _default_of(images: Sequence[_Image], machine_platform: Platform) -> _Image:
    """The image for readers whose platform is not known: that of most machines, else of this one, else the first."""
    for wanted in (_MOST_MACHINES, machine_platform):
        for image in images:
            if (image.platform.os, image.platform.architecture) == (wanted.os, wanted.architecture):
                return image
    return images[0]


def platform_links(view: View, name: str) -> list[bytes]:
    """The links for single platforms that *name* has."""
    if view.lookup(placement.MULTIARCH) is None:
        return []
    directories = [entry.name.decode() for entry in view.list(placement.MULTIARCH) if entry.is_directory]
    links = [placement.platform_link(directory, name) for directory in directories]
    return [link for link in links if view.lookup(link) is not None]


@contextmanager
def _naming_descriptor(descriptor: Descriptor, descriptors: Sequence[Descriptor]) -> Iterator[None]:
    with _naming_layer(descriptors.index(descriptor) + 1, len(descriptors), str(descriptor.digest)):
        yield


@contextmanager
def _naming_layer(number: int, total: int, digest: str) -> Iterator[None]:
    """Let errors say which layer they are about."""
    try:
        yield
    except ConverterError as error:
        error.where = f"layer {number} of {total} ({digest}): "
        raise


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
