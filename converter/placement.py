"""Where an image and its layers lie in the repository, and the operations that put them there. PURE.

The layout is specified in ``docs/format/layout.md``. Source for DUCC's part: CernVM-FS 2.12, ducc/lib and
ducc/docker-api (``layers.json``, ``origin.json``, ``manifest.json``, public symlinks).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from fs.format.entries import Entry
from fs.format.paths import components, parent_path
from fs.format.tree import Content
from fs.publish.catalogs import Subtree
from fs.publish.operations import (
    Graft,
    MakeDirectory,
    Operation,
    PutFile,
    PutSymlink,
    Remove,
    Require,
    RequireSame,
)
from registry_proxy.oci.manifest import Platform

LAYERS, FLAT, METADATA, OWN = b"/.layers", b"/.flat", b"/.metadata", b"/.unpackd"
CHAINS, CHANGE_SETS, IMAGES = OWN + b"/chains", OWN + b"/layers", OWN + b"/images"
ROOTFS, PINS, UNNEEDED = OWN + b"/rootfs", OWN + b"/pins", OWN + b"/unneeded.json"
MULTIARCH = b"/.multiarch"

RECORD_LIMIT_BYTES = 1 << 20
START_PROFILE_LIMIT_BYTES = 64 << 20
CHANGE_SET_LIMIT_BYTES = 1 << 32

_NESTED = (LAYERS, FLAT, METADATA, OWN, CHAINS, CHANGE_SETS, IMAGES, ROOTFS)
_FAN_OUT = 2
_ALIASES = {
    "amd64": ("x86_64", "x86-64"),
    "arm64:v8": ("arm64", "aarch64"),
    "arm:v7": ("arm", "armv7l", "armhf"),
    "arm:v6": ("armv6l", "armel"),
    "386": ("i386", "i686"),
}


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


def layer_record_path(layer: str) -> bytes:
    """What DUCC notes of the layer with the blob digest *layer*."""
    return placed(LAYERS, layer) + b"/.metadata/layers.json"


def origin_path(layer: str) -> bytes:
    """DUCC's list of the images that have the layer."""
    return placed(LAYERS, layer) + b"/.metadata/origin.json"


def change_set_path(layer: str) -> bytes:
    """The stored change set of the layer with the blob digest *layer*."""
    return placed(CHANGE_SETS, layer) + b"/changeset"


def rootfs_path(config: str) -> bytes:
    """The root file system of the image with the config digest *config*; what containers get."""
    return placed(ROOTFS, config)


def flat_path(config: str) -> bytes:
    """The same with what Apptainer needs to act on the config, hidden; where users' names lead."""
    return placed(FLAT, config)


def chain_path(chain: str) -> bytes:
    """The directory of the ChainID *chain*."""
    return placed(CHAINS, chain)


def root_image_path(chain: str) -> bytes:
    """The EROFS image that holds the metadata of the root file system of the ChainID *chain*."""
    return chain_path(chain) + b"/rootfs.erofs"


def start_profile_path(chain: str) -> bytes:
    """What a start from the root file system of the ChainID *chain* reads."""
    return chain_path(chain) + b"/start.json"


def image_start_profile_path(chain: str) -> bytes:
    """The part of the start profile that ``rootfs.erofs`` does not hold."""
    return chain_path(chain) + b"/start.erofs.json"


def linked_rootfs_path(target: bytes) -> bytes:
    """The root file system to which the link ``flat`` of a chain with that *target* leads."""
    digits = target.rpartition(b"/")[2]
    return b"/".join((ROOTFS, digits[:_FAN_OUT], digits))


def image_path(manifest: str) -> bytes:
    """The directory of the image with the manifest digest *manifest*."""
    return placed(IMAGES, manifest)


def public_path(name: str) -> bytes:
    """The symlink that users know an image by; *name* is ``registry/repository:tag``."""
    return b"/" + name.encode("utf-8")


def history_path(name: str) -> bytes:
    """What the image *name* was, time after time."""
    return METADATA + public_path(name) + b"/history.json"


def pin_path(manifest: str) -> bytes:
    """The mark that the image with the manifest digest *manifest* is kept."""
    return PINS + b"/" + hex_of(manifest)


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


def public_target(link: bytes, config: str) -> bytes:
    """What the symlink at *link* says to lead users to an image; the form DUCC writes: up to the root, then down."""
    return b"../" * (len(components(link)) - 1) + flat_path(config)[1:]


# --- platforms


def platform_directory(platform: Platform) -> str:
    """The directory below ``.multiarch`` for *platform*: ``amd64``, ``arm64:v8``, ``arm:v7``.

    Source: CernVM-FS, pull requests 3897 and 4170 (names of architectures as Go has them, with the variant).
    """
    variant = "" if platform.architecture == "amd64" and platform.exact_variant == "v1" else platform.exact_variant
    return f"{platform.architecture}:{variant}" if variant else platform.architecture


def platform_aliases(directories: Iterable[str]) -> dict[str, str]:
    """Other names for directories of platforms: what ``uname -m`` and Go call those architectures."""
    return {alias: directory for directory in directories for alias in _ALIASES.get(directory, ())}


def platform_link(directory: str, name: str) -> bytes:
    """The symlink to the image of one platform that *name* has."""
    return b"/".join((MULTIARCH, directory.encode())) + public_path(name)


