"""Where an image and its layers lie in the repository, and the operations that put them there. PURE.

The layout is specified in ``docs/format/layout.md``. Source for DUCC's part: CernVM-FS 2.12, ducc/lib and
ducc/docker-api (``layers.json``, ``origin.json``, ``manifest.json``, public symlinks).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from fs.format.paths import components, parent_path
from fs.format.tree import Content, Node, walk
from fs.publish.catalogs import Subtree
from fs.publish.operations import Graft, MakeDirectory, Operation, PutFile, PutSymlink

LAYERS, FLAT, METADATA, OWN = b"/.layers", b"/.flat", b"/.metadata", b"/.unpackd"
CHAINS, CHANGE_SETS, IMAGES = OWN + b"/chains", OWN + b"/layers", OWN + b"/images"

RECORD_LIMIT_BYTES = 1 << 20
CHANGE_SET_LIMIT_BYTES = 1 << 32

_NESTED = (LAYERS, FLAT, METADATA, OWN, CHAINS, CHANGE_SETS, IMAGES)
_FAN_OUT = 2


def hex_of(digest: str) -> bytes:
    """The hexadecimal part of ``sha256:<hex>``, which was parsed as a digest before."""
    return digest.partition(":")[2].encode("ascii")


def placed(root: bytes, digest: str) -> bytes:
    """The directory of *digest* below *root*: ``<root>/<xx>/<hex>``."""
    digits = hex_of(digest)
    return b"/".join((root, digits[:_FAN_OUT], digits))


def layerfs_path(layer: str) -> bytes:
    """The tree of the layer with the blob digest *layer*."""
    return placed(LAYERS, layer) + b"/layerfs"


def origin_path(layer: str) -> bytes:
    """DUCC's list of the images that have the layer."""
    return placed(LAYERS, layer) + b"/.metadata/origin.json"


def change_set_path(layer: str) -> bytes:
    """The stored change set of the layer with the blob digest *layer*."""
    return placed(CHANGE_SETS, layer) + b"/changeset"


def flat_path(config: str) -> bytes:
    """The root file system of the image with the config digest *config*."""
    return placed(FLAT, config)


def chain_path(chain: str) -> bytes:
    """The directory of the ChainID *chain*."""
    return placed(CHAINS, chain)


def root_image_path(chain: str) -> bytes:
    """The EROFS image that holds the metadata of the root file system of the ChainID *chain*."""
    return chain_path(chain) + b"/rootfs.erofs"


def linked_flat_path(target: bytes) -> bytes:
    """The flat tree to which the link ``flat`` of a chain with that *target* leads."""
    digits = target.rpartition(b"/")[2]
    return b"/".join((FLAT, digits[:_FAN_OUT], digits))


def image_path(manifest: str) -> bytes:
    """The directory of the image with the manifest digest *manifest*."""
    return placed(IMAGES, manifest)


def public_path(name: str) -> bytes:
    """The symlink that users know an image by; *name* is ``registry/repository:tag``."""
    return b"/" + name.encode("utf-8")


def record_path(name: str) -> bytes:
    """What the image *name* was when it was converted last."""
    return METADATA + public_path(name) + b"/source.json"


def chain_ids(diff_ids: Iterable[str]) -> list[str]:
    """The ChainIDs of a stack of layers, lowest first.

    Source: OCI image specification 1.1, config.md, "Layer ChainID".
    """
    chains: list[str] = []
    for diff_id in diff_ids:
        text = f"{chains[-1]} {diff_id}" if chains else None
        chains.append(diff_id if text is None else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}")
    return chains


def relative_target(link: bytes, target: bytes) -> bytes:
    """What the symlink at *link* says to lead to *target*; both are canonical paths of the repository."""
    here, there = components(parent_path(link)), components(target)
    shared = 0
    while shared < min(len(here), len(there) - 1) and here[shared] == there[shared]:
        shared += 1
    return b"/".join([b".."] * (len(here) - shared) + there[shared:])


def public_target(name: str, config: str) -> bytes:
    """What the public symlink of *name* says; the form DUCC writes: up to the root, then down."""
    link = public_path(name)
    return b"../" * (len(components(link)) - 1) + flat_path(config)[1:]


# --- records


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """What a name led to when it was converted last; one question to the registry tells if it still does."""

    platform: str
    resolved: str  # digest that the name had: of an index or of a manifest
    manifest: str
    config: str

    def encode(self) -> bytes:
        """The stored form."""
        return _json({"version": 1, **{key: getattr(self, key) for key in self.__slots__}})

    @classmethod
    def parse(cls, stored: bytes) -> "SourceRecord | None":
        """Inverse of ``encode``; None if it is of no version that is known, which costs a conversion and no more."""
        try:
            document = json.loads(stored)
            if document["version"] != 1:
                return None
            return cls(**{key: str(document[key]) for key in cls.__slots__})
        except (ValueError, TypeError, KeyError):
            return None


@dataclass(frozen=True, slots=True)
class LayerDescription:
    """A layer as its manifest and its config describe it."""

    digest: str  # of the blob
    media_type: str
    size: int  # of the blob
    diff_id: str


def ducc_manifest(media_type: str, config: tuple[str, str, int], layers: Sequence[LayerDescription]) -> bytes:
    """The manifest with the field names that DUCC uses; *config* is its media type, digest and size."""
    described = [(layer.media_type, layer.digest, layer.size) for layer in layers]
    config_fields, *layer_fields = (
        {"MediaType": kind, "Size": size, "Digest": digest} for kind, digest, size in [config, *described]
    )
    return _json({"SchemaVersion": 2, "MediaType": media_type, "Config": config_fields, "Layers": layer_fields})


