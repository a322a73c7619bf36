"""Inode numbers stand for what can be seen of a file."""

import sqlite3
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from fs.client.catalogs import CatalogRef, Found
from fs.client.cli import parse_size
from fs.client.dormants import Dormant, Dormants
from fs.client.inodes import ROOT, Inode, InodeTable, directory_key, file_key
from fs.client.magic import _page
from fs.client.mountpoints import absolute
from fs.format.catalog import Catalog
from fs.format.catalog_rows import INSERT_ENTRY, SCHEMA, entry_row
from fs.format.entries import Entry
from fs.format.hashes import Hash
from fs.runtime.errors import UsageError

HOME = CatalogRef(Hash.of(b"root"))
FILE = Entry(name=b"f", mode=stat.S_IFREG | 0o644, uid=1, gid=2, size=3, mtime_ns=4, hash=Hash.of(b"abc"))
DIRECTORY = Entry(name=b"", mode=stat.S_IFDIR | 0o755, uid=0, gid=0, size=4096, mtime_ns=0)


def _catalog(**entries: Entry) -> Catalog:
    connection = sqlite3.connect(":memory:")
    connection.text_factory = bytes
    connection.executescript(SCHEMA + "INSERT INTO properties VALUES ('schema', '2.5');")
    for name, entry in entries.items():
        connection.execute(INSERT_ENTRY, entry_row(b"/" + name.encode(), entry))
    return Catalog(connection)


def _found(path: bytes, entry: Entry) -> Found:
    return Found(path, entry, HOME, HOME)


def _table() -> InodeTable:
    return InodeTable(_found(b"", DIRECTORY), 0)


