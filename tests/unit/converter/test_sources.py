"""Names of images."""

from pathlib import Path

import pytest

from converter.errors import SourceSyntaxError
from converter.sources import parse_source
from registry_proxy.errors import ProxyError


@pytest.mark.parametrize(
    ("text", "kind", "path", "tag"),
    [
        ("oci:/some/dir:1.0", "oci", "/some/dir", "1.0"),
        ("oci:/some/dir", "oci", "/some/dir", None),
        ("oci:/some/dir:docker.io/library/x:1", "oci", "/some/dir", "docker.io/library/x:1"),
        ("oci-archive:/a.tar:t", "oci-archive", "/a.tar", "t"),
        ("docker-archive:/a.tar:busybox:1", "docker-archive", "/a.tar", "busybox:1"),
    ],
)
def test_local_sources(text: str, kind: str, path: str, tag: str | None) -> None:
    source = parse_source(text)

    assert (source.kind, source.path, source.tag) == (kind, Path(path), tag)
    assert str(source) == text


@pytest.mark.parametrize(
    "text", ["debian", "docker://debian:12", "127.0.0.1:5000/a/b:c", "https://r.example/x@sha256:" + "a" * 64]
)
def test_images_in_registries(text: str) -> None:
    source = parse_source(text)

    assert source.kind == "registry"
    assert source.reference is not None


@pytest.mark.parametrize("text", ["oci:", "oci::tag", "oci-archive:/x:", "docker-archive:"])
def test_sources_without_a_path(text: str) -> None:
    with pytest.raises(SourceSyntaxError):
        parse_source(text)


@pytest.mark.parametrize("text", ["", "Upper/Case", "a b", "x:y:z", "r.example/x@sha256:short"])
def test_malformed_references(text: str) -> None:
    with pytest.raises(ProxyError):
        parse_source(text)
