"""Differences of trees, published into memory."""

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs.format.hashes import Hash, Suffix
from fs.format.tree import Node
from fs.publish.catalogs import CatalogOptions, publish_tree
from fs.publish.diff import Change, Difference, differences
from fs.publish.ingest import Ingester
from fs.publish.packing import Codec, DedupIndex, Packer
from fs.store.memory import MemoryStore

Tree = Mapping[str, "bytes | Tree"]


class CountingStore(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.read: list[Hash] = []

    def get(self, name: Hash, suffix: Suffix, *, limit_bytes: int) -> bytes:
        self.read.append(name)
        return super().get(name, suffix, limit_bytes=limit_bytes)


class Trees:
    """Publishes trees given as nested dictionaries."""

    def __init__(self, options: CatalogOptions | None = None) -> None:
        self.store = CountingStore()
        self._ingester = Ingester(self.store, Packer(self.store, DedupIndex(None), Codec()))
        self._options = options

    def node(self, tree: "bytes | Tree") -> Node:
        if isinstance(tree, bytes):
            return Node(mode=0o100644, content=self._ingester.add_bytes(tree), mtime_ns=len(tree))
        children = {name.encode(): self.node(below) for name, below in tree.items()}
        return Node(mode=0o040755, children=children)

    def publish(self, root: "Node | Tree") -> Hash:
        node = root if isinstance(root, Node) else self.node(root)
        return publish_tree(b"/t", node, self.store, self._options).catalog.hash

    def diff(self, before: "Node | Tree", after: "Node | Tree") -> list[Difference]:
        return list(differences(self.store, self.publish(before), self.publish(after), b"/t"))


def shown(found: list[Difference]) -> list[str]:
    return [" ".join((each.change.value, each.path.decode().removeprefix("/t"), *each.aspects)) for each in found]


def test_equal_trees_have_no_differences() -> None:
    trees = Trees()

    assert trees.diff({"a": b"1"}, {"a": b"1"}) == []


def test_added_removed_and_changed_paths_are_told_in_order() -> None:
    found = Trees().diff(
        {"gone": {"x": b"1", "y": {"z": b"2"}}, "same": b"3", "text": b"old"},
        {"new": {"x": b"1"}, "same": b"3", "text": b"new"},
    )

    assert shown(found) == [
        "removed /gone",
        "removed /gone/x",
        "removed /gone/y",
        "removed /gone/y/z",
        "added /new",
        "added /new/x",
        "changed /text content",
    ]
    assert found[0].before is not None
    assert found[0].after is None


def test_a_file_that_becomes_a_directory_is_a_change_of_type() -> None:
    assert shown(Trees().diff({"a": b"1"}, {"a": {"b": b"1"}})) == ["changed /a type mode", "added /a/b"]


@pytest.mark.parametrize(
    ("change", "aspect"),
    [
        ({"mode": 0o100600}, "mode"),
        ({"uid": 1}, "owner"),
        ({"gid": 1}, "owner"),
        ({"mtime_ns": 5}, "time"),
        ({"xattrs": {b"user.a": b"b"}}, "xattrs"),
    ],
)
def test_metadata_is_compared(change: dict[str, object], aspect: str) -> None:
    trees = Trees()
    before, after = trees.node({"a": b"1"}), trees.node({"a": b"1"})
    for name, value in change.items():
        setattr(after.children[b"a"], name, value)

    assert shown(trees.diff(before, after)) == [f"changed /a {aspect}"]


def test_targets_and_devices_are_compared() -> None:
    trees = Trees()

    def tree(target: bytes, rdev: int) -> Node:
        link = Node(mode=0o120777, target=target)
        device = Node(mode=0o020600, rdev=rdev)
        return Node(mode=0o040755, children={b"link": link, b"null": device})

    assert shown(trees.diff(tree(b"x", 259), tree(b"y", 260))) == ["changed /link target", "changed /null device"]


def test_catalogs_that_are_the_same_are_not_opened() -> None:
    """Two directories, each large enough for a catalog; one file in one of them changes."""
    trees = Trees(CatalogOptions(most_rows=15, least_rows=10))
    sides = {name: {f"file{number}": b"%d" % number for number in range(20)} for name in ("left", "right")}
    before = trees.publish(sides)
    after = trees.publish({**sides, "right": {**sides["right"], "file7": b"other"}})
    trees.store.read.clear()

    found = list(differences(trees.store, before, after, b"/t"))

    assert shown(found) == ["changed /right/file7 content time"]
    assert len(trees.store.read) == 4, "the top and the right one, twice each"


def flat(tree: Tree, path: str = "") -> dict[str, "bytes | None"]:
    found: dict[str, bytes | None] = {}
    for name, below in tree.items():
        here = f"{path}/{name}"
        found[here] = below if isinstance(below, bytes) else None
        if not isinstance(below, bytes):
            found |= flat(below, here)
    return found


TREES = st.recursive(
    st.binary(max_size=2), lambda below: st.dictionaries(st.sampled_from("abc"), below, max_size=3), max_leaves=8
).filter(lambda tree: not isinstance(tree, bytes))


@given(TREES, TREES)
@settings(max_examples=60, deadline=None)
def test_it_agrees_with_a_comparison_path_by_path(before: Tree, after: Tree) -> None:
    old, new = flat(before), flat(after)

    found = {each.path.decode().removeprefix("/t"): each.change for each in Trees().diff(before, after)}

    expected = dict.fromkeys(new.keys() - old.keys(), Change.ADDED)
    expected |= dict.fromkeys(old.keys() - new.keys(), Change.REMOVED)
    expected |= {path: Change.CHANGED for path in old.keys() & new.keys() if old[path] != new[path]}
    assert found == expected
