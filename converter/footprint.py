"""What an image costs in a repository: contents that it has alone, and those that other images have too."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from converter import placement
from converter.tree_digest import items_of_view
from fs.format.hashes import Hash, Suffix

if TYPE_CHECKING:
    from fs.publish.view import View

_Object = tuple[Hash, Suffix]


class Sizes(Protocol):
    """A store that knows what its objects take."""

    def describe(self, name: Hash, suffix: Suffix) -> "_Described | None":
        """What is known about one object; None if it is not there."""
        ...


class _Described(Protocol):
    @property
    def size_bytes(self) -> int:
        """Stored bytes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes of an image's files in the repository; equal contents count once. Stored ones are after compression."""

    content_bytes: int
    shared_content_bytes: int  # of these, what other images have too
    stored_bytes: int | None  # None where the store cannot tell
    shared_stored_bytes: int | None


def footprint(view: "View", config: str, sizes: Sizes | None) -> Footprint:
    """What the image with that config takes, compared with every other flat tree of the repository.

    Raises:
        FsError: a catalog cannot be read.
    """
    own = dict(_objects(view, placement.flat_path(config)))
    others: set[_Object] = set()
    for tree in _other_trees(view, config):
        others.update(name for name, _ in _objects(view, tree) if name in own)
    shared = own.keys() & others
    return Footprint(
        content_bytes=sum(own.values()),
        shared_content_bytes=sum(own[name] for name in shared),
        stored_bytes=None if sizes is None else _stored(sizes, own),
        shared_stored_bytes=None if sizes is None else _stored(sizes, shared),
    )


def _objects(view: "View", top: bytes) -> Iterator[tuple[_Object, int]]:
    """Every object of the files below *top*, with its plain size."""
    for item in items_of_view(view, top):
        if item.content is None or not item.content.size:
            continue
        if item.content.hash is not None:
            yield (item.content.hash, Suffix.PLAIN), item.content.size
        for chunk in item.content.chunks:
            yield (chunk.hash, Suffix.CHUNK), chunk.size


def _other_trees(view: "View", config: str) -> Iterator[bytes]:
    mine = placement.flat_path(config)
    for group in view.list(placement.FLAT):
        if group.is_directory:
            folder = placement.FLAT + b"/" + group.name
            trees = [folder + b"/" + entry.name for entry in view.list(folder) if entry.is_directory]
            yield from (tree for tree in trees if tree != mine)


def _stored(sizes: Sizes, objects: Iterable[_Object]) -> int:
    found = [sizes.describe(name, suffix) for name, suffix in objects]
    return sum(one.size_bytes for one in found if one is not None)
