"""Wishlists: names, patterns, and mistakes with their places."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import Mistake, WishlistError, WishSyntaxError
from converter.terms import Policy, Terms
from converter.wish import Wish, matches_pattern
from converter.wishlist import parse_wishlist

DIGEST = "sha256:" + "ab" * 32

GOOD = b"""\
version: 1
user: unpacker
cvmfs_repo: unpacked.example.org
output_format: '$(scheme)://registry.example.org/thin/$(image)'
input:
  - 'https://registry.hub.docker.com/library/centos:7'
  - registry.example.org:5000/group/sub/tool:v1.*
  - http://127.0.0.1:5000/small:pushed
  - https://harbor/project/tool@%s
""" % DIGEST.encode()


def mistakes(text: str | bytes) -> list[tuple[int, int, str]]:
    with pytest.raises(WishlistError) as caught:
        parse_wishlist(text.encode() if isinstance(text, str) else text)
    return [(m.line, m.column, m.text) for m in caught.value.mistakes]


def test_a_wishlist_of_version_1_is_read() -> None:
    wishlist = parse_wishlist(GOOD)

    assert wishlist.repository == "unpacked.example.org"
    assert wishlist.user == "unpacker"
    assert wishlist.output_format == "$(scheme)://registry.example.org/thin/$(image)"
    assert wishlist.wishes == (
        Wish("registry.hub.docker.com", "library/centos", "7", None, "https"),
        Wish("registry.example.org:5000", "group/sub/tool", "v1.*"),
        Wish("127.0.0.1:5000", "small", "pushed", None, "http"),
        Wish("harbor", "project/tool", None, DIGEST, "https"),
    )
    assert [wish.line for wish in wishlist.wishes] == [6, 7, 8, 9]


def test_names_keep_what_was_written() -> None:
    pinned = Wish.parse(f"http://r.example/a/b:1@{DIGEST}")

    assert pinned.reference == f"http://r.example/a/b:1@{DIGEST}"
    assert pinned.simple_name == "r.example/a/b:1"
    assert Wish.parse(f"r.example/a@{DIGEST}").simple_name == f"r.example/a:{DIGEST}"


def test_every_mistake_has_its_line_and_column() -> None:
    found = mistakes(
        "version: 3\n"
        "cvmfs_repo: bad/name\n"
        "inputs: []\n"
        "input:\n"
        "  - library/redis:4\n"
        "  -   r.example/Upper:1\n"
        "  - 'r.example/tool'\n"
        "  - [r.example/tool:1]\n"
        "  - docker://r.example/tool:1\n"
        "  - r.example/tool:v[0-9]\n"
        "  - 5\n"
        "user: {}\n"
        "input: []\n"
    )

    assert [place[:2] for place in found] == [
        (1, 10), (2, 13), (3, 1), (5, 5), (6, 7), (7, 5), (8, 5), (9, 5), (10, 5), (11, 5), (12, 7), (13, 1),
    ]  # fmt: skip
    texts = [place[2] for place in found]
    assert "version '3' is not known" in texts[0]
    assert "unknown key 'inputs'" in texts[2]
    assert "docker.io/library/redis:4" in texts[3]
    assert "neither a tag nor a digest" in texts[5]
    assert "a pattern knows only *" in texts[8]
    assert "a second time" in texts[11]


def test_missing_keys_are_named() -> None:
    assert mistakes("version: 1\n") == [(1, 1, "the key cvmfs_repo is missing"), (1, 1, "the key input is missing")]


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("", 1, 1),
        ("- a\n- b\n", 1, 1),
        ("a: b\n---\nc: d\n", 2, 1),
        ("version: 1\ncvmfs_repo: 'open\n", 3, 1),
        ("version: 1\n\tuser: x\n", 2, 1),
        ("version: 1\nuser: a\x00b\n", 2, 8),
        ("user: *unknown\n", 1, 7),
        ("[" * 100_000, 1, 9),
        (b"user: ok\nuser: \xff\n", 2, 7),
    ],
)
def test_what_is_not_a_wishlist_at_all_has_a_place_too(text: str | bytes, line: int, column: int) -> None:
    assert mistakes(text)[0][:2] == (line, column)


def test_aliases_are_not_expanded() -> None:
    bomb = "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a, *a, *a, *a, *a, *a]\n" for i in range(1000))

    assert len(mistakes(bomb)) == 1003  # 1001 unknown keys, two missing ones


def test_a_file_that_is_too_large_is_refused() -> None:
    assert "bytes" in mistakes("#" * (1 << 20) + "\n")[0][2]


def test_tags_of_yaml_construct_nothing() -> None:
    text = "cvmfs_repo: r.example\nuser: !!python/object/apply:os.system [id]\ninput: !!python/name:os.system\n"

    assert [place[:2] for place in mistakes(text)] == [(2, 7), (3, 8)]


def test_the_same_image_twice_is_one_wish() -> None:
    wishlist = parse_wishlist(b"cvmfs_repo: r.example\ninput: [r.example/a:1, r.example/a:1]\n")

    assert len(wishlist.wishes) == 1


@pytest.mark.parametrize(
    ("pattern", "tag", "expected"),
    [
        ("v1.*", "v1.2", True),
        ("v1.*", "v1x2", False),  # DUCC's dot would match
        ("*", "", True),
        ("a*a", "a", False),
        ("*-slim", "3.11-slim", True),
        ("*-slim", "3.11-slim-bookworm", False),
        ("a*b*c", "a1b2b3c", True),
        ("a*b*c", "acb", False),
        ("a*b*b", "ab", False),
        ("1", "1", True),
    ],
)
def test_patterns(pattern: str, tag: str, expected: bool) -> None:
    assert matches_pattern(pattern, tag) is expected


def test_many_stars_cost_nothing() -> None:
    assert not matches_pattern("*a" * 60 + "b", "a" * 100_000)


@pytest.mark.parametrize(
    "text",
    [
        "r.example/", "r.example", "/x:1", "r.example/x:", "r.example/x:1:2", "r.example//:1", "ftp://r.example/x:1",
        "r.example/x@sha256:abc", "r.example:99999/x:1", f"r.example/x:*@{DIGEST}", "r.example/x*:1",
        "r.example/a b:1", "r.example/x:1\n", "-r.example/x:1", "r.example/" + "a" * 256 + ":1", "r..example/x:1",
        "user@r.example/x:1", "r.example/../x:1", "r.example/.flat:1",
    ],
)  # fmt: skip
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(WishSyntaxError):
        Wish.parse(text)


@given(st.one_of(st.text(max_size=64), st.from_regex(r"(https?://)?[a-z.:0-9]+/[a-z/._-]+(:[a-z0-9*.]+)?")))
def test_a_name_that_is_read_is_written_the_same(text: str) -> None:
    with suppress(WishSyntaxError):
        wish = Wish.parse(text)
        assert Wish.parse(wish.reference) == wish


@given(st.one_of(st.binary(max_size=200), st.text(alphabet="ab:-[]{}&*!'\"#\n \t|>%@,?x", max_size=80).map(str.encode)))
def test_no_text_raises_anything_but_wishlist_error(text: bytes) -> None:
    with suppress(WishlistError):
        parse_wishlist(text)


def test_a_mistake_counts_characters() -> None:
    assert mistakes("cvmfs_repo: r.example\ninput: [ 'ä/ä:1', r.example/ü:1 ]\n")[1][:2] == (2, 19)


def test_mistakes_are_in_the_order_of_the_text() -> None:
    error = WishlistError([Mistake(2, 1, "b"), Mistake(1, 5, "a")])

    assert str(error) == "line 1, column 5: a; line 2, column 1: b"


# --- version 2

OURS = b"""\
version: 2
repository: unpacked.example.org
platforms: [linux/amd64]
images:
  - r.example/a:1
  - image: r.example/b:v*
    policy: archive
    platforms: all
  - image: r.example/c:1
    policy: pin
    platforms: [linux/x86_64, linux/arm64/v8]
