"""Fixtures that every part of the suite shares."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from xdist.scheduler import LoadScopeScheduling

from tests.support.processes import require_root
from tests.support.registry import Registry, run_registry

ROOT = Path(__file__).parent.parent


class _ByFile(LoadScopeScheduling):  # type: ignore[misc]  # the module is not typed
    """A file's tests share what they start, those of the whole line even across files: one process runs them."""

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0])
        return str(file.parent if file.parent.name == "e2e" else file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:  # noqa: ANN401  # theirs
    """Give each process files, not tests."""
    return _ByFile(config, log)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own settings must not decide about a test."""
    for name in list(os.environ):
        if name.startswith("UNPACKD_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _logging_as_it_begins() -> None:
    """What a command of an earlier test has configured must not decide about a test either."""
    structlog.reset_defaults()


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
