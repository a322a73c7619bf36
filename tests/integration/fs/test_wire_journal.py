"""The journal of what the kernel knows survives a kill at any byte."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from fs.client.catalogs import CatalogRef, Found
from fs.client.inodes import Dormant, Inode
from fs.client.wire_journal import Journal, Remembered, State, load
from fs.format.entries import Entry
from fs.format.hashes import Hash

ROOT = CatalogRef(Hash.of(b"root"))
NESTED = CatalogRef(Hash.of(b"nested"), b"/dir")


def _found(path: bytes, mode: int, inside: CatalogRef = ROOT) -> Found:
    entry = Entry(name=path.rpartition(b"/")[2], mode=mode, uid=0, gid=0, size=0, mtime_ns=0)
    return Found(path, entry, ROOT, inside)


def _inodes(remembered: Remembered) -> dict[int, Dormant]:
    return dict(remembered.dormants().items())


def _known(file: Path) -> tuple[Hash | None, dict[int, Dormant], list[bytes]]:
    remembered = load(file)
    return remembered.root, _inodes(remembered), list(remembered.absent)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "session.journal"


def _written(file: Path) -> Journal:
    journal = Journal(file)
    journal.start(State(ROOT.hash))
    journal.known(Inode(300), b"k" * 16, _found(b"/dir", 0o040755, NESTED))
    journal.known(Inode(301), b"l" * 16, _found(b"/a", 0o100644))
    journal.known(Inode(301), b"l" * 16, _found(b"/b", 0o100644))
    journal.known(Inode(302), b"m" * 16, _found(b"/gone", 0o100644))
    journal.absent(b"/none")
    journal.told(Inode(300))
    journal.told(Inode(300))
    journal.forgotten(Inode(300), 1)
    journal.told(Inode(302))
    journal.forgotten(Inode(302), 2)
    assert journal.has_news
    journal.flush()
    assert not journal.has_news
    return journal


def test_what_was_written_is_remembered(file: Path) -> None:
    _written(file).close()
    remembered = load(file)
    assert remembered.root == ROOT.hash
    assert _inodes(remembered) == {
        Inode(300): Dormant(b"k" * 16, ROOT, NESTED, is_directory=True, paths=(b"/dir",), lookups=2),
        Inode(301): Dormant(b"l" * 16, ROOT, ROOT, is_directory=False, paths=(b"/a", b"/b"), lookups=2),
    }
    assert list(remembered.absent) == [b"/none"]


def test_a_new_life_begins_with_what_is_left(file: Path) -> None:
    _written(file).close()
    before, size = _known(file), file.stat().st_size
    journal = Journal(file)
    journal.start(load(file).state())
    journal.close()
    assert _known(file) == before
    assert file.stat().st_size < size


def test_a_journal_cut_anywhere_is_a_beginning_of_it(file: Path) -> None:
    _written(file).close()
    content = file.read_bytes()
    sizes = set()
    for cut in range(len(content)):
        file.write_bytes(content[:cut])
        sizes.add(len(load(file).dormants()))
    assert sizes == {0, 1, 2, 3}


def test_a_spoilt_journal_is_read_up_to_the_damage(file: Path) -> None:
    _written(file).close()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    assert set(_inodes(load(file))) <= {300, 301}
    file.unlink()
    assert _known(file) == (None, {}, [])


def test_a_full_disk_ends_the_journal_and_nothing_else(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = _written(file)

    def full(_: int, __: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    journal.absent(b"/more")
    journal.flush()
    journal.absent(b"/again")
    journal.flush()
    assert not file.exists()


def test_a_journal_that_grew_long_begins_anew_with_what_is_known(file: Path) -> None:
    journal = Journal(file, long_bytes=2000)
    journal.start(State(ROOT.hash))
    known = Dormant(b"k" * 16, ROOT, NESTED, is_directory=True, paths=(b"/dir",), lookups=3)
    settled: list[State] = []
    journal.present = lambda: settled[-1] if settled else None

    for _ in range(200):
        journal.told(Inode(300))
        journal.flush()
    long = file.stat().st_size
    settled.append(State(ROOT.hash, [(300, known)], [b"/none"]))
    journal.told(Inode(300))
    journal.flush()

    assert long > 2000 > file.stat().st_size
    assert _known(file) == (ROOT.hash, {300: known}, [b"/none"])
    journal.told(Inode(300))
    journal.flush()
    assert _known(file)[1][300].lookups == 4


def test_it_does_not_begin_anew_between_two_parts_of_one_record(file: Path) -> None:
    journal = Journal(file, long_bytes=2000)
    journal.start(State(ROOT.hash))
    told = [Dormant(b"k" * 16, ROOT, NESTED, is_directory=True, paths=(b"/%d" % number,)) for number in range(3000)]
    journal.present = lambda: State(ROOT.hash, list(enumerate(told[: number + 1], 300)))

    for number, one in enumerate(told):
        inside = CatalogRef(Hash.of(b"%d" % number), one.paths[0])  # a catalog that was not named before
        told[number] = replace(one, inside=inside)
        journal.known(Inode(300 + number), one.key, _found(one.paths[0], 0o040755, inside))
        if number % 1000 == 999:
            journal.flush()

    assert _known(file)[1] == {300 + number: one for number, one in enumerate(told)}


def test_a_journal_of_very_many_inodes_is_remembered_whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(file)
    journal.start(State(ROOT.hash))
    for number in range(500):
        journal.known(Inode(300 + number), b"k" * 16, _found(b"/%d" % number, 0o100644))
    for number in range(500):
        journal.known(Inode(300 + number), b"k" * 16, _found(b"/other/%d" % number, 0o100644))
    for number in range(0, 500, 2):
        journal.forgotten(Inode(300 + number), 2)
    journal.flush()
    journal.close()

    monkeypatch.setattr("fs.client.wire_journal._RECENT", 7)
    known = _known(file)[1]

    assert sorted(known) == list(range(301, 800, 2))
    assert all(one.lookups == 2 and one.paths == (b"/%d" % (inode - 300), b"/other/%d" % (inode - 300))
               for inode, one in known.items())  # fmt: skip
