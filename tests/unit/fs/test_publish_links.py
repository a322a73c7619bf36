"""Names of hard links over several directories and catalogs go one by one; the others always know how many they are."""

import random
import stat
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from fs.format.entries import NestedReference
from fs.format.paths import ROOT
from fs.format.tree import Node, walk
from fs.publish.catalogs import CatalogOptions, publish_tree
from fs.publish.check import CheckOptions, check_tree
from fs.publish.link_groups import CLOSED
from fs.publish.operations import Graft, MakeDirectory, Operation, PutFile, Remove
from fs.publish.transaction import Base, Transaction, apply_all
from fs.publish.view import CatalogCache, View
from tests.unit.fs.test_publish_catalogs import NOW_NS, PATH, Bench, directory

ONE, FEW, MANY = CatalogOptions(), CatalogOptions(most_rows=6, least_rows=2), CatalogOptions(most_rows=1, least_rows=1)


class Line(Bench):
    """A repository that goes on, revision by revision; each is checked."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = CatalogCache(self.store)
        self.fetched = 0

    def apply(self, *operations: Operation) -> View:
        transaction = Transaction(self.base, fetch=self._fetch, now_ns=NOW_NS, empty=self.empty)
        self.prepare(transaction, operations)
        revision = self.base.revision + 1
        root = transaction.seal(self.keep, revision=revision, last_modified_unix_s=revision, ttl_s=240)
        self.base = Base(root, revision)
        reference = NestedReference(ROOT, root.hash, root.size)
        verdict = check_tree(self.store, reference, CheckOptions(now=datetime.now(UTC), threads=1))
        assert [finding.message for finding in verdict.findings] == []
        return View(self.store, root.hash, revision=revision, cache=self.cache)

    def prepare(self, transaction: Transaction, operations: tuple[Operation, ...]) -> None:
        apply_all(transaction, operations)

    def _fetch(self, name: object) -> bytes:
        self.fetched += 1
        return self.cache.fetch(name)  # type: ignore[arg-type]

    def graft(self, tree: Node, options: CatalogOptions, path: bytes = PATH) -> View:
        return self.apply(Graft(path, publish_tree(path, tree, self.store, options)))


def counts(view: View, paths: Sequence[bytes]) -> list[int]:
    found = [view.lookup(PATH + path) for path in paths]
    return [0 if entry is None else entry.linkcount for entry in found]


def linked(line: Line) -> Node:
    """/a/1, /b/2, /b/c/3 and /d/4 are one file."""
    shared = line.file(b"shared")
    deep = directory(**{"3": shared, "x": line.file(b"x"), "y": line.file(b"y")})
    return directory(
        a=directory(**{"1": shared, "p": line.file(b"p")}),
        b=directory(**{"2": shared, "c": deep, "q": line.file(b"q")}),
        d=directory(**{"4": shared, "r": line.file(b"r")}),
    )


NAMES = [b"/a/1", b"/b/2", b"/b/c/3", b"/d/4"]


@pytest.mark.parametrize("options", [ONE, FEW, MANY], ids=["one", "few", "many"])
@pytest.mark.parametrize(
    ("gone", "left"),
    [
        (b"/a/1", [0, 3, 3, 3]),
        (b"/b/c/3", [3, 3, 0, 3]),
        (b"/b/c", [3, 3, 0, 3]),
        (b"/b", [2, 0, 0, 2]),
        (b"/a/p", [4, 4, 4, 4]),
    ],
)
def test_names_that_go_are_missed_in_all_catalogs(options: CatalogOptions, gone: bytes, left: list[int]) -> None:
    line = Line()
    line.graft(linked(line), options)

    view = line.apply(Remove(PATH + gone))

    assert counts(view, NAMES) == left


@pytest.mark.parametrize("options", [ONE, MANY], ids=["one", "many"])
def test_one_name_alone_is_no_link(options: CatalogOptions) -> None:
    line = Line()
    line.graft(linked(line), options)

    view = line.apply(Remove(PATH + b"/b"), Remove(PATH + b"/d"))

    entry = view.lookup(PATH + b"/a/1")
    assert entry is not None
    assert (entry.linkcount, entry.link_group) == (1, 0)


def test_a_name_that_is_replaced_went() -> None:
    line = Line()
    line.graft(linked(line), MANY)

    view = line.apply(PutFile(PATH + b"/b/c/3", line.ingester.add_bytes(b"another")))

    assert counts(view, NAMES) == [3, 3, 1, 3]


def test_a_tree_that_is_grafted_inside_takes_nothing_with_it() -> None:
    line = Line()
    line.graft(linked(line), MANY)
    line.graft(linked(line), MANY, PATH + b"/inner")

    view = line.apply(Remove(PATH + b"/inner/b"), Remove(PATH + b"/d/4"))

    assert counts(view, NAMES) == [3, 3, 3, 0]
    assert counts(view, [b"/inner" + name for name in NAMES]) == [2, 0, 0, 2]


def test_directories_that_become_catalogs_later_do_not_hide_names() -> None:
    line = Line()
    line.graft(linked(line), ONE)
    line.apply(MakeDirectory(PATH + b"/b", nested=True), MakeDirectory(PATH + b"/b/c", nested=True))

    view = line.apply(Remove(PATH + b"/b/c"))

    assert counts(view, NAMES) == [3, 3, 0, 3]


def test_removing_a_whole_tree_opens_none_of_its_catalogs_but_the_top_one() -> None:
    line = Line()
    line.graft(linked(line), MANY)
    line.fetched = 0

    line.apply(Remove(PATH))

    assert line.fetched == 2  # the root's, and the tree's


def test_catalogs_of_earlier_versions_do_not_say_where_links_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fs.publish.catalogs.CLOSED", "something_else")
    line = Line()
    line.graft(linked(line), MANY)
    line.graft(linked(line), MANY, b"/.flat/ab/other")

    view = line.apply(Remove(PATH + b"/b"))

    assert counts(view, NAMES) == [2, 0, 0, 2]
    assert CLOSED not in view._catalog(next(r for r in view._root().nested() if r.path == PATH)).properties
    assert view.lookup(line.apply(Remove(PATH)).root_catalog.digest) is None  # the other tree stays as it is


@pytest.mark.parametrize("seed", range(12))
def test_link_counts_agree_with_the_names_that_are_there(seed: int) -> None:
    chance = random.Random(seed)
    line = Line()
    files = [line.file(b"%d" % number) for number in range(4)]
    root = directory()
    directories = [root]
    for number in range(12):
        child = directory(own=line.file(b"own"))
        chance.choice(directories).children[b"d%d" % number] = child
        directories.append(child)
    for number in range(30):
        chance.choice(directories).children[b"f%d" % number] = chance.choice(files)
    view = line.graft(root, chance.choice([ONE, FEW, MANY]))

    while paths := [path for path, _ in walk(root, PATH) if path != PATH]:
        for path in chance.sample(paths, min(len(paths), 2)):
            names = path[len(PATH) + 1 :].split(b"/")
            above = root
            for name in names[:-1]:
                above = above.children.get(name, directory())
            above.children.pop(names[-1], None)
            view = line.apply(Remove(path))
        there = Counter(id(node) for _, node in walk(root, PATH) if stat.S_ISREG(node.mode))
        for path, node in walk(root, PATH):
            entry = view.lookup(path)
            assert entry is not None
            if stat.S_ISREG(node.mode):
                assert entry.linkcount == there[id(node)], path
