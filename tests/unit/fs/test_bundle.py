"""The form of bundles, and what a client believes of one."""

import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs.client.bundles import MOST_PLAIN_BYTES, batches, verified
from fs.client.receiving import ObjectRef
from fs.errors import CorruptError, MalformedError, RefusedError
from fs.format.bundle import MOST_OBJECTS, bundle_path, decode_bundle, encode_bundle, parse_bundle_path
from fs.format.hashes import Hash

parts = st.lists(st.none() | st.binary(max_size=50), max_size=8)


@given(parts)
def test_decoding_inverts_encoding(given_parts: list[bytes | None]) -> None:
    assert decode_bundle(encode_bundle(given_parts), len(given_parts)) == given_parts


@given(st.binary(max_size=200), st.integers(0, 9))
def test_no_answer_raises_anything_but_malformed(answer: bytes, count: int) -> None:
    with suppress(MalformedError):
        assert len(decode_bundle(answer, count)) == count


@pytest.mark.parametrize("cut", [1, 3, 4, 6, 8])
def test_a_cut_answer_is_malformed(cut: int) -> None:
    with pytest.raises(MalformedError):
        decode_bundle(encode_bundle([b"ab", None, b"c"])[:-cut], 3)


def test_names_survive_the_path() -> None:
    names = ["0" * 40, "1" * 40 + "P", "2" * 40 + "-shake128C"]

    assert parse_bundle_path(bundle_path(names)) == names


@pytest.mark.parametrize(
    "path",
    [
        "bundle/", "bundle/x", "bundle/" + "0" * 39, "bundle/../" + "0" * 40, "data/" + "0" * 40,
        "bundle/" + ",".join(["0" * 40] * (MOST_OBJECTS + 1)), "bundle/" + "0" * 40 + "\n",
    ],
)  # fmt: skip
def test_what_names_no_objects_is_refused(path: str) -> None:
    with pytest.raises(MalformedError):
        parse_bundle_path(path)


def _ref(stored: bytes, size: int) -> ObjectRef:
    return ObjectRef(Hash.of(stored), size=size)


def test_only_what_hashes_to_its_name_is_believed() -> None:
    stored = zlib.compress(b"content")

    assert verified(_ref(stored, 7), stored) == b"content"
    for wrong in (stored[:-1], stored + b"x", b"", zlib.compress(b"Content")):
        with pytest.raises(CorruptError):
            verified(_ref(stored, 7), wrong)


@pytest.mark.parametrize("size", [6, 8, 0])
def test_another_size_than_the_catalog_says_is_refused(size: int) -> None:
    stored = zlib.compress(b"content")
    with pytest.raises((CorruptError, RefusedError)):
        verified(_ref(stored, size), stored)


def test_an_inflate_bomb_is_refused() -> None:
    stored = zlib.compress(bytes(10 << 20))
    with pytest.raises(RefusedError):
        verified(_ref(stored, 1000), stored)


@given(st.lists(st.integers(0, MOST_PLAIN_BYTES * 2), max_size=150))
def test_batches_hold_everything_in_order_and_are_bounded(sizes: list[int]) -> None:
    refs = [_ref(b"%d" % number, size) for number, size in enumerate(sizes)]

    made = batches(refs)

    assert [ref for batch in made for ref in batch] == refs
    for batch in made:
        assert 0 < len(batch) <= MOST_OBJECTS
        assert len(batch) == 1 or sum(ref.size or 0 for ref in batch) <= MOST_PLAIN_BYTES
