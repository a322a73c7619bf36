"""Fixtures that every part of the suite shares."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import require_root
from tests.support.registry import Registry, run_registry

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests share what they start, those of the whole line even across files: one process runs them."""
    for item in items:
        place = item.path.parent if item.path.parent.name == "e2e" else item.path
        item.add_marker(pytest.mark.xdist_group(str(place.relative_to(ROOT))))


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own settings must not decide about a test."""
    for name in list(os.environ):
        if name.startswith("UNPACKD_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _root_where_asked_for(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("root") is not None:
        require_root()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference repositories, hostile layers and image recipes, beside the project's root."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("the folder ../shared with the reference data is not here")
    return path


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A real registry without content, one a test module."""
    with run_registry(tmp_path_factory.mktemp("registry")) as server:
        yield server
