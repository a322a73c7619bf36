"""Trees that become catalogs are read back entry for entry, and the check finds nothing wrong with them."""

import stat
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs.errors import RefusedError
from fs.format.chunking import ChunkSizes
from fs.format.entries import DIRECTORY_SIZE, Entry, NestedReference
from fs.format.hashes import Algorithm
from fs.format.paths import ROOT
from fs.format.tree import Node, walk
from fs.publish.catalogs import MARKER, CatalogOptions, StoredCatalog, Subtree, publish_tree, store_catalog
from fs.publish.check import CheckOptions, check_tree
from fs.publish.draft import Draft
from fs.publish.ingest import Ingester, store_empty
from fs.publish.operations import Graft, MakeDirectory, Remove
from fs.publish.packing import Codec, DedupIndex, Packer
from fs.publish.transaction import Base, Transaction
from fs.publish.view import CatalogCache, View
from fs.store.memory import MemoryStore

PATH = b"/.flat/ab/tree"
NOW_NS = 1_700_000_000_123_456_789
CODEC = Codec(chunk_sizes=ChunkSizes(64, 128, 256))
FEW_ROWS = CatalogOptions(most_rows=6, least_rows=2)


def directory(**children: Node) -> Node:
    return Node(mode=stat.S_IFDIR | 0o755, children={name.encode(): node for name, node in children.items()})


