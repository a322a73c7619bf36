"""Where names lie in a listing."""

from hypothesis import given
from hypothesis import strategies as st

from fs.client.listings import hash_of, positions

LOWEST, TOO_HIGH = 3, 1 << 32


def placed(names: set[bytes]) -> dict[bytes, int]:
    hashes = {hash_of(name): name for name in names}
    return dict(zip([hashes[one] for one in sorted(hashes)], positions(sorted(hashes)), strict=True))


@given(st.sets(st.binary(min_size=1, max_size=20)), st.binary(min_size=1, max_size=20))
def test_positions_are_distinct_and_do_not_depend_on_other_names(names: set[bytes], other: bytes) -> None:
    before = placed(names)
    numbers = list(before.values())
    assert numbers == sorted(set(numbers))
    assert all(LOWEST <= number < TOO_HIGH for number in numbers)
    assert before.items() <= placed(names | {other}).items()


def test_names_whose_hashes_begin_alike_have_positions_of_their_own() -> None:
    assert list(positions([5 << 33, (5 << 33) + 1, (5 << 33) + 2, 9 << 33])) == [8, 9, 10, 12]
