"""What every Store promises, on every implementation."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from fs.errors import AbsentError, CorruptError, RefusedError
from fs.format.hashes import Algorithm, Hash, Suffix
from fs.store.base import Store

STORED = b"some stored bytes"


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("suffix", Suffix)
def test_what_is_put_is_got(store: Store, algorithm: Algorithm, suffix: Suffix) -> None:
    name = Hash.of(STORED, algorithm)

    assert store.put(name, suffix, STORED)

    assert store.get(name, suffix, limit_bytes=100) == STORED
    with store.open(name, suffix) as stream:
        assert stream.read() == STORED
    assert store.has(name, suffix)
    assert store.has(name, suffix, stored_bytes=len(STORED))
    assert not store.has(name, suffix, stored_bytes=len(STORED) + 1)


def test_an_object_that_is_there_is_not_written_again(store: Store) -> None:
    name = Hash.of(STORED)

    assert [store.put(name, Suffix.PLAIN, STORED) for _ in range(3)] == [True, False, False]


def test_kinds_of_one_hash_are_different_objects(store: Store) -> None:
    store.put(Hash.of(STORED), Suffix.CHUNK, STORED)

    assert not store.has(Hash.of(STORED), Suffix.PLAIN)
    with pytest.raises(AbsentError):
        store.open(Hash.of(STORED), Suffix.PLAIN)


def test_what_is_absent_is_said_to_be(store: Store) -> None:
    with pytest.raises(AbsentError):
        store.get(Hash.of(b"x"), Suffix.PLAIN, limit_bytes=1)
    with pytest.raises(AbsentError):
        store.read_named(".cvmfspublished", limit_bytes=1)


def test_an_object_is_not_read_beyond_the_limit(store: Store) -> None:
    store.put(Hash.of(STORED), Suffix.PLAIN, STORED)

    with pytest.raises(RefusedError):
        store.get(Hash.of(STORED), Suffix.PLAIN, limit_bytes=len(STORED) - 1)
    assert store.get(Hash.of(STORED), Suffix.PLAIN, limit_bytes=len(STORED)) == STORED


def test_damage_is_noticed(store: Store) -> None:
    store.put(Hash.of(b"other bytes"), Suffix.PLAIN, STORED)

    with pytest.raises(CorruptError):
        store.get(Hash.of(b"other bytes"), Suffix.PLAIN, limit_bytes=100)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_taken(store: Store, kind: Callable[[bytes], bytes]) -> None:
    store.put(Hash.of(STORED), Suffix.PLAIN, kind(STORED))

    assert store.get(Hash.of(STORED), Suffix.PLAIN, limit_bytes=100) == STORED


def test_named_files_are_replaced(store: Store) -> None:
    store.replace_named(".cvmfspublished", b"one")
    store.replace_named(".cvmfspublished", b"two")
    store.settle()

    assert store.read_named(".cvmfspublished", limit_bytes=3) == b"two"
    with pytest.raises(RefusedError):
        store.read_named(".cvmfspublished", limit_bytes=2)


def test_many_threads_may_put_the_same(store: Store) -> None:
    contents = [b"%d" % (number % 20) for number in range(200)]
    start = threading.Barrier(4)

    def put(part: list[bytes]) -> None:
        start.wait(10)
        for content in part:
            store.put(Hash.of(content), Suffix.PLAIN, content)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, [contents[offset::4] for offset in range(4)]))

    assert all(store.get(Hash.of(content), Suffix.PLAIN, limit_bytes=10) == content for content in contents)
