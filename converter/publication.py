"""Images that were read on their way into the repository, under one name. Everything here blocks: it is for threads.

Trees and records of the images are prepared first, once. What is added to files that others add to as well (the history
of the name, the origins of layers) is read, and put back on the condition that nobody changed it meanwhile; whoever is
told so by ``ChangedError`` asks the source again, so that nobody who was slow takes a name back, and calls ``commit``
again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING

from converter import placement
from converter.apptainer import with_apptainer_files
from converter.conversion import ReadImage
from converter.image_platforms import platform_links
from converter.image_records import (
    Event,
    LayerRecord,
    Pin,
    Provenance,
    SignedStatement,
    SourceRecord,
    decode_history,
    encode_history,
)
from converter.image_trees import LayerTrees, flatten, new_layers, root_images
from converter.inventory import PROVENANCE_FILE, STATEMENT_FILE
from converter.placement import Naming, Placement
from converter.podman_store import PodmanStore, StoredImage
from converter.progress import Meter
from converter.tree_digest import digest_of, items_of_tree
from fs.format.tree import Content, Node
from fs.publish.operations import Operation, PutFile, RequireSame
from fs.publish.repository import Commit, Repository
from fs.publish.view import View

if TYPE_CHECKING:
    from fs.format.entries import Entry

COMMIT_TIMEOUT_S = 600.0


class Publication:
    """What one conversion publishes."""

    def __init__(
        self, repository: Repository, name: str, source: str, meter: Meter, note: Callable[[str], None]
    ) -> None:
        """Get ready.

        Args:
            repository: where to.
            name: ``registry/repository:tag``.
            source: where the images are from, as the user wrote it.
            meter: told of the steps.
            note: told of what could not be done and does no harm.
        """
        self._repository = repository
        self._name = name
        self._source = source
        self._meter = meter
        self._note = note
        self._operations: list[Operation] = []
        self._layers: dict[str, list[str]] = {}  # digests of the layers by config
        self._history_before: Entry | None = None

    def note_history(self) -> None:
        """What the name led to until now is known; what it leads to at the source has to be asked for after this."""
        self._history_before = self._repository.view().lookup(placement.history_path(self._name))

    def prepare(self, images: Sequence[ReadImage]) -> None:
        """Flatten *images*, and store their trees and records."""
        view = self._repository.view()
        for image in images:
            self._operations += placement.image_operations(self._place(view, image))
            digests = (layer.description.digest for layer in image.layers)
            self._layers[image.digests.config] = list(dict.fromkeys(digests))
            self._meter.stage("flattening")

    def commit(
        self, record: SourceRecord, images: Sequence[ReadImage], default: ReadImage, *, pins: bool = False
    ) -> Commit:
        """Make *images* visible, and let the name lead to them as *record* says; with *pins* they stay for good.

        Raises:
            ChangedError: somebody else changed a record; nothing was changed, and another try will take it in.
            OvertakenError: something that was counted on is gone; nothing was changed.
        """
        view = self._repository.view()
        done = [*self._operations, *self._origins(view)]
        if pins:
            done += self._pins(view, images)
        if PodmanStore.has_name(view, self._name):
            done += self._podman_store(view, default)
        done += placement.naming_operations(self._naming(view, record, images, default))
        return self._repository.commit(done, timeout_s=COMMIT_TIMEOUT_S)

    def _pins(self, view: View, images: Sequence[ReadImage]) -> Iterator[Operation]:
        for image in images:
            manifest = image.digests.manifest
            path = placement.pin_path(manifest)
            if view.lookup(path) is None:
                mark = Pin(manifest, f"archive of {self._name}", datetime.now(UTC))
                yield PutFile(path, self._put(mark.encode()))

    def _podman_store(self, view: View, image: ReadImage) -> list[Operation]:
        """What the store for podman, which has the name, needs of the image that it leads to now."""
        store = PodmanStore.read(view)
        stored = StoredImage(
            manifest=image.digests.manifest,
            config=image.digests.config,
            manifest_bytes=image.found.manifest_bytes,
            config_bytes=image.config_bytes,
            layers=_layer_records(image),
            layer_sizes=[layer.changes.unpacked_bytes for layer in image.layers],
            created=datetime.now(UTC).isoformat(),
        )
        store.put(self._name, stored)
        return list(store.operations(view, self._put))

    # --- images

    def _place(self, view: View, image: ReadImage) -> Placement:
        """All that *image* adds to what *view* has; contents and catalogs are stored."""
        repository, layers, config = self._repository, image.layers, image.digests.config
        chains = placement.chain_ids([layer.description.diff_id for layer in layers])
        alone = LayerTrees()
        tree, new_chains = flatten(repository, view, layers, chains, alone)
        self._meter.stage("publishing")
        rootfs_path, flat_path = placement.rootfs_path(config), placement.flat_path(config)
        trees: dict[bytes, Node] = {}
        if view.lookup(rootfs_path) is None:
            trees[rootfs_path] = tree
        if view.lookup(flat_path) is None:
            trees[flat_path] = with_apptainer_files(tree, image.config, self._put)
        has_flat = bool(chains) and view.lookup(placement.chain_path(chains[-1]) + b"/flat") is not None
        with ThreadPoolExecutor(1, "trees") as pool:
            building = pool.submit(repository.prepare_subtrees, trees)
            layers_made = new_layers(repository, layers, alone)
            images_made = root_images(repository, view, chains[-1], tree, config, self._note) if chains else {}
            files_made = self._image_files(view, image, tree)
            subtrees = {subtree.path: subtree for subtree in building.result()}
        return Placement(
            config=config,
            manifest=image.digests.manifest,
            layers=list(dict.fromkeys(layer.description.digest for layer in layers)),
            chains=chains,
            new_layers=layers_made,
            new_chains=new_chains,
            rootfs=subtrees.get(rootfs_path),
            flat=subtrees.get(flat_path),
            flat_chain=chains[-1] if chains and not has_flat else None,
            root_images=images_made,
            image_files=files_made,
        )

    def _image_files(self, view: View, image: ReadImage, tree: Node) -> Mapping[bytes, Content]:
        """The files of ``.unpackd/images``; none if they are there."""
        path = placement.image_path(image.digests.manifest)
        if view.lookup(path + b"/" + STATEMENT_FILE) is not None:
            return {}
        provenance = self._provenance(image, tree).encode()
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

    def _provenance(self, image: ReadImage, tree: Node) -> Provenance:
        items = list(items_of_tree(tree))
        files = [item for item in items if item.content is not None and item.first == item.path]
        return Provenance(
            source=self._source,
            name=self._name,
            platform=str(image.platform),
            resolved=str(image.found.resolved),
            manifest=image.digests.manifest,
            config=image.digests.config,
            layers=_layer_records(image),
            tree=digest_of(items),
            tool=f"unpackd {metadata.version('unpackd')}",
            converted=datetime.now(UTC),
            files=len(files),
            size=sum(item.content.size for item in files if item.content is not None),
            entries=len(items),
            seconds=dict(self._meter.steps),
        )

    # --- what others add to as well

    def _origins(self, view: View) -> Iterator[Operation]:
        """DUCC's lists of the images that have a layer."""
        for digest in dict.fromkeys(layer for layers in self._layers.values() for layer in layers):
            path = placement.origin_path(digest)
            known = view.lookup(path)
            before = None if known is None else view.read(path, placement.RECORD_LIMIT_BYTES)
            configs = [config for config, layers in self._layers.items() if digest in layers]
            record = placement.origin_record(before, configs)
            if record is not None:
                yield RequireSame(path, known)
                yield PutFile(path, self._put(record))

    def _naming(self, view: View, record: SourceRecord, images: Sequence[ReadImage], default: ReadImage) -> Naming:
        """What becomes of the name."""
        directories = {
            placement.platform_directory(image.platform): image.digests.config
            for image in (images if record.images else ())
        }
        links = {placement.platform_link(directory, self._name) for directory in directories}
        return Naming(
            name=self._name,
            config=record.config,
            platforms=directories,
            default=placement.platform_directory(default.platform) if directories else "",
            stale=[link for link in platform_links(view, self._name) if link not in links],
            ducc_manifest=self._put(_ducc_manifest(default)),
            record=self._put(record.encode()),
            history=self._put(self._history(view, record)),
            history_before=self._history_before,
        )

    def _history(self, view: View, record: SourceRecord) -> bytes:
        path = placement.history_path(self._name)
        events: list[Event] = []
        if view.lookup(path) is not None:
            events = decode_history(view.read(path, placement.RECORD_LIMIT_BYTES))
        if not events or replace(events[-1].record, converted="") != replace(record, converted=""):
            events.append(Event(record, datetime.fromisoformat(record.converted)))
        return encode_history(events)

    def _put(self, data: bytes) -> Content:
        return self._repository.ingester().add_bytes(data)


def _layer_records(image: ReadImage) -> tuple[LayerRecord, ...]:
    return tuple(
        LayerRecord(digest=one.digest, diff_id=one.diff_id, media_type=one.media_type, size=one.size)
        for one in (layer.description for layer in image.layers)
    )


def _ducc_manifest(image: ReadImage) -> bytes:
    config = image.found.manifest.config
    return placement.ducc_manifest(
        image.found.manifest.media_type,
        (config.media_type, str(config.digest), config.size_bytes),
        [layer.description for layer in image.layers],
    )
