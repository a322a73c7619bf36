import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs.errors import RefusedError
from fs.format.xattrs import decode_xattrs, encode_xattrs

keys = st.binary(min_size=1, max_size=255).filter(lambda key: b"\0" not in key)


def test_the_reference_vector() -> None:
    blob = encode_xattrs({b"user.foo": b"bar", b"user.a": b""})

    assert blob == b"\x01\x02\x06\x00user.a\x08\x03user.foobar"


@given(st.dictionaries(keys, st.binary(max_size=255), max_size=20))
def test_decode_inverts_encode(attributes: dict[bytes, bytes]) -> None:
    assert decode_xattrs(encode_xattrs(attributes)) == attributes


@given(st.binary(max_size=64))
def test_any_blob_decodes_to_something(blob: bytes) -> None:
    assert isinstance(decode_xattrs(blob), dict)


def test_a_truncated_blob_holds_nothing() -> None:
    assert decode_xattrs(b"\x01\x02\x06\x00user.a\x08\x03user.fooba") == {}


def test_a_value_too_long_for_the_format_is_refused_by_name() -> None:
    with pytest.raises(RefusedError, match=r"user\.big"):
        encode_xattrs({b"user.big": b"x" * 256})
