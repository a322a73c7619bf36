"""One running snapshotter a module, over a directory that is laid out like a repository."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import unmount_below
from tests.support.snapshotter import FakeRepository, Service, SnapshotsClient, service_folder

_numbers = itertools.count()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with service_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def repository(folder: Path) -> FakeRepository:
    root = folder / "repository"
    root.mkdir()
    return FakeRepository(root)


@pytest.fixture(scope="module")
def service(folder: Path, repository: FakeRepository) -> Service:
    return Service(folder, repository.root)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[SnapshotsClient]:
    with service.started() as client:
        yield client


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[tuple[Service, FakeRepository]]:
    """A snapshotter of the test's own, not started."""
    with service_folder() as folder:
        repository = FakeRepository(folder / "repository")
        repository.root.mkdir()
        yield Service(folder, repository.root), repository


@pytest.fixture
def k() -> str:
    """A prefix for keys that no other test has."""
    return f"default/{next(_numbers)}/"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where to mount something; unmounted afterwards."""
    point = tmp_path / "mnt"
    point.mkdir()
    yield point
    unmount_below(point)
