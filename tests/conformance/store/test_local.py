"""What only a store in a directory has: times of files, staged files, a lock that a killed process lets go."""

import os
import time
from pathlib import Path

import pytest

from fs.errors import OvertakenError
from fs.format.hashes import Hash, Suffix
from fs.store.base import REFRESH_AFTER_S
from fs.store.local import LocalStore

NAME = Hash.of(b"abc")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    made = LocalStore(tmp_path, durable=False)
    made.prepare()
    made.put(NAME, Suffix.PLAIN, b"abc")
    return made


def age(store: LocalStore, seconds: float) -> Path:
    path = store.root / NAME.object_path()
    os.utime(path, (time.time() - seconds,) * 2)
    return path


@pytest.mark.parametrize("claim", ["claim", "put"])
def test_an_old_object_that_is_counted_on_is_young_again(store: LocalStore, claim: str) -> None:
    path = age(store, 2 * REFRESH_AFTER_S)

    if claim == "claim":
        assert store.claim(NAME, Suffix.PLAIN, stored_bytes=3)
    else:
        assert not store.put(NAME, Suffix.PLAIN, b"abc")

    assert path.stat().st_mtime > time.time() - 60
    store.settle()


def test_a_young_object_is_left_as_it_is(store: LocalStore) -> None:
    path = age(store, REFRESH_AFTER_S / 2)
    before = path.stat().st_mtime

    store.claim(NAME, Suffix.PLAIN)

    assert path.stat().st_mtime == before


def test_an_object_that_is_collected_while_it_is_claimed_has_to_be_put_again(store: LocalStore) -> None:
    path = age(store, 2 * REFRESH_AFTER_S)
    store.claim(NAME, Suffix.PLAIN)
    path.unlink()

    for _ in range(2):  # trying the commit again is not enough
        with pytest.raises(OvertakenError):
            store.settle()
    store.put(NAME, Suffix.PLAIN, b"abc")
    store.settle()


def test_staged_files_of_killed_writers_are_removed_when_they_are_old(store: LocalStore) -> None:
    old, young = store.root / "data/txn/old", store.root / "data/txn/young"
    old.write_bytes(b"x")
    young.write_bytes(b"y")
    os.utime(old, (0, 0))

    assert store.remove_leftovers(time.time() - 3600) == 1

    assert not old.exists()
    assert young.exists()


def test_only_objects_are_listed(store: LocalStore) -> None:
    for name in ("data/ab/notes.txt", "data/ab/" + "0" * 38 + "Z", "data/txn/" + "0" * 38, ".cvmfspublished"):
        (store.root / name).write_bytes(b"x")

    assert [each.name for each in store.objects()] == [NAME]


def test_objects_are_readable_for_the_web_server_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        made = LocalStore(tmp_path / "masked", durable=False)
        made.prepare()
        made.put(NAME, Suffix.PLAIN, b"abc")
    finally:
        os.umask(before)

    assert (made.root / NAME.object_path()).stat().st_mode & 0o777 == 0o644
