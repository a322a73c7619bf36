"""A node over a directory laid out like a repository."""

from collections.abc import Iterator

import pytest

from tests.support.node import Node, running_node
from tests.support.snapshotter import FakeRepository, service_folder


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """One node a test module."""
    with service_folder() as folder:
        repository = FakeRepository(folder / "repository")
        repository.root.mkdir()
        with running_node(folder, repository) as node:
            yield node
