"""Catalogs that commits let grow are split along directories; nothing else changes by it."""

from fs.format.entries import NestedReference
from fs.format.paths import ROOT
from fs.publish.catalogs import CatalogOptions
from fs.publish.diff import differences
from fs.publish.operations import MakeDirectory, Operation, PutFile, PutSymlink
from fs.publish.transaction import Transaction, apply_all
from fs.publish.view import View
from tests.unit.fs.test_publish_catalogs import PATH, directory
from tests.unit.fs.test_publish_links import MANY, Line, counts, linked

MOST, LEAST = 60, 8


class Splitting(Line):
    """A repository whose catalogs are split above 60 rows."""

    def prepare(self, transaction: Transaction, operations: tuple[Operation, ...]) -> None:
        apply_all(transaction, operations)
        transaction.split(MOST, LEAST)


def images(line: Splitting, first: int, count: int) -> list[Operation]:
    content = line.ingester.add_bytes(b"x")
    done: list[Operation] = []
    for number in range(first, first + count):
        name = b"/host/project%d/image%d" % (number % 7, number % 3)
        done += [PutSymlink(name + b":%d" % number, b"x"), PutFile(b"/meta" + name + b"/%d" % number, content)]
    return done


def rows(line: Splitting, view: View) -> dict[bytes, int]:
    """How many entries each catalog has."""
    found: dict[bytes, int] = {}
    pending = [NestedReference(ROOT, view.root_catalog, 0)]
    while pending:
        catalog = view._catalog(pending.pop())
        own = catalog.counters().own
        found[catalog.mountpoint] = sum(own[kind] for kind in ("regular", "symlink", "special", "dir"))
        pending += catalog.nested()
    return found


def test_catalogs_stay_small_while_images_come() -> None:
    line = Splitting()
    for first in range(0, 600, 20):
        view = line.apply(*images(line, first, 20))

    sizes = rows(line, view)
    assert max(sizes.values()) <= MOST + 40, "one commit's growth is tolerated"
    assert len(sizes) > 10
    for number in range(600):
        name = b"/host/project%d/image%d:%d" % (number % 7, number % 3, number)
        assert view.readlink(name) == b"x"
    assert len(view.list(b"/host/project3")) == 86


def test_nothing_but_the_catalogs_changes() -> None:
    whole, split = Line(), Splitting()
    for line in (whole, split):
        view = line.apply(*images(line, 0, 300))  # type: ignore[arg-type]
        if line is split:
            assert len(rows(split, view)) > 3
            split_root = view.root_catalog
    for name, data in whole.store._objects.items():
        split.store._objects.setdefault(name, data)

    found = list(differences(split.store, whole.base.catalog.hash, split_root))

    assert found == []


def test_what_cannot_be_divided_is_left_as_it_is() -> None:
    line = Splitting()
    content = line.ingester.add_bytes(b"x")

    view = line.apply(*(PutFile(b"/flat/%d" % number, content) for number in range(3 * MOST)))

    assert set(rows(line, view)) == {b"", b"/flat"}


def test_directories_with_catalogs_below_and_links_are_divided_too() -> None:
    line = Splitting()
    line.graft(linked(line), MANY)
    content = line.ingester.add_bytes(b"x")
    line.apply(MakeDirectory(b"/.flat/ab/inner/deep", nested=True))

    view = line.apply(*(PutFile(b"/.flat/ab/d%d/%d" % (number % 9, number), content) for number in range(3 * MOST)))

    assert len(rows(line, view)) > 8
    assert counts(view, [b"/a/1", b"/b/2"]) == [4, 4]


def test_a_directory_with_a_hidden_one_shows_the_same_link_count_afterwards() -> None:
    line = Line()
    tree = directory(sub=directory(seen=directory(), hidden=directory()))
    tree.children[b"sub"].children[b"hidden"].is_hidden = True
    before = line.graft(tree, MANY).lookup(PATH + b"/sub")
    line.graft(tree, CatalogOptions())

    view = line.apply(MakeDirectory(PATH + b"/sub", nested=True))

    assert before is not None
    assert before.linkcount == 3
    assert view.lookup(PATH + b"/sub") is not None
    assert view.lookup(PATH + b"/sub").linkcount == 3  # type: ignore[union-attr]
