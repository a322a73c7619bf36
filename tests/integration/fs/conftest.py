"""Repositories in directories, with keys that are made once."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fs.publish.keys import create_keys
from fs.publish.repository import Repository, Settings

REPOSITORY = "published.test"


@pytest.fixture(scope="session")
def made_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from datetime import UTC, datetime

    folder = tmp_path_factory.mktemp("keys")
    create_keys(folder, REPOSITORY, datetime.now(UTC))
    return folder


@pytest.fixture
def make_repository(tmp_path: Path, made_keys: Path) -> Callable[..., Repository]:
    """Makes a repository in ``tmp_path/storage`` with the keys in ``tmp_path/keys``."""

    def make(settings: Settings | None = None) -> Repository:
        shutil.copytree(made_keys, tmp_path / "keys")
        storage = str(tmp_path / "storage")
        return Repository.create(REPOSITORY, storage, tmp_path / "keys", settings=settings, durable=False)

    return make


@pytest.fixture
def repository(make_repository: Callable[..., Repository]) -> Repository:
    return make_repository()
