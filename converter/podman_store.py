"""``/podmanStore``: an additional image store for podman, with the images that were chosen for it.

It holds names and links only; layers are those of the chains. What it has is in two files of JSON, which a commit
requires to be what was read, and everything else follows from them: so a commit writes the two files, and what one
image brings.

Source: containers/storage, docs/containers-storage-layers.md, images.go, layers.go, drivers/overlay/overlay.go; keys of
the files as podman 4.3 writes them.
"""

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from converter import placement
from converter.errors import RecordError
from converter.image_records import RECORD_LIMIT_BYTES, LayerRecord
from fs.errors import AbsentError
from fs.format.tree import Content
from fs.publish.operations import MakeDirectory, Operation, PutFile, PutSymlink, Remove, RequireSame
from fs.publish.view import View
from registry_proxy.errors import DigestSyntaxError
from registry_proxy.oci.digest import Digest
from registry_proxy.oci.manifest import MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES

STORE = b"/podmanStore"
_OVERLAY, _IMAGES, _LAYERS = STORE + b"/overlay", STORE + b"/overlay-images", STORE + b"/overlay-layers"
_IMAGES_FILE, _LAYERS_FILE = _IMAGES + b"/images.json", _LAYERS + b"/layers.json"
_LIMIT_BYTES = 1 << 28
_LINK_BYTES = 16
_LONG_AGO = "1970-01-01T00:00:00Z"
_COMPRESSIONS = {"gzip": 2, "zstd": 4}  # as the storage library counts them


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """An image that podman is to see."""

    manifest: str  # digests
    config: str
    manifest_bytes: bytes
    config_bytes: bytes
    layers: Sequence[LayerRecord]
    layer_sizes: Sequence[int]  # unpacked
    created: str  # RFC 3339


def published_image(view: View, manifest: str, layers: Sequence[LayerRecord]) -> StoredImage:
    """An image that is published, for the store.

    Args:
        view: the repository.
        manifest: digest of the image's manifest.
        layers: as its provenance has them.

    Raises:
        RecordError: something about it is missing, or cannot be read.
    """
    folder = placement.image_path(manifest)
    try:
        manifest_bytes = view.read(folder + b"/manifest.json", MAX_MANIFEST_BYTES)
        config_bytes = view.read(folder + b"/config.json", MAX_CONFIG_BYTES)
        records = [
            json.loads(view.read(placement.layer_record_path(layer.digest), RECORD_LIMIT_BYTES))[0] for layer in layers
        ]
        sizes = [int(record["diff-size"]) for record in records]
        created = str(records[-1]["created"]) if records else _LONG_AGO
    except (AbsentError, ValueError, TypeError, KeyError, IndexError) as error:
        raise RecordError(f"the records of {manifest} are not whole ({error})") from error
    return StoredImage(
        manifest=manifest,
        config=str(Digest.of(config_bytes)),
        manifest_bytes=manifest_bytes,
        config_bytes=config_bytes,
        layers=layers,
        layer_sizes=sizes,
        created=created,
    )


