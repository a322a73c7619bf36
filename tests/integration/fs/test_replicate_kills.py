"""A mirror whose replication is killed at every change it makes, one after the other."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from fs.format.entries import NestedReference
from fs.format.hashes import Hash, Suffix
from fs.format.paths import ROOT
from fs.format.trust import load_public_keys
from fs.publish.check import CheckOptions, check_repository
from fs.publish.marks import read_catalog
from fs.publish.operations import MakeDirectory
from fs.publish.replica_state import ReplicaState, Scope
from fs.publish.replicate import ReplicaOptions, replicate
from fs.store.base import Buffer
from fs.store.directory import DirectoryReader
from fs.store.local import LocalStore
from tests.integration.fs.conftest import REPOSITORY
from tests.support.published import Published, publish


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


class DyingStore(LocalStore):
    """Ends the process before the n-th change."""

    left = 0

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def put(self, name: Hash, suffix: Suffix, stored: Buffer) -> bool:
        self._count()
        return super().put(name, suffix, stored)

    def replace_named(self, name: str, content: bytes) -> None:
        self._count()
        super().replace_named(name, content)

    def remove_named(self, name: str) -> None:
        self._count()
        super().remove_named(name)


@pytest.fixture
def published(tmp_path: Path, made_keys: Path) -> Published:
    shutil.copytree(made_keys, tmp_path / "original/keys")
    made = publish(tmp_path / "original", REPOSITORY)
    made.commit(*(MakeDirectory(path, nested=True) for path in (b"/a", b"/a/deep", b"/b")))
    made.commit(
        made.file("/top", b"top"),
        made.file("/a/deep/two", b"two" * 1000),
        made.file("/b/large", bytes(range(256)) * 40_000),
    )
    return made


@pytest.mark.parametrize("scope", [Scope(), Scope((b"/a",))], ids=["whole", "part"])
def test_it_is_killed_at_each_change_and_taken_up(published: Published, tmp_path: Path, scope: Scope) -> None:
    keys = load_public_keys(published.public_key.read_bytes())
    options = ReplicaOptions(keys=keys, scope=scope, transfers=3)
    source = DirectoryReader(published.storage)
    kills = 0
    for changes in range(200):
        store = DyingStore(tmp_path / f"mirror{changes}", durable=False)
        store.prepare()
        store.left = changes
        if not is_killed(source, store, options):
            break
        kills += 1
        assert_catalogs_imply_what_is_below(store)
        assert_manifest_implies_its_catalog(store)
        store.left = 1000
        anyio.run(replicate, source, store, ReplicaOptions(keys=keys))
        verdict = check_repository(store, CheckOptions(keys=keys, now=datetime.now(UTC)))
        assert [found.message for found in verdict.findings if not found.is_note] == []
        assert not (store.root / ".cvmfs_is_snapshotting").exists()
        shutil.rmtree(store.root)

    assert kills > 15
    print(f"\nkilled at {kills} changes")


def is_killed(source: DirectoryReader, store: LocalStore, options: ReplicaOptions) -> bool:
    """True if the end came; it comes alone or, out of one of several tasks, in a group."""
    try:
        anyio.run(replicate, source, store, options)
    except Killed:
        return True
    except BaseExceptionGroup as group:
        return group.split(Killed)[1] is None
    return False


def assert_catalogs_imply_what_is_below(store: LocalStore) -> None:
    partial = ReplicaState.read(store).partial
    for each in list(store.objects()):
        if each.suffix is Suffix.CATALOG and each.name not in partial:
            catalog = read_catalog(store, NestedReference(ROOT, each.name, 0))
            assert all(store.has(name, suffix) for name, suffix, _ in catalog.objects())
            assert all(store.has(nested.hash, Suffix.CATALOG) for nested in catalog.nested())
            catalog.close()


def assert_manifest_implies_its_catalog(store: LocalStore) -> None:
    from fs.publish.published import read_manifest

    if (store.root / ".cvmfspublished").exists():
        assert store.has(read_manifest(store).root_catalog, Suffix.CATALOG)
