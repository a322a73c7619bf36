"""A collection at every step of publishing, and publishing at every step of a collection.

The content that is published has been published before and is garbage now, so that each side wants the same objects.
"""

import itertools
import os
import shutil
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fs.errors import FsError
from fs.format.hashes import Hash, Suffix
from fs.format.tree import Content, Node
from fs.format.trust import load_public_keys
from fs.publish.check import CheckOptions, check_repository
from fs.publish.gc import DAY_S, GcOptions, collect
from fs.publish.keys import load_keys
from fs.publish.operations import Graft, MakeDirectory, Operation, Remove
from fs.publish.repository import Repository
from fs.store.base import Buffer, StoredObject
from fs.store.local import LocalStore
from tests.integration.fs.conftest import REPOSITORY

OPTIONS = GcOptions(keep_revisions=1, keep_newer_s=0, timeout_s=0)
PATH = b"/image"


class SteppedStore(LocalStore):
    """Does something else before the n-th call."""

    def __init__(self, root: Path, step: int, other: Callable[[], object]) -> None:
        super().__init__(root, durable=False)
        self._left = step
        self._other = other
        self.has_stepped = False

    def _step(self) -> None:
        self._left -= 1
        if self._left < 0 and not self.has_stepped:
            self.has_stepped = True
            with suppress(FsError):  # whoever is locked out, or refused, comes again later
                self._other()

    def put(self, name: Hash, suffix: Suffix, stored: Buffer) -> bool:
        self._step()
        return super().put(name, suffix, stored)

    def claim(self, name: Hash, suffix: Suffix, *, stored_bytes: int | None = None) -> bool:
        self._step()
        return super().claim(name, suffix, stored_bytes=stored_bytes)

    def settle(self) -> None:
        self._step()
        super().settle()

    def swap_named(self, name: str, content: bytes, *, expected: bytes | None) -> None:
        self._step()
        super().swap_named(name, content, expected=expected)

    def get(self, name: Hash, suffix: Suffix, *, limit_bytes: int) -> bytes:
        self._step()
        return super().get(name, suffix, limit_bytes=limit_bytes)

    def survey(self, objects: Sequence[StoredObject]) -> list[StoredObject | None]:
        self._step()
        return super().survey(objects)

    def remove(self, objects: Sequence[StoredObject]) -> None:
        for each in objects:
            self._step()
            super().remove([each])


class World:
    """One repository in a directory, and those who work on it."""

    def __init__(self, storage: Path, keys: Path) -> None:
        self.storage = storage
        self.keys = keys

    def publish(self, store: LocalStore | None = None) -> None:
        """Publish the image, from its files on."""
        store = store or LocalStore(self.storage, durable=False)
        writer = Repository(REPOSITORY, store, load_keys(self.keys, REPOSITORY), private=store.private)
        add = writer.ingester().add_bytes
        files = {b"f%d" % number: _file(add(b"%d" % number * 300)) for number in range(4)}
        tree = Node(mode=stat.S_IFDIR | 0o755, children={b"sub": Node(mode=stat.S_IFDIR | 0o755, children=files)})
        writer.commit([Graft(PATH, writer.prepare_subtree(PATH, tree))], timeout_s=0)

    def commit(self, *operations: Operation) -> None:
        Repository.open(REPOSITORY, str(self.storage), self.keys, durable=False).commit(operations)

    def collect(self, store: LocalStore | None = None) -> None:
        store = store or LocalStore(self.storage, durable=False)
        collect(store, store.private, OPTIONS)

    def wrong(self) -> list[str]:
        keys = load_public_keys((self.keys / f"{REPOSITORY}.pub").read_bytes())
        verdict = check_repository(LocalStore(self.storage), CheckOptions(keys=keys, now=datetime.now(UTC)))
        return [found.message for found in verdict.findings if not found.is_note]

    @property
    def has_image(self) -> bool:
        view = Repository.open(REPOSITORY, str(self.storage), self.keys, durable=False).view()
        return view.lookup(PATH) is not None and view.read(PATH + b"/sub/f3", 10_000) == b"3" * 300


def _file(content: Content) -> Node:
    return Node(mode=stat.S_IFREG | 0o644, content=content)


@pytest.fixture
def make_world(tmp_path: Path, made_keys: Path) -> Callable[[], World]:
    """Copies of one repository whose image was published, removed, and is older than any grace period."""
    template, keys = tmp_path / "template", tmp_path / "keys"
    shutil.copytree(made_keys, keys)
    Repository.create(REPOSITORY, str(template), keys, durable=False)
    world = World(template, keys)
    world.publish()
    world.commit(Remove(PATH))
    world.commit(MakeDirectory(b"/other"))  # one more revision, so that no name keeps the image
    then = time.time() - 10 * DAY_S
    for folder, _, names in os.walk(template / "data"):
        for name in names:
            os.utime(Path(folder) / name, (then, then))
    numbers = itertools.count()

    def make() -> World:
        copy = tmp_path / f"copy{next(numbers)}"
        shutil.copytree(template, copy)
        return World(copy, keys)

    return make


def test_the_image_is_garbage_to_begin_with(make_world: Callable[[], World]) -> None:
    world = make_world()
    before = sum(1 for _ in LocalStore(world.storage).objects())

    world.collect()

    assert before - sum(1 for _ in LocalStore(world.storage).objects()) >= 6
    assert world.wrong() == []


def test_a_collection_at_every_step_of_publishing(make_world: Callable[[], World]) -> None:
    for step in itertools.count():
        world = make_world()
        store = SteppedStore(world.storage, step, world.collect)
        with suppress(FsError):
            world.publish(store)
        assert world.wrong() == [], f"collected before call {step}"
        if not store.has_stepped:
            break
        if not world.has_image:
            world.publish(store)  # the same process tries again, from the files on
        assert world.has_image
        world.collect()
        assert world.wrong() == []
        shutil.rmtree(world.storage)

    assert step > 15
    print(f"\n{step} steps of publishing")


def test_publishing_at_every_step_of_a_collection(make_world: Callable[[], World]) -> None:
    for step in itertools.count():
        world = make_world()
        store = SteppedStore(world.storage, step, world.publish)
        world.collect(store)
        assert world.wrong() == [], f"published before call {step}"
        if not store.has_stepped:
            break
        if not world.has_image:
            world.publish()
        assert world.has_image
        assert world.wrong() == []
        shutil.rmtree(world.storage)

    assert step > 10
    print(f"\n{step} steps of a collection")
