import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_proxy.errors import DigestSyntaxError, ReferenceSyntaxError
from registry_proxy.oci.digest import Digest
from registry_proxy.oci.reference import Reference, is_loopback

HEX = "a" * 64


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("docker://alpine:3.20", "docker.io/library/alpine:3.20"),
        ("team/tool", "docker.io/team/tool:latest"),
        ("index.docker.io/alpine:1", "docker.io/library/alpine:1"),
        ("localhost/tool:1", "localhost/tool:1"),
        ("127.0.0.1:5000/a/b/c:1", "127.0.0.1:5000/a/b/c:1"),
        ("[::1]:5000/a:1", "[::1]:5000/a:1"),
        ("registry.example/a-b/c__d.e:X_1", "registry.example/a-b/c__d.e:X_1"),
        ("http://registry:5000/a:1", "http://registry:5000/a:1"),
        ("https://host/a", "https://host/a:latest"),
        (f"registry.example/a@sha256:{HEX}", f"registry.example/a@sha256:{HEX}"),
        (f"registry.example/a:1@sha256:{HEX}", f"registry.example/a:1@sha256:{HEX}"),
        ("Registry.Example/a:1", "registry.example/a:1"),
    ],
)
def test_references_are_read_as_docker_does(text: str, canonical: str) -> None:
    reference = Reference.parse(text)

    assert str(reference) == canonical
    assert Reference.parse(canonical) == reference


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "names no repository"),
        ("registry.example/Upper:1", "upper case"),
        ("registry.example/../etc:1", "not a repository name"),
        ("registry.example/a:", "not a tag"),
        ("registry.example/a:-x", "not a tag"),
        ("registry.example/a@sha256:abc", "not a digest"),
        ("ftp://registry.example/a", "scheme"),
        ("https://registry.example", "has to follow"),
        ("registry.example:99999/a", "host"),
        ("user@registry.example/a", "not a digest"),
        ("registry.example/a\n:1", "not a repository name"),
        ("registry.example/" + "a" * 250, "longer"),
    ],
)
def test_a_wrong_reference_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(ReferenceSyntaxError, match=reason):
        Reference.parse(text)


@given(st.text(max_size=80))
def test_no_text_raises_anything_but_a_syntax_error(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except ReferenceSyntaxError:
        return
    assert Reference.parse(str(reference)) == reference


def test_a_digest_pins_and_a_tag_unpins() -> None:
    reference = Reference.parse("registry.example/a:1")

    pinned = reference.with_digest(Digest("sha256", HEX))

    assert (pinned.target, pinned.tag) == (f"sha256:{HEX}", "1")
    assert pinned.with_tag("2").target == "2"


@pytest.mark.parametrize(
    "text", ["", "sha256", "sha256:" + "A" * 64, "sha256:" + "a" * 63, "sha256:../../etc", "SHA256:" + HEX, "x" * 300]
)
def test_a_wrong_digest_is_refused(text: str) -> None:
    with pytest.raises(DigestSyntaxError):
        Digest.parse(text)


def test_a_digest_of_an_unknown_algorithm_is_one_that_cannot_be_verified() -> None:
    digest = Digest.parse("blake3:" + HEX)

    assert not digest.is_verifiable
    with pytest.raises(DigestSyntaxError):
        digest.hasher()


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_digest_matches_only_its_bytes(algorithm: str) -> None:
    digest = Digest.of(b"data", algorithm)

    assert Digest.parse(str(digest)) == digest
    assert digest.matches(b"data")
    assert not digest.matches(b"Data")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.1.2.3:80", True),
        ("localhost:1", True),
        ("[::1]", True),
        ("10.0.0.1", False),
        ("localhost.evil.org", False),
    ],
)
def test_loopback_is_known_by_its_name(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
