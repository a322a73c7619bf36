"""Is what is published the image? The tree is made again from the image's own layers, and compared entry by entry.

Three answers of different depth: the signed digest of the tree against the catalogs (no registry needed); the image
fetched again and unpacked without storing anything, against the catalogs; and the same against what a mount shows,
every byte read. Two encoders may give two objects for one content, so objects that differ are read before anybody says
that the contents do.
"""

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from converter import inventory, placement
from converter.errors import NotTheImageError, RecordError
from converter.flatten import Tree
from converter.image_records import RECORD_LIMIT_BYTES, Provenance, SignedStatement
from converter.layer_fetching import fetch_layer
from converter.limits import Limits
from converter.tree_digest import Item, digest_of, items_of_tree, items_of_view, objects_of
from fs.format.hashes import Hash
from fs.format.tree import Content, Node
from fs.publish.ingest import Ingester
from fs.publish.packing import Codec, DedupIndex, Packer
from fs.publish.view import View, read_parts
from fs.store.memory import MemoryStore
from registry_proxy.oci.manifest import Platform, parse_config

if TYPE_CHECKING:
    from collections.abc import Collection

    from converter.sources import ImageSource
    from fs.store.base import ObjectReader
    from registry_proxy.client import RegistryClient

_LAYERS_AT_ONCE = 2
_READ_BYTES = 1 << 20
_ASPECTS = ("first", "mode", "uid", "gid", "mtime_ns", "target", "rdev")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as the image has it."""

    path: str
    what: str  # "missing", "unexpected", or the attributes that differ, with commas

    def __str__(self) -> str:
        return f"{self.what}: {self.path}"


class _NoStore(MemoryStore):
    """Takes objects and keeps none."""

    def put(self, name: Hash, suffix: object, stored: object) -> bool:
        del name, suffix, stored
        return True


class Recounting:
    """A ``ContentStore`` that stores nothing: gives the objects that there would be, and remembers digests."""

    def __init__(self, codec: Codec) -> None:
        self._ingester = Ingester(_NoStore(), Packer(_NoStore(), DedupIndex(None), codec))
        self._lock = threading.Lock()
        self.sha256: dict[Content, bytes] = {}

    def add_many(self, files: Sequence[bytes]) -> list[Content]:
        """See ContentStore.add_many."""
        contents = self._ingester.add_many(files)
        return [
            self._noted(content, hashlib.sha256(data).digest()) for content, data in zip(contents, files, strict=True)
        ]

    def add_stream(self, read: Callable[[int], bytes], size: int) -> Content:
        """See ContentStore.add_stream."""
        hasher = hashlib.sha256()

        def reading(count: int) -> bytes:
            part = read(count)
            hasher.update(part)
            return part

        content = self._ingester.add_stream(reading, size)
        return self._noted(content, hasher.digest())

    def _noted(self, content: Content, digest: bytes) -> Content:
        with self._lock:
            self.sha256[content] = digest
        return content


@dataclass(frozen=True, slots=True)
class Recomputed:
    """The image's tree, made again."""

    root: Node
    sha256: Mapping[Content, bytes]
    fetched_bytes: int


async def recompute(
    source: "ImageSource",
    known: Provenance,
    *,
    limits: Limits,
    codec: Codec,
    client: "RegistryClient | None" = None,
) -> Recomputed:
    """Fetch the image again and make its tree.

    Raises:
        NotTheImageError: the source has another image.
        UnpackdError: it cannot be fetched, or is not what its digests say.
    """
    store = Recounting(codec)
    threads = anyio.CapacityLimiter(_LAYERS_AT_ONCE)
    fetched_bytes = 0

    def count(size: int) -> None:
        nonlocal fetched_bytes
        fetched_bytes += size

    async with source.open(client) as opened:
        found = await opened.find(await opened.resolve(), Platform.parse(known.platform))
        if str(found.manifest_digest) != known.manifest:
            raise NotTheImageError(
                f"{source} has the manifest {found.manifest_digest}, but the published image was made of "
                f"{known.manifest}"
            )
        config = parse_config(await opened.config(found.manifest.config))
        tree = Tree()
        for descriptor, diff_id in zip(found.manifest.layers, config.diff_ids, strict=True):
            changes = await fetch_layer(
                opened,
                descriptor,
                diff_id,
                store=store,
                limits=limits,
                threads=threads,
                fetched=count,
                entered=lambda _: None,
            )
            tree.apply(changes)
    return Recomputed(tree.root, store.sha256, fetched_bytes)


# --- the published tree


def signed_provenance(view: View, manifest: str, fingerprints: "Collection[Hash]") -> Provenance:
    """The provenance of an image, if a key of the repository has signed it.

    Args:
        view: the repository.
        manifest: digest of the image's manifest.
        fingerprints: of the certificates that the repository's whitelist has.

    Raises:
        NotTheImageError: the signature does not hold, is of another key, or there is none.
        RecordError: the statement cannot be read.
    """
    path = placement.image_path(manifest) + b"/" + inventory.STATEMENT_FILE
    if view.lookup(path) is None:
        raise NotTheImageError(f"{manifest} has no signed provenance; it was converted by an older program")
    return verified_provenance(view.read(path, RECORD_LIMIT_BYTES), manifest, fingerprints)


