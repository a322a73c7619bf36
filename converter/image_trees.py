"""From the layers of an image to the trees and metadata images that are published."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from converter import placement
from converter.changeset import decode, encode
from converter.conversion import ReadLayer
from converter.errors import ConverterError
from converter.flatten import Tree, layer_alone, same_tree
from converter.placement import NewChain, NewLayer
from fs.errors import RefusedError
from fs.format.tree import Content, Node, resolve
from fs.publish.repository import Repository
from fs.publish.view import View
from fs.rootfs.erofs import build_metadata_image

Note = Callable[[str], None]


class LayerTrees:
    """What layers are without those below, each made once."""

    def __init__(self) -> None:
        self._made: dict[str, Node] = {}

    def of(self, layer: ReadLayer) -> Node:
        """The tree of *layer*, not to be changed."""
        digest = layer.description.digest
        if digest not in self._made:
            self._made[digest] = layer_alone(layer.changes)
        return self._made[digest]


def flatten(
    repository: Repository, view: View, layers: Sequence[ReadLayer], chains: Sequence[str], alone: LayerTrees
) -> tuple[Node, dict[str, NewChain]]:
    """The image's tree, and the chains that the repository does not have.

    Raises:
        ConverterError: a layer cannot be applied; the message names it.
    """
    tree = Tree()
    new_chains: dict[str, NewChain] = {}
    for number, (layer, chain) in enumerate(zip(layers, chains, strict=True)):
        digest = layer.description.digest
        with naming_layer(number + 1, len(layers), digest):
            overlay = tree.apply(layer.changes)
        if view.lookup(placement.chain_path(chain) + b"/layer") is not None:
            continue
        own = None
        if not same_tree(overlay, alone.of(layer)):
            own = repository.prepare_subtree(placement.chain_path(chain) + b"/layerfs", overlay)
        parent = chains[number - 1] if number else None
        new_chains[chain] = NewChain(layer=digest, parent=parent, own_layer=own)
    return tree.root, new_chains


def new_layers(repository: Repository, layers: Sequence[ReadLayer], alone: LayerTrees) -> dict[str, NewLayer]:
    """What those of *layers* bring that the repository does not have."""
    now = datetime.now(UTC)
    put = repository.ingester().add_bytes
    new: dict[str, NewLayer] = {}
    for layer in layers:
        digest = layer.description.digest
        if layer.is_new and digest not in new:
            path = placement.layerfs_path(digest)
            new[digest] = NewLayer(
                subtree=repository.prepare_subtree(path, alone.of(layer)),
                change_set=put(encode(layer.changes)),
                record=put(placement.layer_record(layer.description, layer.changes.unpacked_bytes, now)),
            )
    return new


def root_images(  # noqa: PLR0913, PLR0917  # what the image is made of
    repository: Repository, view: View, chain: str, tree: Node, config: str, note: Note
) -> dict[str, Content]:
    """The metadata image of the chain *chain*, whose tree is *tree*; nothing if it is there or cannot be made."""
    if view.lookup(placement.root_image_path(chain)) is not None:
        return {}
    link = placement.chain_path(chain) + b"/flat"
    rootfs = placement.rootfs_path(config)
    if view.lookup(link) is not None:  # another image with the same layers was first
        rootfs = placement.linked_rootfs_path(view.readlink(link))
    try:
        image = root_image(tree, rootfs)
    except RefusedError as error:  # nodes use the tree itself then
        note(f"the root file system has no metadata image: {error}")
        return {}
    return {chain: repository.ingester().add_bytes(image)}


def root_image(tree: Node, rootfs: bytes, held: Mapping[bytes, bytes] | None = None) -> bytes:
    """The metadata image of *tree*, which is published at *rootfs*.

    Args:
        tree: the root file system.
        rootfs: its path in the repository.
        held: contents of the files that the image shall hold itself, by their paths in *tree*.

    Raises:
        RefusedError: the format cannot hold it.
    """
    contents = {id(resolve(tree, path)): content for path, content in (held or {}).items()}

    def data_path(path: bytes, node: Node) -> bytes | None:
        return rootfs + path if node.content is not None and node.content.size else None

    return build_metadata_image(tree, data_path, lambda node: contents.get(id(node)))


def stored_tree(view: View, layers: Sequence[str]) -> Node:
    """The tree of an image made again from the change sets of its *layers*, lowest first, as they are published.

    Raises:
        AbsentError, CorruptError, RefusedError: a change set cannot be read.
        ConverterError: it is no change set, or cannot be applied.
    """
    tree = Tree()
    for layer in layers:
        tree.apply(decode(view.read(placement.change_set_path(layer), placement.CHANGE_SET_LIMIT_BYTES)))
    return tree.root


@contextmanager
def naming_layer(number: int, total: int, digest: str) -> Iterator[None]:
    """Let errors say which layer they are about."""
    try:
        yield
    except ConverterError as error:
        error.where = f"layer {number} of {total} ({digest}): "
        raise