class Bench:
    """A repository in memory into which trees are grafted."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.ingester = Ingester(self.store, Packer(self.store, DedupIndex(None), CODEC))
        empty = store_empty(self.store, Algorithm.SHA1)
        root = Entry(name=b"", mode=stat.S_IFDIR | 0o755, uid=0, gid=0, size=DIRECTORY_SIZE, mtime_ns=0, linkcount=2)
        database = Draft.empty(ROOT, root, None, empty).finish(
            revision=1, last_modified_unix_s=1, previous=None, ttl_s=240
        )
        self.base = Base(self.keep(database), 1)
        self.empty = empty

    def keep(self, database: bytes) -> StoredCatalog:
        return store_catalog(database, self.store, algorithm=Algorithm.SHA1, level=1)

    def file(self, data: bytes = b"content", **attributes: int) -> Node:
        mode = stat.S_IFREG | attributes.pop("mode", 0o644)
        return Node(mode=mode, content=self.ingester.add_bytes(data), **attributes)

    def publish(self, tree: Node, options: CatalogOptions | None = None) -> tuple[Subtree, View]:
        subtree = publish_tree(PATH, tree, self.store, options)
        cache = CatalogCache(self.store)
        transaction = Transaction(self.base, fetch=cache.fetch, now_ns=NOW_NS, empty=self.empty)
        transaction.apply(Graft(PATH, subtree))
        root = transaction.seal(self.keep, revision=2, last_modified_unix_s=2, ttl_s=240)
        verdict = check_tree(
            self.store, NestedReference(ROOT, root.hash, root.size), CheckOptions(now=datetime.now(UTC), threads=1)
        )
        assert verdict.findings == []
        return subtree, View(self.store, root.hash, revision=2, cache=cache)


def assert_reads_back(bench: Bench, view: View, tree: Node) -> None:
    """Every entry of *tree*, and no other, with everything that it says."""
    names: dict[int, int] = {}
    for _, node in walk(tree):
        names[id(node)] = names.get(id(node), 0) + 1
    groups: dict[int, int] = {}
    for path, node in walk(tree, PATH):
        entry = view.lookup(path)
        assert entry is not None, path
        assert (entry.mode, entry.uid, entry.gid, entry.mtime_ns) == (node.mode, node.uid, node.gid, node.mtime_ns)
        assert dict(entry.xattrs) == node.xattrs
        if node.is_directory:
            assert [found.name for found in view.list(path)] == sorted(node.children)
            continue
        assert entry.linkcount == names[id(node)]
        if entry.linkcount > 1 and entry.link_group < 0:  # over several directories: one number everywhere
            assert groups.setdefault(id(node), entry.link_group) == entry.link_group
        if stat.S_ISREG(node.mode):
            assert node.content is not None
            assert view.content(path) == node.content
        elif stat.S_ISLNK(node.mode):
            assert view.readlink(path) == node.target
        else:
            assert entry.rdev == node.rdev
    assert len(set(groups.values())) == len(groups)


def test_what_is_hidden_is_found_but_neither_listed_nor_counted() -> None:
    bench = Bench()
    shown, hidden, nested = directory(), directory(inside=directory()), directory(one=directory(), two=directory())
    hidden.is_hidden = nested.children[b"two"].is_hidden = True
    nested.children[MARKER] = bench.file(b"")

    _, view = bench.publish(directory(shown=shown, hidden=hidden, nested=nested))

    assert [entry.name for entry in view.list(PATH)] == [b"nested", b"shown"]
    assert view.lookup(PATH + b"/hidden/inside") is not None
    counts = {path: entry.linkcount for path in (b"", b"/hidden", b"/nested") if (entry := view.lookup(PATH + path))}
    assert counts == {b"": 4, b"/hidden": 3, b"/nested": 3}


def test_counts_that_are_shown_follow_what_comes_and_goes() -> None:
    bench = Bench()
    hidden = directory()
    hidden.is_hidden = True
    subtree = publish_tree(PATH, directory(shown=directory(), hidden=hidden), bench.store)
    cache = CatalogCache(bench.store)
    transaction = Transaction(bench.base, fetch=cache.fetch, now_ns=NOW_NS, empty=bench.empty)
    for operation in (Graft(PATH, subtree), MakeDirectory(PATH + b"/more"), Remove(PATH + b"/shown")):
        transaction.apply(operation)
    transaction.apply(MakeDirectory(PATH + b"/most"))
    root = transaction.seal(bench.keep, revision=2, last_modified_unix_s=2, ttl_s=240)

    verdict = check_tree(bench.store, NestedReference(ROOT, root.hash, root.size), CheckOptions(now=datetime.now(UTC)))
    assert verdict.findings == []
    entry = View(bench.store, root.hash, revision=2, cache=cache).lookup(PATH)
    assert entry is not None
    assert entry.linkcount == 4


BENCH = Bench()
NAMES = st.one_of(
    st.sampled_from([b"a", b"b", b"c", b"\xff", b"two words", b".cvmfscatalog"]),
    st.binary(min_size=1, max_size=6).filter(lambda name: b"/" not in name and b"\0" not in name and name != b"."),
).filter(lambda name: name not in (b".", b".."))
TIMES = st.integers(-(10**18), 4 * 10**18)
IDS = st.sampled_from([0, 1, 1000, 2**32 - 2])
XATTRS = st.dictionaries(st.sampled_from([b"user.a", b"security.capability"]), st.binary(max_size=255), max_size=2)


@st.composite
def leaves(draw: st.DrawFn) -> Node:
    kind = draw(st.sampled_from(["file", "file", "file", "link", "device", "pipe"]))
    facts = {"uid": draw(IDS), "gid": draw(IDS), "mtime_ns": draw(TIMES), "xattrs": draw(XATTRS)}
    mode = draw(st.integers(0, 0o7777))
    if kind == "file":
        data = draw(st.sampled_from([b"", b"x", b"y" * 64, b"z" * 65, bytes(1000), b"w" * 3000]))
        return Node(mode=stat.S_IFREG | mode, content=BENCH.ingester.add_bytes(data), **facts)
    if kind == "link":
        return Node(mode=stat.S_IFLNK | 0o777, target=draw(st.sampled_from([b"a", b"../\xff", b"$(X)y$("])), **facts)
    if kind == "device":
        return Node(mode=stat.S_IFCHR | mode, rdev=draw(st.sampled_from([0, 259, 2**33 + 1])), **facts)
    return Node(mode=stat.S_IFIFO | mode, **facts)


@st.composite
def trees(draw: st.DrawFn) -> Node:
    """A tree in which some nodes have several names, in one directory or in several."""
    pool = draw(st.lists(leaves(), min_size=1, max_size=6))
    root = Node(mode=stat.S_IFDIR | draw(st.integers(0, 0o7777)), mtime_ns=draw(TIMES), xattrs=draw(XATTRS))
    directories = [root]
    for name in draw(st.lists(NAMES.filter(lambda name: name != b".cvmfscatalog"), max_size=8)):
        above = draw(st.sampled_from(directories))
        if name not in above.children:
            above.children[name] = Node(mode=stat.S_IFDIR | 0o755, uid=draw(IDS), mtime_ns=draw(TIMES))
            directories.append(above.children[name])
    for name in draw(st.lists(NAMES, max_size=14)):
        above = draw(st.sampled_from(directories))
        node = draw(st.sampled_from(pool))
        if name == b".cvmfscatalog" and not stat.S_ISREG(node.mode):
            continue
        above.children.setdefault(name, node)
    return root


@given(trees(), st.sampled_from([CatalogOptions(), FEW_ROWS, CatalogOptions(most_rows=1, least_rows=1)]))
@settings(max_examples=120, deadline=None)
def test_a_tree_is_read_back_entry_for_entry(tree: Node, options: CatalogOptions) -> None:
    _, view = BENCH.publish(tree, options)

    assert_reads_back(BENCH, view, tree)


def test_a_large_tree_is_divided_along_its_directories() -> None:
    bench = Bench()
    tree = directory(
        **{
            f"d{outer}": directory(**{f"f{inner}": bench.file(b"%d" % inner) for inner in range(5)})
            for outer in range(6)
        }
    )

    subtree, view = bench.publish(tree, FEW_ROWS)
    whole, _ = bench.publish(tree)

    assert subtree.catalogs == 7
    assert whole.catalogs == 1
    assert subtree.counters["regular"] == 30 + 7  # with a marker in each catalog
    assert whole.counters["regular"] == 30 + 1
    assert_reads_back(bench, view, tree)


def test_the_same_tree_gives_the_same_catalogs() -> None:
    def tree(bench: Bench) -> Node:
        return directory(a=directory(b=bench.file(b"1"), c=bench.file(b"2")), d=bench.file(b"3"))

    one, two = Bench(), Bench()

    assert one.publish(tree(one), FEW_ROWS)[0].catalog == two.publish(tree(two), FEW_ROWS)[0].catalog


def test_the_marker_is_not_in_the_listing() -> None:
    bench = Bench()

    _, view = bench.publish(directory(a=bench.file()))

    assert [entry.name for entry in view.list(PATH)] == [b"a"]
    assert view.lookup(PATH + b"/.cvmfscatalog") is not None


def test_a_marker_of_the_image_begins_a_catalog_and_is_seen() -> None:
    bench = Bench()
    tree = directory(sub=directory())
    tree.children[b"sub"].children[b".cvmfscatalog"] = bench.file(b"mine")

    subtree, view = bench.publish(tree)

    assert subtree.catalogs == 2
    assert [entry.name for entry in view.list(PATH + b"/sub")] == [b".cvmfscatalog"]
    assert view.read(PATH + b"/sub/.cvmfscatalog", 10) == b"mine"


def test_links_in_one_directory_are_a_group_and_over_several_are_in_the_extra_table() -> None:
    bench = Bench()
    near, far = bench.file(b"near"), bench.file(b"far")
    tree = directory(a=near, b=near, c=far, d=directory(e=far))

    _, view = bench.publish(tree)

    found = {name: view.lookup(PATH + b"/" + name) for name in (b"a", b"b", b"c", b"d/e")}
    groups = {name: entry.link_group for name, entry in found.items() if entry is not None}
    assert groups[b"a"] == groups[b"b"] > 0
    assert groups[b"c"] == groups[b"d/e"] < 0
    assert {entry.linkcount for entry in found.values() if entry is not None} == {2}


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b", b"n" * 256])
def test_names_that_no_file_can_have_are_refused(name: bytes) -> None:
    tree = directory()
    tree.children[name] = BENCH.file()

    with pytest.raises(RefusedError):
        publish_tree(PATH, tree, BENCH.store)


def test_a_directory_with_two_names_is_refused() -> None:
    tree = directory(a=directory())
    tree.children[b"b"] = tree.children[b"a"]
    loop = directory()
    loop.children[b"self"] = loop

    for each in (tree, loop):
        with pytest.raises(RefusedError, match="second name"):
            publish_tree(PATH, each, BENCH.store)


@pytest.mark.parametrize("tree", [Node(mode=stat.S_IFREG | 0o644), directory(a=Node(mode=stat.S_IFREG | 0o644))])
def test_what_is_no_tree_of_contents_is_refused(tree: Node) -> None:
    with pytest.raises(RefusedError):
        publish_tree(PATH, tree, BENCH.store)