def layer_record(layer: LayerDescription, unpacked_bytes: int, created: datetime) -> bytes:
    """DUCC's ``layers.json``."""
    fields = {
        "id": layer.diff_id.partition(":")[2],
        "created": created.isoformat(),
        "compressed-diff-digest": layer.digest,
        "diff-digest": layer.diff_id,
        "diff-size": unpacked_bytes,
    }
    return json.dumps([fields], indent=1).encode()


def origin_record(before: bytes | None, config: str) -> bytes | None:
    """DUCC's ``origin.json`` with *config* in it; None if it is in *before* already."""
    try:
        known = json.loads(before)["origin"] if before is not None else []
        configs = [str(item) for item in known]
    except (ValueError, TypeError, KeyError):
        configs = []
    return None if config in configs else _json({"origin": [*configs, config]})


def provenance_record(  # noqa: PLR0913  # the fields of a record, all by name
    *,
    source: str,
    name: str,
    platform: str,
    resolved: str,
    manifest: str,
    config: str,
    layers: Sequence[LayerDescription],
    tree: str,
    tool: str,
    converted: datetime,
) -> bytes:
    """``provenance.json``: where an image came from and what was made of it."""
    document = {
        "version": 1,
        "source": source,
        "name": name,
        "platform": platform,
        "resolved": resolved,
        "manifest": manifest,
        "config": config,
        "layers": [
            {"digest": layer.digest, "diff_id": layer.diff_id, "media_type": layer.media_type, "size": layer.size}
            for layer in layers
        ],
        "tree": tree,
        "tool": tool,
        "converted": converted.isoformat(),
    }
    return json.dumps(document, indent=1).encode()


def tree_digest(root: Node) -> str:
    """A digest of everything that a tree says: names, attributes, and the objects that hold the contents."""
    hasher = hashlib.sha256()
    first_names: dict[int, bytes] = {}
    for path, node in walk(root):
        first = first_names.setdefault(id(node), path)
        fields = (path, first, node.mode, node.uid, node.gid, node.mtime_ns, node.target, node.rdev)
        hasher.update(repr((fields, sorted(node.xattrs.items()), node.content)).encode())
    return f"sha256:{hasher.hexdigest()}"


def _json(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


# --- operations


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLayer:
    """What a layer brings that the repository does not have yet."""

    subtree: Subtree
    change_set: Content
    record: Content  # layers.json


@dataclass(frozen=True, slots=True, kw_only=True)
class NewChain:
    """A ChainID that the repository does not have yet."""

    layer: str  # digest of the uppermost layer's blob
    parent: str | None  # ChainID below
    own_layer: Subtree | None  # the layer's form over exactly this parent, if that differs from the layer alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """All that one conversion adds. What the repository has already is left out."""

    name: str
    config: str
    manifest: str
    new_layers: Mapping[str, NewLayer]  # by digest of the blob
    origins: Mapping[str, Content]  # origin.json by digest of the blob
    new_chains: Mapping[str, NewChain]  # by ChainID
    flat: Subtree | None
    flat_chain: str | None  # ChainID of the whole image, to be linked to its tree; None if it is, or has no layers
    root_images: Mapping[str, Content] = field(default_factory=dict)  # rootfs.erofs by ChainID
    image_files: Mapping[bytes, Content] = field(default_factory=dict)  # of .unpackd/images, by name
    ducc_manifest: Content
    record: Content  # source.json


def operations(placement: Placement) -> list[Operation]:
    """The operations that make *placement* visible. The public symlink is the last one."""
    done: list[Operation] = [MakeDirectory(path, nested=True) for path in _NESTED]
    config, image = placement.config, image_path(placement.manifest)
    used = [
        *(
            directory
            for layer in placement.new_layers
            for directory in (placed(LAYERS, layer), placed(CHANGE_SETS, layer))
        ),
        *(chain_path(chain) for chain in placement.new_chains),
        flat_path(config),
        image,
    ]
    done += [MakeDirectory(path, nested=True) for path in sorted({parent_path(path) for path in used})]
    for layer, new in placement.new_layers.items():
        done += [
            Graft(layerfs_path(layer), new.subtree),
            PutFile(placed(LAYERS, layer) + b"/.metadata/layers.json", new.record),
            PutFile(change_set_path(layer), new.change_set),
        ]
    done += [PutFile(origin_path(layer), content) for layer, content in placement.origins.items()]
    if placement.flat is not None:
        done.append(Graft(flat_path(config), placement.flat))
    for chain, new_chain in placement.new_chains.items():
        done += _chain_operations(chain, new_chain)
    if placement.flat_chain is not None:
        link = chain_path(placement.flat_chain) + b"/flat"
        done.append(PutSymlink(link, relative_target(link, flat_path(config))))
    done += [PutFile(root_image_path(chain), content) for chain, content in placement.root_images.items()]
    done += [PutFile(image + b"/" + name, content) for name, content in placement.image_files.items()]
    done.append(PutFile(METADATA + public_path(placement.name) + b"/manifest.json", placement.ducc_manifest))
    done.append(PutFile(record_path(placement.name), placement.record))
    done.append(PutSymlink(public_path(placement.name), public_target(placement.name, config)))
    return done


def _chain_operations(chain: str, new: NewChain) -> list[Operation]:
    directory = chain_path(chain)
    done: list[Operation] = [MakeDirectory(directory)]
    target = b"layerfs"
    if new.own_layer is None:
        target = relative_target(directory + b"/layer", layerfs_path(new.layer))
    else:
        done.append(Graft(directory + b"/layerfs", new.own_layer))
    done.append(PutSymlink(directory + b"/layer", target))
    if new.parent is not None:
        link = directory + b"/parent"
        done.append(PutSymlink(link, relative_target(link, chain_path(new.parent))))
    return done
