"""Layers on layers: the merged tree, and each layer in the form of overlayfs."""

import stat
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import LayerError
from converter.flatten import OPAQUE_XATTR, Tree, layer_alone, same_tree
from fs.format.tree import Node, resolve, walk
from tests.support.tars import changes, entry, header, pax


def d(name: bytes, mode: int = 0o755, mtime: int = 0) -> bytes:
    return header(name + b"/", b"5", mode=mode, mtime=mtime)


def f(name: bytes, data: bytes = b"") -> bytes:
    return entry(name, data)


def s(name: bytes, target: bytes) -> bytes:
    return header(name, b"2", link=target)


def h(name: bytes, target: bytes) -> bytes:
    return header(name, b"1", link=target)


def flat(*layers: bytes) -> Tree:
    tree = Tree()
    for layer in layers:
        tree.apply(changes(layer))
    return tree


def paths(root: Node) -> list[bytes]:
    return [path for path, _ in walk(root)][1:]


def at(root: Node, path: bytes) -> Node:
    node = resolve(root, path)
    assert node is not None, path
    return node


def test_upper_layers_win() -> None:
    tree = flat(f(b"a", b"1") + f(b"b", b"22"), f(b"a", b"333"))

    content = at(tree.root, b"/a").content
    assert content is not None
    assert content.size == 3
    assert paths(tree.root) == [b"/a", b"/b"]


def test_whiteouts_act_on_lower_layers_whatever_their_place_in_the_tar() -> None:
    lower = f(b"x", b"lower") + d(b"dir") + f(b"dir/old")

    for upper in (
        f(b"x") + f(b"dir/new") + f(b".wh.x") + f(b".wh.dir"),
        f(b".wh.dir") + f(b".wh.x") + f(b"x") + f(b"dir/new"),
    ):
        assert paths(flat(lower, upper).root) == [b"/dir", b"/dir/new", b"/x"]


def test_opaque_directories_keep_their_own() -> None:
    tree = flat(d(b"a", 0o700) + f(b"a/old"), f(b"a/new") + f(b"a/.wh..wh..opq"))

    assert paths(tree.root) == [b"/a", b"/a/new"]
    assert at(tree.root, b"/a").mode == stat.S_IFDIR | 0o700


def test_directory_over_directory_takes_attributes_and_keeps_what_is_there() -> None:
    tree = flat(d(b"a", 0o755, 5) + f(b"a/x"), d(b"a", 0o1777, 9))

    node = at(tree.root, b"/a")
    assert (node.mode, node.mtime_ns) == (stat.S_IFDIR | 0o1777, 9 * 10**9)
    assert b"x" in node.children


def test_what_is_added_later_does_not_change_a_directorys_time() -> None:
    assert at(flat(d(b"a", mtime=5), f(b"a/x")).root, b"/a").mtime_ns == 5 * 10**9


def test_missing_parents_have_fixed_attributes() -> None:
    node = at(flat(f(b"a/b/c")).root, b"/a/b")

    assert (node.mode, node.uid, node.gid, node.mtime_ns) == (stat.S_IFDIR | 0o755, 0, 0, 0)


def test_missing_parents_below_a_directory_that_gives_its_group_have_it() -> None:
    tree = flat(header(b"shared/", b"5", mode=0o2775, uid=7, gid=70) + f(b"shared/a/b/file"))

    for path in (b"/shared/a", b"/shared/a/b"):
        made = at(tree.root, path)
        assert (made.mode, made.uid, made.gid) == (stat.S_IFDIR | 0o2755, 0, 70)
    assert at(tree.root, b"/shared/a/b/file").gid == 0


@pytest.mark.parametrize("target", [b"/tmp", b"../../../tmp", b"tmp", b"./x/../tmp", b"/../tmp/."])
def test_symlinked_parents_lead_inside_the_tree(target: bytes) -> None:
    tree = flat(s(b"out", target), f(b"out/file"))

    assert at(tree.root, b"/tmp/file")
    assert stat.S_ISLNK(at(tree.root, b"/out").mode)


