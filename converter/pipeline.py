"""From the name of an image to a commit that makes it visible. Collaborators are arguments.

Order of things: what the name leads to now; is that what is published already; config and manifest; the layers that the
repository does not have, in parallel; flattening; catalogs; one commit. Up to the commit nothing is visible, and all of
it can be repeated, or done twice at once, without harm.
"""

import platform as machine
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from converter import placement
from converter.changeset import ChangeSet, decode, encode
from converter.errors import ChangeSetError, ConverterError, CorruptLayerError, ImageRefusedError
from converter.flatten import Tree, layer_alone, same_tree
from converter.layer_fetching import fetch_layer
from converter.limits import Limits
from converter.placement import LayerDescription, NewChain, NewLayer, Placement, SourceRecord
from converter.sources import FoundImage, ImageSource, OpenSource
from fs.errors import RefusedError
from fs.format.tree import Content, Node
from fs.publish.repository import Repository
from fs.publish.view import View
from fs.rootfs.erofs import build_metadata_image
from fs.runtime.errors import UnpackdError
from registry_proxy.oci import media_types
from registry_proxy.oci.digest import Digest
from registry_proxy.oci.manifest import Descriptor, ImageConfig, Platform, parse_config, require_image

if TYPE_CHECKING:
    from registry_proxy.client import RegistryClient

LAYERS_AT_ONCE = 4
COMMIT_TIMEOUT_S = 600.0
_REPORT_EVERY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionRequest:
    """What is to be converted."""

    source: ImageSource
    platform: Platform | None = None  # None: that of this machine
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

    def as_json(self) -> dict[str, object]:
        """The result as JSON has it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer of the image, with what the repository knows of it."""

    description: LayerDescription
    changes: ChangeSet
    is_new: bool


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
        conversion = _Conversion(request, source, repository, limits or Limits(), meter, layers_at_once)
        result = await conversion.run()
    meter.stage("done")
    return result


class _Meter:
    """Counts and tells. Threads count entries; telling is done in the event loop only."""

    def __init__(self, report: Callable[[Progress], None]) -> None:
        self._report = report
        self._stage = ""
        self._told = 0.0
        self._lock = threading.Lock()
        self.layers_total = self.layers_done = self.bytes_total = self.bytes_fetched = self.entries = 0
        self.started = time.monotonic()

    def stage(self, name: str) -> None:
        """Tell of a new stage at once."""
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
        self._platform = request.platform or Platform.parse(f"linux/{machine.machine()}")

    async def run(self) -> ConversionResult:
        resolved = await self._source.resolve()
        known = await anyio.to_thread.run_sync(self._published, resolved)
        if known is not None:
            return known
        found = await self._source.find(resolved, self._platform)
        require_image(found.manifest)
        config_bytes = await self._source.config(found.manifest.config)
        config = parse_config(config_bytes)
        self._check(found, config)
        layers = await self._layers(found.manifest.layers, config.diff_ids)
        self._meter.stage("flattening")
        return await anyio.to_thread.run_sync(self._publish, found, config_bytes, layers)

    # --- what is there

    def _published(self, resolved: Digest) -> ConversionResult | None:
        """The result if the name leads to what is published under it; None if there is something to do."""
        view = self._repository.view()
        path = placement.record_path(self._name)
        if view.lookup(path) is None:
            return None
        record = SourceRecord.parse(view.read(path, placement.RECORD_LIMIT_BYTES))
        if record is None or (record.resolved, record.platform) != (str(resolved), str(self._platform)):
            return None
        public = view.lookup(placement.public_path(self._name))
        if public is None or not public.is_symlink or view.lookup(placement.flat_path(record.config)) is None:
            return None
        if view.readlink(placement.public_path(self._name)) != placement.public_target(self._name, record.config):
            return None
        return self._result(record, view.revision, changed=False)

    def _result(
        self, record: SourceRecord, revision: int, *, changed: bool, layers: Sequence[_Layer] = ()
    ) -> ConversionResult:
        new = {layer.description.digest: layer for layer in layers if layer.is_new}.values()
        return ConversionResult(
            reference=str(self._request.source),
            name=self._name,
            platform=str(self._platform),
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

    def _check(self, found: FoundImage, config: ImageConfig) -> None:
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
        asked = self._request.platform
        if asked is not None and config.platform.architecture not in ("", asked.architecture):
            raise ImageRefusedError(f"{self._name} is an image for {config.platform}, not for {asked}")

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
            with _naming(descriptor, descriptors):
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

    def _publish(self, found: FoundImage, config: bytes, layers: Sequence[_Layer]) -> ConversionResult:
        """Flatten, build the catalogs, commit. Runs in a thread."""
        repository = self._repository
        record = SourceRecord(
            platform=str(self._platform),
            resolved=str(found.resolved),
            manifest=str(found.manifest_digest),
            config=str(found.manifest.config.digest),
        )
        view = repository.view()
        chains = placement.chain_ids([layer.description.diff_id for layer in layers])
        tree, new_chains = self._flatten(view, layers, chains)
        self._meter.stage("publishing")
        flat = None
        if view.lookup(placement.flat_path(record.config)) is None:
            flat = repository.prepare_subtree(placement.flat_path(record.config), tree)
        has_flat = bool(chains) and view.lookup(placement.chain_path(chains[-1]) + b"/flat") is not None
        commit = repository.commit(
            placement.operations(
                Placement(
                    name=self._name,
                    config=record.config,
                    manifest=record.manifest,
                    new_layers=self._new_layers(layers),
                    origins=self._origins(view, layers, record.config),
                    new_chains=new_chains,
                    flat=flat,
                    flat_chain=chains[-1] if chains and not has_flat else None,
                    root_images=self._root_images(view, chains[-1], tree, record.config) if chains else {},
                    image_files=self._image_files(view, found, config, layers, tree),
                    ducc_manifest=self._put(self._ducc_manifest(found, layers)),
                    record=self._put(record.encode()),
                )
            ),
            timeout_s=COMMIT_TIMEOUT_S,
        )
        return self._result(record, commit.revision, changed=commit.changed, layers=layers)

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

    def _image_files(
        self, view: View, found: FoundImage, config: bytes, layers: Sequence[_Layer], tree: Node
    ) -> Mapping[bytes, Content]:
        """The files of ``.unpackd/images``; none if they are there."""
        if view.lookup(placement.image_path(str(found.manifest_digest))) is not None:
            return {}
        provenance = placement.provenance_record(
            source=str(self._request.source),
            name=self._name,
            platform=str(self._platform),
            resolved=str(found.resolved),
            manifest=str(found.manifest_digest),
            config=str(found.manifest.config.digest),
            layers=[layer.description for layer in layers],
            tree=placement.tree_digest(tree),
            tool=f"unpackd {metadata.version('unpackd')}",
            converted=datetime.now(UTC),
        )
        files = {b"manifest.json": found.manifest_bytes, b"config.json": config, b"provenance.json": provenance}
        if found.index_bytes is not None:
            files[b"index.json"] = found.index_bytes
        return {name: self._put(data) for name, data in files.items()}

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


@contextmanager
def _naming(descriptor: Descriptor, descriptors: Sequence[Descriptor]) -> Iterator[None]:
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
