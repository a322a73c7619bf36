from contextlib import suppress
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.csi.errors import VolumeRequestError
from snapshotter.csi.requests import VolumeSource, parse_source, require_mountable, required_path
from snapshotter.csi.server import parse_endpoint
from snapshotter.errors import ConfigurationError


def test_a_repository_and_a_path() -> None:
    context = {"repository": "unpacked.example.org", "path": "/registry.example.org//team/./tool:1", "other": "x"}

    assert parse_source(context) == VolumeSource(
        "unpacked.example.org", PurePosixPath("registry.example.org/team/tool:1")
    )
    assert parse_source({"repository": "a"}) == VolumeSource("a", PurePosixPath())


@pytest.mark.parametrize("repository", ["", ".", "..", "a/b", "a..b", "-a", "A", "a\0", "a b", "a."])
def test_what_is_no_repository_is_refused(repository: str) -> None:
    with pytest.raises(VolumeRequestError, match="repository"):
        parse_source({"repository": repository})


@pytest.mark.parametrize("path", ["..", "/a/../b", "a/..", "a\0b", "x" * 5000])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(VolumeRequestError, match="path"):
        parse_source({"repository": "a", "path": path})


@given(st.dictionaries(st.sampled_from(["repository", "path"]), st.text(max_size=40)))
def test_a_source_is_below_its_repository(context: dict[str, str]) -> None:
    with suppress(VolumeRequestError):
        source = parse_source(context)
        assert ".." not in source.path.parts
        assert not source.path.is_absolute()
        assert "/" not in source.repository


@pytest.mark.parametrize("value", ["", "relative", "/a/../b", "/a\0"])
def test_target_paths_are_absolute(value: str) -> None:
    with pytest.raises(VolumeRequestError, match="target_path"):
        required_path(value, "target_path")


@pytest.mark.parametrize("kind", [None, "block"])
def test_only_file_systems_can_be_had(kind: str | None) -> None:
    with pytest.raises(VolumeRequestError, match="mount"):
        require_mountable(kind)


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [("unix:///csi/csi.sock", "/csi/csi.sock"), ("unix:/a/b", "/a/b"), ("unix://a/b", "/a/b"), ("/a/b", "/a/b")],
)
def test_endpoints(endpoint: str, path: str) -> None:
    assert str(parse_endpoint(endpoint)) == path


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:1", "", "unix://"])
def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_endpoint(endpoint)
