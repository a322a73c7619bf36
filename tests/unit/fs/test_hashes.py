from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs.errors import HashSyntaxError
from fs.format.compression import deflate_classic
from fs.format.hashes import DIGEST_BYTES, Algorithm, Hash, Suffix
from fs.format.paths import canonical, is_below, parent_path, path_key

digests = st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES)
hashes = st.builds(Hash, digests, st.sampled_from(Algorithm))


@pytest.mark.parametrize(
    ("algorithm", "text"),
    [
        (Algorithm.SHA1, "e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78"),
        (Algorithm.RMD160, "fcdb20b894f31f1306d56294c049ca7293dde0fc-rmd160"),
        (Algorithm.SHAKE128, "28d94b83b7229b331fc601362b8e272e02665122-shake128"),
    ],
)
def test_the_empty_object_has_the_name_the_reference_gives_it(algorithm: Algorithm, text: str) -> None:
    assert str(Hash.of(deflate_classic(b""), algorithm)) == text


@given(hashes)
def test_parse_inverts_str(name: Hash) -> None:
    assert Hash.parse(str(name)) == name


@given(st.text(max_size=60))
def test_no_text_raises_anything_but_hash_syntax_error(text: str) -> None:
    with suppress(HashSyntaxError):
        Hash.parse(text)


@pytest.mark.parametrize("text", ["", "e8", "E8EC3D88B62EBF526E4E5A4FF6162A3AA48A6B78", "e8 " * 20, "../" * 13 + "x"])
def test_what_is_not_exactly_a_hash_is_refused(text: str) -> None:
    with pytest.raises(HashSyntaxError):
        Hash.parse(text)


def test_the_object_path_carries_algorithm_and_letter() -> None:
    name = Hash(bytes(range(DIGEST_BYTES)), Algorithm.SHAKE128)

    assert name.object_path(Suffix.CATALOG) == "data/00/" + bytes(range(1, DIGEST_BYTES)).hex() + "-shake128C"


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (b"", (338333539836370388, 9098107892288553193)),
        (b"/foo", (5745132282796244766, -5819618580357280866)),
        (b"/foo/bar", (-2822516800166431715, 9048809318629099454)),
    ],
)
def test_path_keys_are_little_endian_halves_of_the_md5(path: bytes, key: tuple[int, int]) -> None:
    assert path_key(path) == key


def test_paths() -> None:
    assert canonical("a//b/") == b"/a/b"
    assert parent_path(b"/a") == b""
    assert is_below(b"/a/b", b"/a")
    assert is_below(b"/a", b"")
    assert not is_below(b"/ab", b"/a")
