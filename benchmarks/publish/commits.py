"""Commit latency: grafts into a repository that holds very many images already.

An image is what the converter makes of one, without its layers: a flat tree below ``/.flat/xx``, three files below
``/.metadata`` and a public link. Those that are there before the clock starts share one real catalog, which no commit
opens; those that are timed have been prepared as always.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.publish.places import Moment, fresh
from fs.format.hashes import Hash
from fs.format.tree import Node
from fs.publish.catalogs import Subtree
from fs.publish.operations import Graft, MakeDirectory, Operation, PutFile, PutSymlink
from fs.publish.repository import Repository

GRAFTS = (1, 10, 100)
_AT_ONCE = 5000
_NESTED = (b"/.flat", b"/.metadata")


def measure_commits(folder: Path, runs: int, houses: Sequence[int]) -> list[dict[str, object]]:
    """One line a number of grafts and of images that are there."""
    lines: list[dict[str, object]] = []
    repository = fresh(folder)
    repository.commit([MakeDirectory(path, nested=True) for path in _NESTED])
    repository.commit([MakeDirectory(b"/.flat/%02x" % number, nested=True) for number in range(256)])
    images = Images(repository)
    for wanted in houses:
        while images.there < wanted:
            repository.commit(images.known(min(wanted - images.there, _AT_ONCE)))
        for count in GRAFTS:
            took = []
            for _ in range(runs):
                operations = images.prepared(count)
                before = Moment.now()
                repository.commit(operations)
                took.append(Moment.now().since(before))
            lines.append(
                {
                    "images": wanted,
                    "grafts": count,
                    "seconds": round(statistics.median(each.wall_s for each in took), 4),
                    "slowest_s": round(max(each.wall_s for each in took), 4),
                    "cpu_s": round(statistics.median(each.cpu_s for each in took), 4),
                }
            )
    return lines


class Images:
    """Makes images, numbered from 0 on."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._content = repository.ingester().add_bytes(b"x")
        self.there = 0
        self._first = self._prepare(b"/.flat/00/first")

    def known(self, count: int) -> list[Operation]:
        """The operations of *count* further images with the tree of the first."""
        done: list[Operation] = []
        for path in self._paths(count):
            root = replace(self._first.root, name=path.rpartition(b"/")[2])
            done += self._operations(path, replace(self._first, path=path, root=root))
        return done

    def prepared(self, count: int) -> list[Operation]:
        """The operations of *count* further images, each with a tree of its own."""
        return [each for path in self._paths(count) for each in self._operations(path, self._prepare(path))]

    def _paths(self, count: int) -> list[bytes]:
        numbers = range(self.there, self.there + count)
        self.there += count
        names = [Hash.of(b"%d" % number).digest.hex().encode() for number in numbers]
        return [b"/.flat/" + name[:2] + b"/" + name for name in names]

    def _prepare(self, path: bytes) -> Subtree:
        tree = Node(mode=0o040755, children={b"file": Node(mode=0o100644, content=self._content)})
        return self._repository.prepare_subtree(path, tree)

    def _operations(self, path: bytes, subtree: Subtree) -> list[Operation]:
        name = path.rpartition(b"/")[2]
        public = b"/registry.example.org/project%02x/image%02x:%s" % (name[0] % 64, int(name[2:4], 16), name[:16])
        records = (b"manifest.json", b"history.json", b"source.json")
        return [
            Graft(path, subtree),
            *(PutFile(b"/.metadata" + public + b"/" + record, self._content) for record in records),
            PutSymlink(public, b"../.." + path),
        ]