def test_symlinks_in_circles_are_an_error() -> None:
    with pytest.raises(LayerError, match="a/x"):
        flat(s(b"a", b"b") + s(b"b", b"a") + f(b"a/x"))


def test_paths_are_looked_up_anew_after_a_directory_became_something_else() -> None:
    tree = flat(d(b"a") + f(b"a/1") + d(b"b") + s(b"a", b"b") + f(b"a/2"))

    assert paths(tree.root) == [b"/a", b"/b", b"/b/2"]


def test_hard_links_are_one_node() -> None:
    tree = flat(f(b"a", b"x") + h(b"b", b"a"), h(b"c", b"b") + f(b"a", b"new"))

    assert at(tree.root, b"/b") is at(tree.root, b"/c")
    assert at(tree.root, b"/a") is not at(tree.root, b"/b")


def test_hard_link_to_a_symlink_is_to_the_symlink() -> None:
    tree = flat(s(b"p", b"/outside") + h(b"q", b"p"))

    assert at(tree.root, b"/q") is at(tree.root, b"/p")


@pytest.mark.parametrize("target", [b"absent", b"dir", b"dir/absent", b"../../etc/hostname"])
def test_hard_link_without_a_target_names_the_link(target: bytes) -> None:
    with pytest.raises(LayerError) as caught:
        flat(d(b"dir") + h(b"link", target))

    assert caught.value.entry == b"link"


def test_file_below_a_file_is_an_error() -> None:
    with pytest.raises(LayerError, match="f/x"):
        flat(f(b"f"), f(b"f/x"))


def test_deep_trees_need_no_recursion() -> None:
    archive = pax((b"path", b"d/" * 1500 + b"f")) + f(b"f")

    assert at(flat(archive).root, b"/d" * 1500 + b"/f")


# --- overlay form


def overlay(*layers: bytes) -> Node:
    """The uppermost layer over the others."""
    tree = Tree()
    for layer in layers[:-1]:
        tree.apply(changes(layer))
    return tree.apply(changes(layers[-1]))


def is_whiteout(node: Node) -> bool:
    return stat.S_ISCHR(node.mode) and node.rdev == 0


def test_removed_names_are_whiteouts() -> None:
    node = overlay(d(b"a") + f(b"a/x"), f(b"a/.wh.x") + f(b".wh.absent"))

    assert is_whiteout(at(node, b"/a/x"))
    assert b"absent" not in node.children


def test_removed_and_made_anew_is_opaque() -> None:
    node = overlay(d(b"a") + f(b"a/x"), f(b".wh.a") + d(b"a") + f(b"a/y"))

    assert at(node, b"/a").xattrs == {OPAQUE_XATTR: b"y"}
    assert paths(node) == [b"/a", b"/a/y"]


def test_opaque_root_is_spelled_out_because_overlayfs_takes_no_notice_of_it() -> None:
    node = overlay(f(b"old") + d(b"dir"), f(b".wh..wh..opq") + f(b"new") + f(b"dir/new"))

    assert is_whiteout(at(node, b"/old"))
    assert at(node, b"/dir").xattrs == {OPAQUE_XATTR: b"y"}


def test_parents_without_an_entry_have_the_lower_ones_attributes() -> None:
    node = overlay(d(b"tmp", 0o1777, 7), f(b"tmp/x"))

    assert at(node, b"/tmp").mode == stat.S_IFDIR | 0o1777
    assert at(node, b"/tmp").mtime_ns == 7 * 10**9


def test_entries_lie_where_lower_symlinks_lead() -> None:
    node = overlay(s(b"lib", b"usr/lib") + d(b"usr/lib"), f(b"lib/x.so") + f(b"lib/.wh.old"))

    assert paths(node) == [b"/usr", b"/usr/lib", b"/usr/lib/x.so"]


