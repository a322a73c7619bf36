"""What stores promise to whoever replaces manifests and removes garbage, on every implementation."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from fs.errors import AbsentError, OvertakenError
from fs.format.hashes import Algorithm, Hash, Suffix
from fs.store.base import TendedStore

NAME = ".cvmfspublished"
CONTENTS = {
    (Hash.of(b"%d" % number, algorithm), suffix): b"%d" % number
    for number, (algorithm, suffix) in enumerate((a, s) for a in Algorithm for s in Suffix)
}


def test_a_file_is_swapped_in_if_it_is_as_expected(store: TendedStore) -> None:
    store.swap_named(NAME, b"one", expected=None)
    store.swap_named(NAME, b"two, which is longer", expected=b"one")
    store.swap_named(NAME, b"3", expected=b"two, which is longer")

    assert store.read_named(NAME, limit_bytes=10) == b"3"


@pytest.mark.parametrize("expected", [None, b"", b"older", b"a longer thing that never was there"])
def test_a_file_is_not_swapped_in_if_it_is_not(store: TendedStore, expected: bytes | None) -> None:
    store.replace_named(NAME, b"newer")

    with pytest.raises(OvertakenError):
        store.swap_named(NAME, b"mine", expected=expected)
    assert store.read_named(NAME, limit_bytes=10) == b"newer"


def test_what_is_not_there_cannot_be_replaced(store: TendedStore) -> None:
    with pytest.raises(OvertakenError):
        store.swap_named(NAME, b"mine", expected=b"was here")
    with pytest.raises(AbsentError):
        store.read_named(NAME, limit_bytes=10)


def test_of_many_writers_one_wins_each_round(make_store: Callable[[], TendedStore]) -> None:
    stores = [make_store() for _ in range(4)]
    start = threading.Barrier(4)
    value = b"0"
    stores[0].replace_named(NAME, value)

    def swap(number: int, expected: bytes) -> bytes | None:
        content = expected + b"%d" % number
        start.wait(10)
        time.sleep(number * 0.02)  # the test server compares and writes in two steps; real ones do it in one
        try:
            stores[number].swap_named(NAME, content, expected=expected)
        except OvertakenError:
            return None
        return content

    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            expected = value
            winners = [w for w in pool.map(lambda number: swap(number, expected), range(4)) if w is not None]  # noqa: B023
            value = stores[0].read_named(NAME, limit_bytes=100)
            assert winners == [value]


def test_a_file_can_be_removed_again_and_again(store: TendedStore) -> None:
    store.replace_named(NAME, b"one")

    store.remove_named(NAME)
    store.remove_named(NAME)

    with pytest.raises(AbsentError):
        store.read_named(NAME, limit_bytes=10)


def test_every_object_is_listed_and_nothing_else(make_store: Callable[[], TendedStore]) -> None:
    store = make_store()
    store.replace_named(NAME, b"no object")
    for (name, suffix), content in CONTENTS.items():
        store.put(name, suffix, content)

    found = {(each.name, each.suffix): each for each in make_store().objects()}

    assert found.keys() == CONTENTS.keys()
    assert all(found[key].size_bytes == len(content) for key, content in CONTENTS.items())
    assert all(abs(each.modified_unix_s - time.time()) < 60 for each in found.values())
    assert [each and each.name for each in store.survey(list(found.values()))] == [name for name, _ in found]


def test_what_is_removed_is_gone(make_store: Callable[[], TendedStore]) -> None:
    store = make_store()
    for (name, suffix), content in CONTENTS.items():
        store.put(name, suffix, content)
    victims = [each for each in store.objects() if each.suffix is Suffix.CHUNK]

    store.remove(victims)
    store.remove(victims)  # somebody else may have been quicker

    assert {each.suffix for each in make_store().objects()} == set(Suffix) - {Suffix.CHUNK}
    assert not any(store.has(each.name, each.suffix) or store.claim(each.name, each.suffix) for each in victims)
    assert store.survey(victims) == [None] * len(victims)
    assert store.put(victims[0].name, victims[0].suffix, CONTENTS[victims[0].name, victims[0].suffix])


def test_only_what_is_there_is_claimed(store: TendedStore) -> None:
    name = Hash.of(b"abc")
    store.put(name, Suffix.PLAIN, b"abc")

    assert store.claim(name, Suffix.PLAIN)
    assert store.claim(name, Suffix.PLAIN, stored_bytes=3)
    assert not store.claim(name, Suffix.PLAIN, stored_bytes=4)
    assert not store.claim(name, Suffix.CATALOG)
    store.settle()


def test_the_store_says_what_time_it_is(store: TendedStore) -> None:
    store.put(Hash.of(b"abc"), Suffix.PLAIN, b"abc")
    (only,) = store.objects()

    assert -2 <= store.now_unix_s() - only.modified_unix_s <= 60


def test_nothing_is_left_over_where_nobody_died(store: TendedStore) -> None:
    store.put(Hash.of(b"abc"), Suffix.PLAIN, b"abc")

    assert store.remove_leftovers(time.time() + 60) == 0