class PodmanStore:
    """What the store has, and what it is to have."""

    def __init__(self, images: list[dict[str, Any]], layers: list[dict[str, Any]]) -> None:
        self._images = images
        self._layers = layers
        self._new: dict[str, StoredImage] = {}  # by id
        self._known_images = {str(one["id"]) for one in images}
        self._known_layers = {str(one["id"]) for one in layers}

    @classmethod
    def read(cls, view: View) -> Self:
        """The store of a repository; an empty one if there is none. Raises RecordError."""
        return cls(_listed(view, _IMAGES_FILE), _listed(view, _LAYERS_FILE))

    @staticmethod
    def has_name(view: View, name: str) -> bool:
        """True if podman sees *name*; costs next to nothing if there is no store. Raises RecordError."""
        if view.lookup(_IMAGES_FILE) is None:
            return False
        if json.dumps(name).encode() not in view.read(_IMAGES_FILE, _LIMIT_BYTES):
            return False
        return name in PodmanStore.read(view).names()

    def names(self) -> set[str]:
        """The names that podman sees."""
        return {str(name) for image in self._images for name in image.get("names") or ()}

    def images(self) -> Iterator[tuple[str, str | None]]:
        """Digests of config and manifest of each image; the latter is unknown in stores of other programs."""
        for image in self._images:
            digest = image.get("digest")
            yield f"sha256:{image['id']}", None if digest is None else str(digest)

    def blobs(self) -> Iterator[str]:
        """Digests of the blobs of all layers."""
        for layer in self._layers:
            if layer.get("compressed-diff-digest"):
                yield str(layer["compressed-diff-digest"])

    def put(self, name: str, image: StoredImage) -> None:
        """Let *name* be that of *image*."""
        identity = _digits(image.config)
        if any(one["id"] == identity and name in (one.get("names") or ()) for one in self._images):
            return
        self.remove(name)
        known = next((one for one in self._images if one["id"] == identity), None)
        if known is not None:
            known["names"] = [*(known.get("names") or ()), name]
            return
        chains = placement.chain_ids([layer.diff_id for layer in image.layers])
        config_key = image.config
        sizes = {"manifest": len(image.manifest_bytes), config_key: len(image.config_bytes)}
        self._images.append(
            {
                "id": identity,
                "digest": image.manifest,
                "names": [name],
                "layer": _digits(chains[-1]) if chains else "",
                "created": image.created,
                "big-data-names": list(sizes),
                "big-data-sizes": sizes,
                "big-data-digests": {"manifest": image.manifest, config_key: image.config},
            }
        )
        self._new[identity] = image
        present = {one["id"] for one in self._layers}
        for number, (layer, size) in enumerate(zip(image.layers, image.layer_sizes, strict=True)):
            chain = _digits(chains[number])
            if chain not in present:
                present.add(chain)
                parent = _digits(chains[number - 1]) if number else None
                self._layers.append(_layer(chain, parent, layer, size, image.created))

    def remove(self, name: str) -> bool:
        """Take *name* away, and what nothing else has; False if it is not there."""
        mine = [image for image in self._images if name in (image.get("names") or ())]
        for image in mine:
            image["names"] = [one for one in image["names"] if one != name]
        gone = {image["id"] for image in mine if not image["names"]}
        self._images = [image for image in self._images if image["id"] not in gone]
        parents = {one["id"]: one.get("parent") for one in self._layers}
        needed: set[str] = set()
        for image in self._images:
            layer = image.get("layer")
            while layer and layer not in needed:
                needed.add(layer)
                layer = parents.get(layer)
        if gone:
            self._layers = [one for one in self._layers if one["id"] in needed]
        return bool(mine)

    def operations(self, view: View, put: Callable[[bytes], Content]) -> Iterator[Operation]:
        """What a commit has to do; *put* stores the bytes of a file."""
        yield RequireSame(_IMAGES_FILE, view.lookup(_IMAGES_FILE))
        yield RequireSame(_LAYERS_FILE, view.lookup(_LAYERS_FILE))
        for folder in (STORE, _OVERLAY, _IMAGES, _LAYERS):
            yield MakeDirectory(folder, nested=True)
        layers = {str(one["id"]): one for one in self._layers}
        for chain in sorted(self._known_layers - layers.keys()):
            yield Remove(_OVERLAY + b"/" + chain.encode())
            yield Remove(_OVERLAY + b"/l/" + link_name(chain).encode())
        for identity in sorted(self._known_images - {str(one["id"]) for one in self._images}):
            yield Remove(_IMAGES + b"/" + identity.encode())
        for chain in sorted(layers.keys() - self._known_layers):
            yield from _layer_operations(chain, layers, put)
        for identity, image in self._new.items():
            folder = _IMAGES + b"/" + identity.encode()
            yield PutFile(folder + b"/manifest", put(image.manifest_bytes))
            yield PutFile(folder + b"/" + data_file(image.config).encode(), put(image.config_bytes))
        for folder, lock in ((_IMAGES, b"/images.lock"), (_LAYERS, b"/layers.lock")):
            if view.lookup(folder + lock) is None:
                yield PutFile(folder + lock, put(b""))
        yield PutFile(_IMAGES_FILE, put(_encode(self._images)))
        yield PutFile(_LAYERS_FILE, put(_encode(self._layers)))


def link_name(chain: str) -> str:
    """The short name of a layer, for mount options: 26 characters, the same each time."""
    return base64.b32encode(bytes.fromhex(chain)[:_LINK_BYTES]).decode().rstrip("=")


def data_file(key: str) -> str:
    """The file that has an image's datum called *key*: names with more than letters, digits and dots are encoded."""
    return "=" + base64.b64encode(key.encode()).decode()


def _layer(chain: str, parent: str | None, layer: LayerRecord, size: int, created: str) -> dict[str, Any]:
    record: dict[str, Any] = {"id": chain}
    if parent is not None:
        record["parent"] = parent
    record |= {
        "created": created,
        "compressed-diff-digest": layer.digest,
        "compressed-size": layer.size,
        "diff-digest": layer.diff_id,
        "diff-size": size,
    }
    for packing, number in _COMPRESSIONS.items():
        if layer.media_type.endswith(packing):
            record["compression"] = number
    return record


def _layer_operations(
    chain: str, layers: Mapping[str, dict[str, Any]], put: Callable[[bytes], Content]
) -> Iterator[Operation]:
    folder = _OVERLAY + b"/" + chain.encode()
    target = placement.chain_path(f"sha256:{chain}") + b"/layer"
    yield PutSymlink(folder + b"/diff", placement.relative_target(folder + b"/diff", target))
    yield PutFile(folder + b"/link", put(link_name(chain).encode()))
    yield PutSymlink(_OVERLAY + b"/l/" + link_name(chain).encode(), b"../%b/diff" % chain.encode())
    below: list[str] = []
    parent = layers[chain].get("parent")
    while parent:
        below.append(f"l/{link_name(parent)}")
        parent = layers[parent].get("parent")
    if below:
        yield PutFile(folder + b"/lower", put(":".join(below).encode()))


def _digits(digest: str) -> str:
    return digest.partition(":")[2]


def _listed(view: View, path: bytes) -> list[dict[str, Any]]:
    if view.lookup(path) is None:
        return []
    try:
        document = json.loads(view.read(path, _LIMIT_BYTES))
        return [{**one, "id": Digest.parse(f"sha256:{one['id']}").hex} for one in document]
    except (DigestSyntaxError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise RecordError(f"{path.decode()} is malformed ({error!r})") from error


def _encode(records: Sequence[Mapping[str, Any]]) -> bytes:
    return json.dumps(records, separators=(",", ":")).encode()