def verified_provenance(stored: bytes, manifest: str, fingerprints: "Collection[Hash]") -> Provenance:
    """What a signed statement says of *manifest*, wherever it was found; see ``signed_provenance``.

    Raises:
        NotTheImageError: the signature does not hold, is of another key, or the statement is about another image.
        RecordError: it cannot be read.
    """
    statement = SignedStatement.parse(stored)
    try:
        certificate = x509.load_pem_x509_certificate(statement.certificate_pem)
    except ValueError as error:
        raise RecordError(f"the provenance of {manifest} has no certificate") from error
    der = certificate.public_bytes(Encoding.DER)
    key = certificate.public_key()
    if not any(Hash.of(der, one.algorithm) == one for one in fingerprints) or not isinstance(key, RSAPublicKey):
        raise NotTheImageError(f"the provenance of {manifest} is signed by a key that is not the repository's")
    try:
        signed = SignedStatement.signed_bytes(statement.payload)
        key.verify(statement.signature, signed, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature as error:
        raise NotTheImageError(f"the signature of the provenance of {manifest} does not hold") from error
    known = Provenance.parse(statement.payload)
    if known.manifest != manifest:
        raise NotTheImageError(f"the signed provenance of {manifest} is about {known.manifest}")
    return known


def published_trees(config: str) -> tuple[bytes, bytes]:
    """Where the image is: what containers get, and what users list."""
    return placement.rootfs_path(config), placement.flat_path(config)


def published_digests(view: View, config: str) -> set[str]:
    """The digests of the trees that are published now; a single one if they are alike. Raises AbsentError."""
    return {digest_of(items_of_view(view, tree)) for tree in published_trees(config)}


def compare_published(expected: Recomputed, view: View, config: str, store: "ObjectReader") -> Iterator[Finding]:
    """What the published trees have that the image has not, and the other way round; told once if both differ."""

    def same(wanted: Content, found: Content) -> bool:
        if objects_of(wanted) == objects_of(found):
            return True
        if wanted.size != found.size:
            return False
        hasher = hashlib.sha256()
        for part in read_parts(store, found):
            hasher.update(part)
        return hasher.digest() == expected.sha256[wanted]

    found = (
        _compare(items_of_tree(expected.root), items_of_view(view, tree), same) for tree in published_trees(config)
    )
    return iter(dict.fromkeys(chain.from_iterable(found)))


def _compare(
    expected: Iterable[Item], found: Iterable[Item], same: Callable[[Content, Content], bool]
) -> Iterator[Finding]:
    wanted = {item.path: item for item in expected}
    for item in found:
        one = wanted.pop(item.path, None)
        if one is None:
            yield Finding(_shown(item.path), "unexpected")
            continue
        aspects = [name for name in _ASPECTS if getattr(one, name) != getattr(item, name)]
        if dict(one.xattrs) != dict(item.xattrs):
            aspects.append("xattrs")
        contents = (one.content, item.content)
        if (None in contents and contents != (None, None)) or (
            one.content is not None and item.content is not None and not same(one.content, item.content)
        ):
            aspects.append("content")
        if aspects:
            yield Finding(_shown(item.path), ", ".join(aspects))
    yield from (Finding(_shown(path), "missing") for path in sorted(wanted))


# --- what a mount shows


def compare_mounted(expected: Recomputed, top: Path) -> Iterator[Finding]:
    """What the tree at *top* has that the image has not, and the other way round; every byte is read.

    Attributes that only root may see are compared if root asks.
    """
    wanted = {item.path: item for item in items_of_tree(expected.root)}
    inodes: dict[tuple[int, int], bytes] = {}
    for path in _walk(os.fsencode(top)):
        item = wanted.pop(path, None)
        if item is None:
            yield Finding(_shown(path), "unexpected")
            continue
        aspects = list(_differing(os.fsencode(top) + path, item, expected, inodes))
        if aspects:
            yield Finding(_shown(path), ", ".join(aspects))
    yield from (Finding(_shown(path), "missing") for path in sorted(wanted))


def _walk(top: bytes) -> Iterator[bytes]:
    """Every path below *top*, in the order of trees."""
    pending = [b""]
    while pending:
        path = pending.pop()
        yield path
        if stat.S_ISDIR(os.lstat(top + path).st_mode):
            pending.extend(path + b"/" + name for name in _names(top + path))


def _names(directory: bytes) -> list[bytes]:
    """Last name first."""
    with os.scandir(directory) as entries:
        return sorted((entry.name for entry in entries), reverse=True)


def _differing(place: bytes, item: Item, expected: Recomputed, inodes: dict[tuple[int, int], bytes]) -> Iterator[str]:
    status = os.lstat(place)
    shown = {
        "mode": status.st_mode,
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime_ns": status.st_mtime_ns,
        "rdev": status.st_rdev,
    }
    yield from (name for name, value in shown.items() if getattr(item, name) != value)
    if not stat.S_ISDIR(status.st_mode):
        first = inodes.setdefault((status.st_dev, status.st_ino), item.path) if status.st_nlink > 1 else item.path
        if first != item.first:
            yield "first"
    if stat.S_ISLNK(status.st_mode) and os.readlink(place) != item.target:  # noqa: PTH115  # names are bytes
        yield "target"
    if _xattrs(place) != {name: value for name, value in item.xattrs.items() if _is_listed(name)}:
        yield "xattrs"
    if stat.S_ISREG(status.st_mode) and item.content is not None and _sha256(place) != expected.sha256[item.content]:
        yield "content"


def _is_listed(name: bytes) -> bool:
    return os.geteuid() == 0 or not name.startswith(b"trusted.")


def _xattrs(place: bytes) -> dict[bytes, bytes]:
    names = os.listxattr(place, follow_symlinks=False)
    return {os.fsencode(name): os.getxattr(place, name, follow_symlinks=False) for name in names}


def _sha256(place: bytes) -> bytes:
    hasher = hashlib.sha256()
    with open(place, "rb", buffering=0) as stream:  # noqa: PTH123  # names are bytes
        while part := stream.read(_READ_BYTES):
            hasher.update(part)
    return hasher.digest()


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace") or "/"