def variant_target(name: str, default: str) -> bytes:
    """What the public symlink of *name* says if there is an image a platform; readers put their architecture in."""
    link = public_path(name)
    up = b"../" * (len(components(link)) - 1)
    return b"%b%b/$(CVMFS_ARCH:-%b)%b" % (up, MULTIARCH[1:], default.encode(), link)


# --- records


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


def origin_record(before: bytes | None, configs: Sequence[str]) -> bytes | None:
    """DUCC's ``origin.json`` with *configs* in it; None if they are in *before* already."""
    try:
        known = json.loads(before)["origin"] if before is not None else []
        listed = [str(item) for item in known]
    except (ValueError, TypeError, KeyError):
        listed = []
    missing = [config for config in configs if config not in listed]
    return _json({"origin": [*listed, *missing]}) if missing else None


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
    """All that one image adds. What the repository has already is left out, and has to be there still."""

    config: str
    manifest: str
    layers: Sequence[str] = ()  # digests of all blobs
    chains: Sequence[str] = ()  # ChainIDs of all layers
    new_layers: Mapping[str, NewLayer]  # by digest of the blob
    new_chains: Mapping[str, NewChain]  # by ChainID
    flat: Subtree | None
    rootfs: Subtree | None
    flat_chain: str | None  # ChainID of the whole image, to be linked to its tree; None if it is, or has no layers
    root_images: Mapping[str, Content] = field(default_factory=dict)  # rootfs.erofs by ChainID
    image_files: Mapping[bytes, Content] = field(default_factory=dict)  # of .unpackd/images, by name


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """What a name comes to lead to."""

    name: str
    config: str  # of the image for readers whose platform is not known
    platforms: Mapping[str, str] = field(default_factory=dict)  # config by the name of the platform's directory
    default: str = ""  # the platform's directory for those readers; with platforms only
    stale: Sequence[bytes] = ()  # links of platforms that the name does not have any more
    ducc_manifest: Content
    record: Content  # source.json
    history: Content  # history.json
    history_before: Entry | None  # that file as it was read; another one must not be replaced


def image_operations(placement: Placement) -> list[Operation]:
    """The operations that make an image complete; no name leads to it by them."""
    done: list[Operation] = [MakeDirectory(path, nested=True) for path in _NESTED]
    config, image = placement.config, image_path(placement.manifest)
    used = [
        *(
            directory
            for layer in placement.new_layers
            for directory in (placed(LAYERS, layer), placed(CHANGE_SETS, layer))
        ),
        *(chain_path(chain) for chain in placement.new_chains),
        rootfs_path(config),
        flat_path(config),
        image,
    ]
    done += [MakeDirectory(path, nested=True) for path in sorted({parent_path(path) for path in used})]
    for layer, new in placement.new_layers.items():
        done += [
            Graft(layerfs_path(layer), new.subtree),
            PutFile(layer_record_path(layer), new.record),
            PutFile(change_set_path(layer), new.change_set),
        ]
    for path, subtree in ((rootfs_path(config), placement.rootfs), (flat_path(config), placement.flat)):
        if subtree is not None:
            done.append(Graft(path, subtree))
    for chain, new_chain in placement.new_chains.items():
        done += _chain_operations(chain, new_chain)
    if placement.flat_chain is not None:
        link = chain_path(placement.flat_chain) + b"/flat"
        done.append(PutSymlink(link, relative_target(link, rootfs_path(config))))
    done += [PutFile(root_image_path(chain), content) for chain, content in placement.root_images.items()]
    done += [PutFile(image + b"/" + name, content) for name, content in placement.image_files.items()]
    # what was there when the conversion began may have been collected meanwhile
    done += [Require(path) for layer in placement.layers for path in (layerfs_path(layer), change_set_path(layer))]
    done += [Require(chain_path(chain) + b"/layer") for chain in placement.chains]
    done += [Require(rootfs_path(config)), Require(flat_path(config)), Require(image + b"/provenance.json")]
    if placement.chains:
        done.append(Require(chain_path(placement.chains[-1]) + b"/flat"))
    return done


def naming_operations(naming: Naming) -> list[Operation]:
    """The operations that let a name lead to images. The public symlink is the last one."""
    metadata = METADATA + public_path(naming.name)
    done: list[Operation] = [Remove(path) for path in naming.stale]
    if naming.platforms:
        done.append(MakeDirectory(MULTIARCH, nested=True))
        for directory, config in naming.platforms.items():
            link = platform_link(directory, naming.name)
            done.append(PutSymlink(link, public_target(link, config)))
        for alias, directory in sorted(platform_aliases(naming.platforms).items()):
            done.append(PutSymlink(MULTIARCH + b"/" + alias.encode(), directory.encode()))
    done += [
        PutFile(metadata + b"/manifest.json", naming.ducc_manifest),
        RequireSame(history_path(naming.name), naming.history_before),
        PutFile(history_path(naming.name), naming.history),
        PutFile(metadata + b"/source.json", naming.record),
    ]
    link = public_path(naming.name)
    if naming.platforms:
        done.append(PutSymlink(link, variant_target(naming.name, naming.default), expands=True))
    else:
        done.append(PutSymlink(link, public_target(link, naming.config)))
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
