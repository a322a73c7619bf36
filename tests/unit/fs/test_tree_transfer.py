import os
import stat
from collections.abc import Iterator

import pytest

from fs.format.compression import Compression
from fs.format.hashes import Algorithm, Hash
from fs.format.tree import Chunk, Content, Node, walk
from fs.publish.tree_transfer import decode_trees, encode_trees


def name(number: int, algorithm: Algorithm = Algorithm.SHA1) -> Hash:
    return Hash(bytes([number]) * 20, algorithm)


CONTENTS = [
    Content(0, name(1)),
    Content(5, name(2, Algorithm.SHAKE128), compression=Compression.NONE),
    Content(9 << 20, None, (Chunk(0, 5 << 20, name(3)), Chunk(5 << 20, 4 << 20, name(4, Algorithm.RMD160)))),
]


def shown(root: Node) -> Iterator[tuple[object, ...]]:
    for path, node in walk(root):
        yield (
            *(path, node.mode, node.uid, node.gid, node.mtime_ns, node.content),
            *(node.target, node.rdev, node.xattrs, node.is_hidden),
        )


@pytest.fixture
def tree() -> Node:
    files = [
        Node(mode=stat.S_IFREG | 0o4755, uid=2**32 - 2, gid=7, mtime_ns=-1, content=content) for content in CONTENTS
    ]
    return Node(
        mode=stat.S_IFDIR | 0o755,
        xattrs={b"user.a": b"\0\xff", b"trusted.overlay.opaque": b"y"},
        children={
            b"hidden": Node(mode=stat.S_IFDIR | 0o1777, is_hidden=True, children={b"a": files[0], b"b": files[1]}),
            b"link": Node(mode=stat.S_IFLNK | 0o777, target=b"\xff/.."),
            b"device": Node(mode=stat.S_IFCHR | 0o600, rdev=os.makedev(1, 300), mtime_ns=2**62),
            b"same": files[0],
            b"large": files[2],
            b"\xc3\x28": Node(mode=stat.S_IFIFO),
        },
    )


def test_everything_arrives(tree: Node) -> None:
    [arrived] = decode_trees(encode_trees([tree]))

    assert list(shown(arrived)) == list(shown(tree))
    assert arrived.children[b"same"] is arrived.children[b"hidden"].children[b"a"]


def test_what_several_trees_share_they_go_on_sharing(tree: Node) -> None:
    other = Node(mode=stat.S_IFDIR, children={b"tree": tree, b"same": tree.children[b"same"]})

    first, second, third = decode_trees(encode_trees([other, tree, other]))

    assert second is first.children[b"tree"]
    assert second.children[b"same"] is first.children[b"same"]
    assert list(shown(third)) == list(shown(other))


def test_no_tree_is_too_deep() -> None:
    root = here = Node(mode=stat.S_IFDIR)
    for _ in range(20_000):
        here.children[b"d"] = Node(mode=stat.S_IFDIR)
        here = here.children[b"d"]

    [arrived] = decode_trees(encode_trees([root]))

    assert sum(1 for _ in walk(arrived)) == 20_001
