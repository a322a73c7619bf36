"""What a repository need not keep: trees, layers, chains and change sets that no image needs which somebody wants.

An image is wanted if a name leads to it, if it is pinned, or if a name led to it until a short time ago. Whatever the
records do not say for certain is an error and ends the run: nothing is removed on a guess. What is not needed any more
is noted with the time when that was seen first; it goes when a grace period has passed. A conversion that counts on
something which goes at that moment is told by its commit, and begins anew.
"""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from converter import inventory, placement
from converter.errors import RecordError
from converter.image_platforms import platform_links
from converter.image_records import RECORD_LIMIT_BYTES, PlatformImage, decode_unneeded, encode_unneeded
from converter.podman_store import PodmanStore
from fs.errors import OvertakenError
from fs.publish.operations import Operation, PutFile, Remove, RequireRevision
from fs.publish.repository import Repository

if TYPE_CHECKING:
    from fs.format.tree import Content
    from fs.publish.view import View

DAY_S = 86_400
_TRIES = 5
_COMMIT_TIMEOUT_S = 600.0
_TREE = re.compile(rb"(?:^|/)(?:\.flat|rootfs)/[0-9a-f]{2}/([0-9a-f]{64})(?:/|$)")
_LAYER = re.compile(rb"(?:^|/)\.layers/[0-9a-f]{2}/([0-9a-f]{64})/layerfs$")
_DIGITS = re.compile(rb"[0-9a-f]{64}")
_KINDS = {
    "image": placement.IMAGES,
    "flat tree": placement.FLAT,
    "root file system": placement.ROOTFS,
    "layer": placement.LAYERS,
    "change set": placement.CHANGE_SETS,
    "chain": placement.CHAINS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionOptions:
    """What is kept beside what names lead to, and for how long."""

    keep_s: int = 30 * DAY_S  # what a name led to stays readable for so long after it came to lead elsewhere
    grace_s: int = 3 * DAY_S  # what is not needed stays for so long after that was seen first
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unneeded:
    """Something that nothing keeps."""

    path: str
    kind: str
    reason: str
    since_unix_s: int
    goes: bool  # in this run; otherwise later


@dataclass(slots=True)
class Needs:
    """What has to stay, and why. Keys are the hexadecimal parts of digests."""

    images: dict[bytes, str] = field(default_factory=dict)
    configs: dict[bytes, str] = field(default_factory=dict)
    linked: dict[bytes, str] = field(default_factory=dict)  # configs of root file systems that only chains need
    tops: set[bytes] = field(default_factory=set)  # chains of whole images
    layers: dict[bytes, str] = field(default_factory=dict)
    chains: dict[bytes, str] = field(default_factory=dict)

    def of(self, kind: str) -> dict[bytes, str]:
        """What of *kind* has to stay."""
        match kind:
            case "image":
                return self.images
            case "root file system":
                return self.linked | self.configs
            case "flat tree":
                return self.configs
            case "chain":
                return self.chains
            case _:
                return self.layers


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionReport:
    """What a run found and did."""

    revision: int
    names: int
    kept_images: int
    kept_trees: int
    kept_layers: int
    unneeded: Sequence[Unneeded]
    changed: bool

    @property
    def removed(self) -> int:
        """How many directories went, or would go."""
        return sum(one.goes for one in self.unneeded)


def collect(repository: Repository, options: RetentionOptions, now: Callable[[], float]) -> RetentionReport:
    """Remove what is not needed, in one commit; a dry run changes nothing.

    Raises:
        RecordError: something cannot be read that says what is needed; nothing was changed.
        OvertakenError: others published all the time.
    """
    for last_try in [False] * (_TRIES - 1) + [True]:
        view = repository.view()
        needs = find_needs(view, options.keep_s, now())
        unneeded = list(find_unneeded(view, needs, options.grace_s, int(now())))
        changed = False
        try:
            if not options.dry_run:
                changed = _commit(repository, view, needs, unneeded)
        except OvertakenError:
            if last_try:
                raise
            continue
        break
    return RetentionReport(
        revision=repository.revision,
        names=len(inventory.names(view)),
        kept_images=len(needs.images),
        kept_trees=len(needs.of("flat tree")),
        kept_layers=len(needs.layers),
        unneeded=unneeded,
        changed=changed,
    )


def _commit(repository: Repository, view: "View", needs: Needs, unneeded: Sequence[Unneeded]) -> bool:
    later = {one.path.encode(): one.since_unix_s for one in unneeded if not one.goes}
    done: list[Operation] = [RequireRevision(view.revision)]
    gone = {one.path for one in unneeded if one.goes}
    done += _without_trees(view, needs, gone)
    done += [Remove(path.encode()) for path in sorted(gone)]
    if later or view.lookup(placement.UNNEEDED) is not None:
        done.append(PutFile(placement.UNNEEDED, repository.ingester().add_bytes(encode_unneeded(later))))
    return repository.commit(done, timeout_s=_COMMIT_TIMEOUT_S).changed


def find_needs(view: "View", keep_s: int, now_unix_s: float) -> Needs:
    """What has to stay. Raises RecordError."""
    needs = Needs()
    for name in inventory.names(view):
        _need_name(view, needs, name)
        for event, following in pairwise(inventory.history(view, name)):
            if following.converted.timestamp() + keep_s > now_unix_s:
                for one in event.record.all_images:
                    why = f"{name} led there until {following.converted:%Y-%m-%d}"
                    _need(view, needs, one, why, must_exist=False)
    for pin in inventory.pins(view):
        found = inventory.provenance(view, pin.manifest)
        if found is None:
            raise RecordError(f"the image {pin.manifest} is pinned, but is not there")
        one = PlatformImage(platform=found.platform, manifest=found.manifest, config=found.config)
        _need(view, needs, one, f"a pin ({pin.reason})", must_exist=True)
    _need_podman_store(view, needs)
    for path, target in inventory.public_links(view):
        tree = _TREE.search(target)
        if tree is not None:
            needs.configs.setdefault(tree[1], f"the link {path.decode('utf-8', 'backslashreplace')}")
    _follow_chains(view, needs)
    return needs


def _need_podman_store(view: "View", needs: Needs) -> None:
    """Images that podman sees stay; of those that another program put there, layers and trees."""
    store = PodmanStore.read(view)
    for config, manifest in store.images():
        needs.configs.setdefault(placement.hex_of(config), "podman's store")
        if manifest is not None:
            one = PlatformImage(platform="", manifest=manifest, config=config)
            _need(view, needs, one, "podman's store", must_exist=True)
    for layer in store.blobs():
        needs.layers.setdefault(placement.hex_of(layer), "podman's store")


def _need_name(view: "View", needs: Needs, name: str) -> None:
    image = inventory.named_image(view, name)
    if image.record is not None:
        for one in image.record.all_images:
            _need(view, needs, one, f"the name {name}", must_exist=True)
        return
    needs.configs.setdefault(placement.hex_of(str(image.ducc_config)), f"the name {name}")
    for layer in image.ducc_layers:
        needs.layers.setdefault(placement.hex_of(layer), f"the name {name}")


def _need(view: "View", needs: Needs, image: PlatformImage, why: str, *, must_exist: bool) -> None:
    digits = placement.hex_of(image.manifest)
    if digits in needs.images:
        return
    found = inventory.provenance(view, image.manifest)
    if found is None:
        if must_exist:
            raise RecordError(f"the records of the image {image.manifest} are missing; {why} leads to it")
        return
    needs.images[digits] = why
    needs.configs.setdefault(placement.hex_of(found.config), why)
    for layer in found.layers:
        needs.layers.setdefault(placement.hex_of(layer.digest), why)
    chains = [placement.hex_of(chain) for chain in placement.chain_ids([layer.diff_id for layer in found.layers])]
    for chain in chains:
        needs.chains.setdefault(chain, why)
    needs.tops.update(chains[-1:])


def _follow_chains(view: "View", needs: Needs) -> None:
    """Chains are shared by images of the same DiffIDs: what they link to may have come with another image."""
    for digits, why in needs.chains.items():
        chain = _chain(digits)
        layer = _linked(view, chain + b"/layer", _LAYER)
        if layer is not None:
            needs.layers.setdefault(layer, f"a chain of {why}")
        rootfs = _linked(view, chain + b"/flat", _TREE)
        if rootfs is not None and digits in needs.tops:
            needs.linked.setdefault(rootfs, f"a chain of {why}")


def _chain(digits: bytes) -> bytes:
    return placement.chain_path(f"sha256:{digits.decode()}")


def _linked(view: "View", link: bytes, pattern: re.Pattern[bytes]) -> bytes | None:
    """The hexadecimal digits that the symlink at *link* leads to; None if there is none, or it stays in the chain."""
    entry = view.lookup(link)
    if entry is None or not entry.is_symlink:
        return None
    target = view.readlink(link)
    found = pattern.search(target)
    if found is None and target != b"layerfs":
        raise RecordError(f"{link.decode()} leads to {target!r}, which is nowhere")
    return None if found is None else found[1]


def _without_trees(view: "View", needs: Needs, gone: Collection[str]) -> Iterator[Operation]:
    """Part of larger images, chains stay without the trees of smaller ones that go."""
    for digits in needs.chains.keys() - needs.tops:
        chain = _chain(digits)
        rootfs = _linked(view, chain + b"/flat", _TREE)
        if rootfs is not None and placement.rootfs_path(f"sha256:{rootfs.decode()}").decode() in gone:
            yield Remove(chain + b"/flat")
            yield Remove(chain + b"/rootfs.erofs")
            yield Remove(chain + b"/start.json")


def find_unneeded(view: "View", needs: Needs, grace_s: int, now_unix_s: int) -> Iterator[Unneeded]:
    """What is there and has not to stay. Raises RecordError."""
    known: dict[bytes, int] = {}
    if view.lookup(placement.UNNEEDED) is not None:
        known = decode_unneeded(view.read(placement.UNNEEDED, RECORD_LIMIT_BYTES * 64))
    for kind, root in _KINDS.items():
        for path in _placed(view, root):
            digits = path.rpartition(b"/")[2]
            if digits in needs.of(kind):
                continue
            since = min(known.get(path, now_unix_s), now_unix_s)
            yield Unneeded(
                path=path.decode(),
                kind=kind,
                reason=_reason(kind),
                since_unix_s=since,
                goes=now_unix_s - since >= grace_s,
            )


def _reason(kind: str) -> str:
    match kind:
        case "image":
            return "no name leads or led there, and it is not pinned"
        case "flat tree" | "tree for Apptainer":
            return "no image that is kept has this config, and nothing links to it"
        case "chain":
            return "no image that is kept has these layers"
        case _:
            return "no image that is kept has this layer"


def _placed(view: "View", root: bytes) -> Iterator[bytes]:
    """Every directory ``<root>/<xx>/<hex>``; anything else below *root* is none of ours."""
    if view.lookup(root) is None:
        return
    for group in view.list(root):
        if not group.is_directory:
            continue
        folder = root + b"/" + group.name
        for entry in view.list(folder):
            if entry.is_directory and _DIGITS.fullmatch(entry.name) and entry.name.startswith(group.name):
                yield folder + b"/" + entry.name


def removal(view: "View", names: Sequence[str], put: "Callable[[bytes], Content]") -> list[Operation]:
    """The operations that take *names* away, from podman's store too; trees and layers stay until they are collected.

    Args:
        view: the repository.
        names: of images.
        put: stores the bytes of a file.

    Raises:
        ImageAbsentError: there is no image of such a name.
        RecordError: a record cannot be read.
    """
    done: list[Operation] = []
    store = PodmanStore.read(view)
    is_stored = False
    for name in names:
        inventory.named_image(view, name)
        links = [placement.public_path(name), *platform_links(view, name)]
        done += [Remove(link) for link in links if view.lookup(link) is not None]
        done.append(Remove(placement.METADATA + placement.public_path(name)))
        is_stored = store.remove(name) or is_stored
    return [*done, *(store.operations(view, put) if is_stored else ())]