@pytest.mark.parametrize(
    "change",
    [
        {"mode": stat.S_IFREG | 0o600},
        {"uid": 9},
        {"gid": 9},
        {"size": 9},
        {"mtime_ns": 9},
        {"hash": Hash.of(b"other")},
        {"linkcount": 9},
        {"xattrs": {b"user.a": b"b"}},
        {"target": b"x"},
        {"rdev": 9},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_makes_another_file(change: dict[str, object]) -> None:
    catalog = _catalog()

    assert file_key(catalog, b"/f", replace(FILE, **change)) != file_key(catalog, b"/f", FILE)  # type: ignore[arg-type]


def test_where_the_row_lies_does_not_matter() -> None:
    catalog = _catalog()

    assert file_key(catalog, b"/f", replace(FILE, rowid=77)) == file_key(catalog, b"/f", FILE)


def test_equal_files_at_different_paths_are_different() -> None:
    catalog = _catalog()

    assert file_key(catalog, b"/f", FILE) != file_key(catalog, b"/g", FILE)


def test_members_of_a_hard_link_group_are_one() -> None:
    linked = replace(FILE, link_group=5, linkcount=2)
    other = replace(FILE, link_group=6, linkcount=2)
    catalog = _catalog(a=linked, b=linked, c=other)

    assert file_key(catalog, b"/a", linked) == file_key(catalog, b"/b", linked)
    assert file_key(catalog, b"/a", linked) != file_key(catalog, b"/c", other)


def test_a_directory_is_its_path_and_the_root_is_the_root() -> None:
    table = _table()

    assert table.number(directory_key(b"")) == ROOT
    assert table.number(directory_key(b"/a")) == table.number(directory_key(b"/a"))
    assert table.number(directory_key(b"/a")) != table.number(directory_key(b"/b"))


def test_what_the_kernel_forgets_is_forgotten_and_nothing_before() -> None:
    table = _table()
    key = directory_key(b"/a")
    found = _found(b"/a", DIRECTORY)
    inode = table.remember(key, found, 0).inode
    table.remember(key, found, 0)
    table.forget(inode, 1)
    assert table.get(inode) is not None
    assert table.directory(b"/a") == inode
    table.forget(inode, 1)
    assert table.get(inode) is None
    assert table.directory(b"/a") is None
    assert table.number(key) == inode
    table.forget(ROOT, 10**6)
    assert table.get(ROOT) is not None


def test_two_things_never_share_a_number_while_both_are_known() -> None:
    table = _table()
    first, second = b"same-beg-1234567", b"same-beg-7654321"  # the number comes from the first eight bytes
    one = table.remember(first, _found(b"/a", FILE), 0).inode
    two = table.remember(second, _found(b"/b", FILE), 0).inode

    assert one != two
    assert table.number(first) == one
    assert table.number(second) == two


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4000M", 4_000_000_000),
        ("4G", 4_000_000_000),
        ("512MiB", 512 << 20),
        ("1.5k", 1500),
        ("7", 7),
        ("2 TB", 2 * 10**12),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "4X"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


def test_pages_of_long_values() -> None:
    value = bytes(100_000)

    assert _page(value, "0", is_for_people=False) == value[:40_000]
    assert _page(value, "2", is_for_people=False) == value[80_000:]
    assert _page(value, "3", is_for_people=False) is None
    assert _page(value, "x", is_for_people=False) is None
    assert _page(value, "?", is_for_people=False) == b"num_pages, 3"
    assert _page(None, "0", is_for_people=False) is None


def test_a_mount_point_is_made_absolute_without_touching_it() -> None:
    assert absolute("/proc/self/../none") == Path("/proc/none")


def _key(number: int) -> bytes:
    return directory_key(b"/%d" % number)


def _told(table: InodeTable, number: int) -> Inode:
    return table.remember(_key(number), _found(b"/%d" % number, FILE), 0).inode


def test_a_bounded_number_is_awake_and_the_others_are_known_as_well() -> None:
    table = InodeTable(_found(b"", DIRECTORY), 0, most_awake=2000)
    inodes = [_told(table, number) for number in range(10_000)]

    awake = [inode for inode in inodes if table.get(inode) is not None]
    assert len(awake) <= 2000
    assert len(table) == 10_001
    assert sorted([*awake, *(inode for inode, _ in table.all_dormant())]) == sorted(inodes)
    first = table.dormant(inodes[0])
    assert first is not None
    assert (first.key, first.paths, first.home, first.lookups) == (_key(0), (b"/0",), HOME, 1)
    assert table.get(ROOT) is not None


def test_who_sleeps_keeps_its_number_and_its_count() -> None:
    table = InodeTable(_found(b"", DIRECTORY), 0, most_awake=2000)
    inode = _told(table, 0)
    _told(table, 0)
    for number in range(1, 5000):
        _told(table, number)
    assert table.get(inode) is None
    assert table.number(_key(0)) == inode

    table.forget(inode, 1)
    assert table.dormant(inode) is not None
    assert _told(table, 0) == inode  # awake again
    table.forget(inode, 1)
    assert table.get(inode) is not None
    table.forget(inode, 1)
    assert (table.get(inode), table.dormant(inode), len(table)) == (None, None, 5000)


def test_who_is_recalled_is_awake_and_another_falls_asleep() -> None:
    table = InodeTable(_found(b"", DIRECTORY), 0, most_awake=2000)
    inodes = [_told(table, number) for number in range(5000)]
    for number in range(3000):
        table.wake(inodes[number], _found(b"/%d" % number, FILE))

    assert table.get(inodes[2999]) is not None
    assert len(table) == 5001
    for inode in inodes:
        table.forget(inode, 1)
    assert len(table) == 1


def test_an_open_file_whose_name_is_gone_can_be_found_again() -> None:
    table = InodeTable(_found(b"", DIRECTORY), 0, most_awake=2000)
    inode = _told(table, 0)
    node = table.get(inode)
    assert node is not None
    node.paths.clear()
    for number in range(1, 5000):
        _told(table, number)

    dormant = table.dormant(inode)
    assert dormant is not None
    assert dormant.paths == (b"/0",)


def test_a_late_forget_of_an_earlier_life_leaves_what_was_told_since() -> None:
    table = _table()
    inode = table.number(_key(0))
    dormants = Dormants()
    dormants.put([(inode, Dormant(_key(0), HOME, HOME, is_directory=False, paths=(b"/0",), lookups=4))])
    table.restore(dormants)

    assert _told(table, 0) == inode  # while the kernel's FORGET of the four is on its way
    table.forget(inode, 4)
    assert table.get(inode) is not None
    table.forget(inode, 1)
    assert table.get(inode) is None
