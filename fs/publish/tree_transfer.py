"""Trees on their way to another process of this program: in half of pickle's time, and none is too deep for it."""

import marshal
from collections.abc import Sequence
from typing import Any

from fs.format.compression import Compression
from fs.format.hashes import Algorithm, Hash
from fs.format.tree import Chunk, Content, Node

_Row = tuple[Any, ...]


def encode_trees(roots: Sequence[Node]) -> bytes:
    """*roots* and everything below them; nodes that are reachable in several ways stay that."""
    nodes = list(roots)
    numbers = {id(root): number for number, root in enumerate(roots)}
    rows: list[_Row] = []
    for node in nodes:  # which grows meanwhile
        children = []
        for name, child in node.children.items():
            number = numbers.setdefault(id(child), len(nodes))
            if number == len(nodes):
                nodes.append(child)
            children.append((name, number))
        attributes = (node.mode, node.uid, node.gid, node.mtime_ns, node.target, node.rdev, node.xattrs, node.is_hidden)
        rows.append((*attributes, None if node.content is None else _content_row(node.content), children))
    return marshal.dumps((len(roots), rows))


def decode_trees(data: bytes | memoryview) -> list[Node]:
    """Inverse of ``encode_trees``, for what a process of this program has encoded."""
    count, rows = marshal.loads(data)  # noqa: S302  # over a pipe that nobody else has
    nodes = [
        Node(
            mode=mode,
            uid=uid,
            gid=gid,
            mtime_ns=mtime_ns,
            target=target,
            rdev=rdev,
            xattrs=xattrs,
            is_hidden=is_hidden,
            content=None if content is None else _content(*content),
        )
        for mode, uid, gid, mtime_ns, target, rdev, xattrs, is_hidden, content, _ in rows
    ]
    for node, row in zip(nodes, rows, strict=True):
        node.children.update((name, nodes[number]) for name, number in row[-1])
    return nodes[:count]


def _content_row(content: Content) -> _Row:
    name = content.hash
    chunks = [(one.offset, one.size, one.hash.digest, one.hash.algorithm.value) for one in content.chunks]
    whole = (None, None) if name is None else (name.digest, name.algorithm.value)
    return (content.size, *whole, chunks, content.compression.value)


def _content(size: int, digest: bytes | None, algorithm: str, chunks: list[_Row], compression: int) -> Content:
    return Content(
        size,
        None if digest is None else Hash(digest, Algorithm(algorithm)),
        tuple(Chunk(offset, length, Hash(name, Algorithm(kind))) for offset, length, name, kind in chunks),
        Compression(compression),
    )
