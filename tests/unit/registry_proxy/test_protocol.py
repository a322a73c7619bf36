"""Challenges, error bodies, ranges, paths, routes, related hosts, metrics: what is pure besides the OCI model."""

import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_proxy.answers import warning_header
from registry_proxy.metrics import Metrics
from registry_proxy.oci.challenge import Challenge, parse_challenges
from registry_proxy.oci.codes import Code, error_body, error_text
from registry_proxy.paths import Endpoint, Target, parse_path
from registry_proxy.ranges import AskedRange, UnsatisfiableRangeError
from registry_proxy.tokens import related
from registry_proxy.transfer import retry_after_s
from registry_proxy.upstreams import AmbiguousUpstreamError, Routes, UnknownUpstreamError


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Basic realm="x"', [Challenge("basic", {"realm": "x"})]),
        (
            'Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"',
            [Challenge("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:a/b:pull,push"})],
        ),
        (
            'BEARER Realm=x , Error="a\\"b", Basic realm="y"',
            [Challenge("bearer", {"realm": "x", "error": 'a"b'}), Challenge("basic", {"realm": "y"})],
        ),
        ("Negotiate, Basic realm=z", [Challenge("negotiate", {}), Challenge("basic", {"realm": "z"})]),
        ("Negotiate abc==, Basic realm=z", [Challenge("negotiate", {}), Challenge("basic", {"realm": "z"})]),
        ("", []),
        ("=,=", []),
    ],
)
def test_challenges_are_read(header: str, expected: list[Challenge]) -> None:
    assert list(parse_challenges([header])) == expected


@given(st.text(max_size=100))
def test_any_challenge_can_be_looked_at(header: str) -> None:
    parse_challenges([header])


def test_error_bodies_say_code_and_message() -> None:
    body = error_body(Code.BLOB_UNKNOWN, 'no "blob"')

    assert json.loads(body) == {"errors": [{"code": "BLOB_UNKNOWN", "message": 'no "blob"'}]}
    assert error_text(body) == 'BLOB_UNKNOWN: no "blob"'


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"errors":[]}', b'{"errors":{"a":1}}', b"[" * 100_000])
def test_unreadable_error_bodies_say_nothing(body: bytes) -> None:
    assert error_text(body) == ""


def test_error_texts_are_one_bounded_line() -> None:
    text = error_text(json.dumps({"errors": [{"code": "A\n\x1b[31m", "message": "x" * 5000}]}).encode())

    assert len(text) <= 300
    assert text.isprintable()


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=10-19", range(10, 20)),
        ("bytes=90-", range(90, 100)),
        ("bytes=90-500", range(90, 100)),
        ("bytes=-5", range(95, 100)),
        ("bytes=-500", range(100)),
        (" Bytes = 1 - 2 ", range(1, 3)),
    ],
)
def test_ranges_mean_bytes(header: str, expected: range) -> None:
    asked = AskedRange.parse(header)

    assert asked is not None
    assert asked.within(100) == expected


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=500-0", "bytes=-0", "bytes=200-300"])
def test_ranges_outside_are_not_satisfiable(header: str) -> None:
    asked = AskedRange.parse(header)

    assert asked is not None
    with pytest.raises(UnsatisfiableRangeError, match=r"bytes \*/100"):
        asked.within(100)


@pytest.mark.parametrize("header", [None, "", "bytes=", "bytes=-", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6", "1-2"])
def test_other_ranges_are_ignored(header: str | None) -> None:
    assert AskedRange.parse(header) is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2/", Target(Endpoint.ROOT)),
        ("/v2/a/manifests/1", Target(Endpoint.MANIFEST, "a", "1")),
        ("/v2/a/blobs/b/manifests/1", Target(Endpoint.MANIFEST, "a/blobs/b", "1")),
        ("/v2/a/manifests/blobs/sha256:x", Target(Endpoint.BLOB, "a/manifests", "sha256:x")),
        ("/v2/a/tags/list", Target(Endpoint.TAGS, "a")),
        ("/v2/a/referrers/x", Target(Endpoint.REFERRERS, "a", "x")),
        ("/v2/manifests/1", None),
        ("/v2/a", None),
        ("/v2/_catalog", None),
        ("/v2/a/blobs/uploads/", None),
        ("/v2/" + "a/" * 2000 + "manifests/1", None),
    ],
)
def test_paths_are_read_from_the_right(path: str, expected: Target | None) -> None:
    assert parse_path(path) == expected


