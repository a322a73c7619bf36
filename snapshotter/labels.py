"""Labels: the names that mean something here, and the rules of changing them. PURE.

Every value is outside input: containerd copies annotations of image manifests into labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from snapshotter.errors import InvalidRequestError
from snapshotter.snapshots import sha256_digits

SNAPSHOT_REF = "containerd.io/snapshot.ref"
"""ChainID of the layer that is wanted."""
PARENT_CHAIN_ID = "containerd.io/snapshot/parent-chain-id"
CRI_IMAGE_REF = "containerd.io/snapshot/cri.image-ref"
CRI_LAYER_DIGEST = "containerd.io/snapshot/cri.layer-digest"
CRI_IMAGE_LAYERS = "containerd.io/snapshot/cri.image-layers"
CRI_MANIFEST_DIGEST = "containerd.io/snapshot/cri.manifest-digest"
UID_MAPPING = "containerd.io/snapshot/uidmapping"
GID_MAPPING = "containerd.io/snapshot/gidmapping"

LIMIT_BYTES = 4096
"""Longest label, key and value together. Source: containerd, ``labels/validate.go``."""
_COUNT_LIMIT = 1024
_ID_LIMIT = 2**32 - 1
_MASK_PREFIX = "labels."


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedLayer:
    """The layer that a Prepare asks for; digits are checked, so they may become part of a path."""

    reference: str
    chain_digits: str
    layer_digits: str | None  # None: not said, or not a digest
    image: str = ""  # its name, if it is said; anybody may have said it


@dataclass(frozen=True, slots=True, kw_only=True)
class RootOwner:
    """Owner of the root directory of a snapshot."""

    uid: int
    gid: int


def stored_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels as they are stored: without empty values. Raises InvalidRequestError for what is too large."""
    if len(labels) > _COUNT_LIMIT:
        raise InvalidRequestError(f"more than {_COUNT_LIMIT} labels")
    for key, value in labels.items():
        if len(key.encode()) + len(value.encode()) > LIMIT_BYTES:
            raise InvalidRequestError(f"label {key[:64]!r} is longer than {LIMIT_BYTES} bytes with its value")
    return {key: value for key, value in labels.items() if value}


def updated_labels(current: Mapping[str, str], given: Mapping[str, str], paths: Sequence[str]) -> dict[str, str]:
    """What an Update with the field mask *paths* makes of the labels *current*.

    No path and the path ``labels`` replace all; ``labels.<key>`` sets one, or removes it if *given* lacks it.

    Raises:
        InvalidRequestError: a path names a field that cannot change, or a label is too large.
    """
    labels = dict(current) if paths else dict(given)
    for path in paths:
        key = path.removeprefix(_MASK_PREFIX)
        if path == "labels":
            labels = dict(given)
        elif key != path and key:
            labels[key] = given.get(key, "")
        else:
            raise InvalidRequestError(f"field {path!r} of a snapshot cannot be changed")
    return stored_labels(labels)


def wanted_layer(labels: Mapping[str, str]) -> WantedLayer | None:
    """The layer that *labels* ask for, None if none or if it is not named by a sha256 digest."""
    reference = labels.get(SNAPSHOT_REF, "")
    digits = sha256_digits(reference)
    if digits is None:
        return None
    layer = sha256_digits(labels.get(CRI_LAYER_DIGEST, ""))
    return WantedLayer(
        reference=reference, chain_digits=digits, layer_digits=layer, image=labels.get(CRI_IMAGE_REF, "")
    )


def mapped_root(labels: Mapping[str, str]) -> RootOwner | None:
    """Host owner of container root under the ID-mapping labels, None without them. Raises InvalidRequestError."""
    if UID_MAPPING not in labels and GID_MAPPING not in labels:
        return None
    return RootOwner(uid=_host_root(labels, UID_MAPPING), gid=_host_root(labels, GID_MAPPING))


def _host_root(labels: Mapping[str, str], key: str) -> int:
    """Host ID to which the comma separated ``container:host:size`` triples of one label map ID 0."""
    root: int | None = None
    for triple in labels.get(key, "").split(","):
        fields = triple.split(":")
        if len(fields) != 3 or not all(field.isascii() and field.isdigit() for field in fields):  # noqa: PLR2004
            raise InvalidRequestError(f"label {key}: {triple[:64]!r} is not container:host:size")
        container, host, size = (int(field) for field in fields)
        if not size or max(container, host) + size - 1 > _ID_LIMIT:
            raise InvalidRequestError(f"label {key}: {triple[:64]!r} is outside the range of IDs")
        if container == 0:
            root = host
    if root is None:
        raise InvalidRequestError(f"label {key} does not map ID 0")
    return root
