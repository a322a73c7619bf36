import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs.format.symlinks import decode_literal, encode_literal, expand_target

TARGETS = st.lists(st.sampled_from([b"$", b"(", b")", b"$(", b"a", b"/", b":-", b"$(UNPACKD_LITERAL:-$()"])).map(
    b"".join
)


@given(TARGETS)
def test_a_literal_target_comes_back(target: bytes) -> None:
    assert decode_literal(encode_literal(target)) == target


@given(TARGETS, st.dictionaries(st.sampled_from([b"a", b"", b"UNPACKD_LITERAL", b"a$"]), st.just(b"VALUE")))
def test_a_reader_that_expands_sees_the_literal_target(target: bytes, variables: dict[bytes, bytes]) -> None:
    assert expand_target(encode_literal(target), variables) == target


@pytest.mark.parametrize("target", [b"/plain", b"../a b", b"$HOME", b"\xff$(", b""])
def test_what_no_reader_expands_is_stored_as_it_is(target: bytes) -> None:
    assert encode_literal(target) == target


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (b"/sw/$(ARCH)/lib", b"/sw/x86_64/lib"),
        (b"/sw/$(OS:-linux)/lib", b"/sw/linux/lib"),
        (b"/sw/$(OS)/lib", b"/sw//lib"),
        (b"$(ARCH:-arm)$(ARCH)", b"x86_64x86_64"),
        (b"/open/$(ARCH", b"/open/$(ARCH"),
    ],
)
def test_variables_of_other_writers_are_expanded(stored: bytes, shown: bytes) -> None:
    assert expand_target(stored, {b"ARCH": b"x86_64"}) == shown