@dataclass(frozen=True)
class FakeUpstream:
    name: str
    registry: str


HUB = FakeUpstream("hub", "docker.io")
LOCAL = FakeUpstream("local", "127.0.0.1:5000")


@pytest.mark.parametrize(
    ("path", "namespace", "upstream", "repository"),
    [
        ("library/alpine", "docker.io", HUB, "library/alpine"),
        ("alpine", "registry-1.docker.io", HUB, "library/alpine"),
        ("hub/alpine", None, HUB, "library/alpine"),
        ("docker.io/team/tool", None, HUB, "team/tool"),
        ("hub/library/alpine", "docker.io", HUB, "library/alpine"),
        ("127.0.0.1:5000/a/b", None, LOCAL, "a/b"),
        ("a/b", "127.0.0.1:5000", LOCAL, "a/b"),
        ("a/b", None, HUB, "a/b"),
    ],
)
def test_requests_find_their_upstream(
    path: str, namespace: str | None, upstream: FakeUpstream, repository: str
) -> None:
    route = Routes([HUB, LOCAL], "hub").find(path, namespace)

    assert (route.upstream, route.repository, route.is_by_namespace) == (upstream, repository, namespace is not None)


def test_unknown_and_ambiguous_upstreams_are_refused() -> None:
    routes = Routes([HUB, LOCAL], "")

    for path, namespace in [("a/b", None), ("a/b", "169.254.169.254"), ("a/b", "")]:
        with pytest.raises(UnknownUpstreamError):
            routes.find(path, namespace)
    with pytest.raises(AmbiguousUpstreamError):
        routes.find("local/a", "docker.io")


def test_a_single_upstream_is_the_default() -> None:
    assert Routes([LOCAL], "").find("a", None).upstream is LOCAL


@pytest.mark.parametrize(
    ("registry", "realm", "expected"),
    [
        ("registry-1.docker.io", "auth.docker.io", True),
        ("registry.gitlab.com", "gitlab.com", True),
        ("ghcr.io", "ghcr.io", True),
        ("ghcr.io", "evil.io", False),
        ("registry.example.co.uk", "auth.example.co.uk", True),
        ("example.co.uk", "evil.co.uk", False),
        ("registry.example.org", "example.org.evil.net", False),
        ("example.org", "auth.example.org", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("127.0.0.1", "localhost", True),
        ("registry.example.org", "127.0.0.1", False),
    ],
)
def test_token_servers_belong_to_the_registrys_domain(registry: str, realm: str, expected: bool) -> None:
    assert related(registry, realm) is expected


@pytest.mark.parametrize(
    ("text", "expected"), [("7", 7), ("Thu, 01 Jan 1970 00:01:40 GMT", 90), ("soon", None), ("", None), ("-1", None)]
)
def test_retry_after_is_seconds_or_a_date(text: str, expected: float | None) -> None:
    assert retry_after_s({"Retry-After": text}, now_unix_s=10) == expected


def test_warnings_are_quoted() -> None:
    assert warning_header('a "b" \\c') == '299 - "a \\"b\\" \\\\c"'


def test_metrics_are_text() -> None:
    metrics = Metrics()
    metrics.count("requests_total", 1_234_567, kind='a"b')

    text = metrics.text({("cache_bytes", ()): 5})

    assert 'unpackd_proxy_requests_total{kind="a\\"b"} 1234567\n' in text
    assert "# TYPE unpackd_proxy_cache_bytes gauge\nunpackd_proxy_cache_bytes 5\n" in text