def test_hard_link_into_a_lower_layer_is_a_copy() -> None:
    node = overlay(f(b"a", b"shared"), h(b"b", b"a"))

    content = at(node, b"/b").content
    assert content is not None
    assert content.size == 6


def test_layer_alone_has_whiteouts_for_whatever_lies_below() -> None:
    node = layer_alone(
        changes(f(b"a/.wh.x") + f(b"o/.wh..wh..opq") + f(b"file/.wh.y") + f(b"file") + h(b"b", b"below"))
    )

    assert is_whiteout(at(node, b"/a/x"))
    assert at(node, b"/o").xattrs == {OPAQUE_XATTR: b"y"}
    assert b"b" not in node.children


def test_first_layer_alone_is_the_same_as_over_nothing() -> None:
    layer = d(b"a") + f(b"a/x") + s(b"l", b"a") + f(b"l/y") + h(b"z", b"a/x")

    assert same_tree(overlay(layer), layer_alone(changes(layer)))


def test_same_tree_tells_links_from_copies() -> None:
    linked, copied = flat(f(b"a") + h(b"b", b"a")).root, flat(f(b"a") + f(b"b")).root

    assert not same_tree(linked, copied)
    assert not same_tree(copied, linked)


def stacked(lower: Node, upper: Node) -> Node:
    """What overlayfs shows of *upper* over *lower*."""
    if not upper.is_directory:
        return upper
    merged = Node(mode=upper.mode, uid=upper.uid, gid=upper.gid, mtime_ns=upper.mtime_ns)
    merged.xattrs = {key: value for key, value in upper.xattrs.items() if key != OPAQUE_XATTR}
    if lower.is_directory and OPAQUE_XATTR not in upper.xattrs:
        merged.children = dict(lower.children)
    for name, child in upper.children.items():
        if is_whiteout(child):
            merged.children.pop(name, None)
        else:
            merged.children[name] = stacked(merged.children.get(name, Node(mode=stat.S_IFREG)), child)
    return merged


letters = st.sampled_from([b"a", b"b", b"c"])
some_paths = st.lists(letters, min_size=1, max_size=3).map(b"/".join)
members = st.one_of(
    some_paths.map(f),
    st.builds(d, some_paths, st.sampled_from([0o700, 0o755, 0o1777]), st.integers(1, 9)),
    st.builds(s, some_paths, st.sampled_from([b"a", b"/b", b"../c", b".."])),
    st.builds(h, some_paths, some_paths),
    st.builds(lambda path: f(b"/".join([*path.split(b"/")[:-1], b".wh." + path.split(b"/")[-1]])), some_paths),
    some_paths.map(lambda path: f(path + b"/.wh..wh..opq")),
)
layers = st.lists(st.lists(members, max_size=6).map(b"".join), min_size=2, max_size=4)


@given(layers)
def test_overlays_stacked_by_the_kernels_rules_are_the_merged_tree(archives: list[bytes]) -> None:
    tree, shown = Tree(), Node(mode=stat.S_IFDIR | 0o755)
    with suppress(LayerError):
        for archive in archives:
            change_set = changes(archive)
            shown = stacked(shown, tree.apply(change_set))
            layer_alone(change_set)
            without_links = {path: (node.mode, node.mtime_ns, node.target) for path, node in walk(tree.root)}
            assert {path: (node.mode, node.mtime_ns, node.target) for path, node in walk(shown)} == without_links


def test_a_directory_that_is_emptied_removed_and_made_again_is_there() -> None:
    tree = Tree()
    tree.apply(changes(f(b"a/a")))

    overlay = tree.apply(changes(f(b".wh.a") + f(b"a/.wh..wh..opq") + f(b"a/a")))

    assert paths(tree.root) == paths(overlay) == [b"/a", b"/a/a"]
    assert overlay.children[b"a"].xattrs == {OPAQUE_XATTR: b"y"}