"""


def test_a_wishlist_of_version_2_has_terms() -> None:
    wishlist = parse_wishlist(OURS)

    assert (wishlist.repository, wishlist.version) == ("unpacked.example.org", 2)
    assert [(wish.reference, wish.line, wish.terms) for wish in wishlist.wishes] == [
        ("r.example/a:1", 5, Terms(Policy.FOLLOW, ("linux/amd64",))),
        ("r.example/b:v*", 6, Terms(Policy.ARCHIVE, ("all",))),
        ("r.example/c:1", 9, Terms(Policy.PIN, ("linux/amd64", "linux/arm64/v8"))),
    ]


def test_tags_that_a_pattern_matches_have_its_terms() -> None:
    assert parse_wishlist(OURS).wishes[1].with_tag("v2").terms.policy is Policy.ARCHIVE


def test_mistakes_of_version_2_have_their_places() -> None:
    found = mistakes(
        "version: 2\n"
        "cvmfs_repo: r.example\n"
        "policy: keep\n"
        "platforms: linux/amd64\n"
        "images:\n"
        "  - image: r.example/a:1\n"
        "    tag: x\n"
        "    platforms: [all, linux/amd64]\n"
        "  - policy: pin\n"
        "  - image: r.example/b:1\n"
        "    policy: pin\n"
        "  - r.example/b:1\n"
        "  - image: [r.example/c:1]\n"
        "  - image: r.example/d:1\n"
        "    platforms: [amd64]\n"
    )

    assert [place[:2] for place in found] == [
        (1, 1), (2, 1), (3, 9), (4, 12), (7, 5), (8, 16), (9, 5), (12, 5), (13, 12), (15, 16),
    ]  # fmt: skip
    texts = [place[2] for place in found]
    assert "the key repository is missing" in texts[0]
    assert "unknown key 'cvmfs_repo'" in texts[1]
    assert "follow, pin, archive" in texts[2]
    assert "wished in line 10 with other terms" in texts[7]


def test_terms_are_of_version_2_only() -> None:
    assert "unknown key 'policy'" in mistakes("cvmfs_repo: r\npolicy: pin\ninput: []\n")[0][2]


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (Terms(Policy.PIN), Terms(Policy.FOLLOW), Terms(Policy.FOLLOW)),
        (Terms(Policy.ARCHIVE), Terms(Policy.PIN), Terms(Policy.ARCHIVE)),
        (Terms(platforms=("linux/amd64",)), Terms(platforms=("linux/arm64",)),
         Terms(platforms=("linux/amd64", "linux/arm64"))),
        (Terms(platforms=("linux/amd64",)), Terms(platforms=("all",)), Terms(platforms=("all",))),
    ],
)  # fmt: skip
def test_terms_of_two_wishes_for_one_image_are_joined(one: Terms, other: Terms, both: Terms) -> None:
    assert one.joined(other) == both
    assert Terms.decode(*both.encode()) == both
