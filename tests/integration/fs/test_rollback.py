"""Going back to an older revision by publishing it again, and writers that overtake each other."""

import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fs.errors import AbsentError, OvertakenError
from fs.format.history import Tag
from fs.format.trust import load_public_keys
from fs.publish.check import CheckOptions, check_repository
from fs.publish.file_leases import FileLeases
from fs.publish.leases import LeaseLostError
from fs.publish.operations import Remove
from fs.publish.published import MANIFEST, read_manifest
from fs.publish.repository import Repository, Settings
from fs.publish.revisions import named_revision, revisions
from fs.store.local import LocalStore
from tests.integration.fs.conftest import REPOSITORY
from tests.support.published import Published, publish


@pytest.fixture
def published(tmp_path: Path, made_keys: Path) -> Published:
    shutil.copytree(made_keys, tmp_path / "original/keys")
    made = publish(tmp_path / "original", REPOSITORY)
    made.nest("/a")  # revision 2
    made.commit(made.file("/a/one", b"one"))
    made.commit(Remove(b"/a/one"), made.file("/a/two", b"two"))
    return made


def wrong(published: Published) -> list[str]:
    keys = load_public_keys(published.public_key.read_bytes())
    options = CheckOptions(keys=keys, now=datetime.now(UTC))
    return [found.message for found in check_repository(LocalStore(published.storage), options).findings]


def root_of(published: Published, name: str) -> object:
    store = LocalStore(published.storage)
    return named_revision(store, read_manifest(store), name)


def test_an_old_revision_becomes_the_newest_and_nothing_is_lost(published: Published) -> None:
    store = LocalStore(published.storage)
    old = named_revision(store, published.writer.manifest, "3")

    commit = published.writer.rollback(old.root_catalog)

    assert (commit.revision, commit.changed) == (5, True)
    view = published.writer.view()
    assert view.read(b"/a/one", 10) == b"one"
    assert view.lookup(b"/a/two") is None
    assert [each.number for each in revisions(store, published.writer.manifest)] == [5, 4, 3, 2, 1]
    assert wrong(published) == []
    assert published.put(more=b"more") == 6
    assert wrong(published) == []


def test_undoing_and_undoing_that(published: Published) -> None:
    store = LocalStore(published.storage)

    for expected in (b"/a/one", b"/a/two"):
        target = named_revision(store, published.writer.manifest, "trunk-previous")
        published.writer.rollback(target.root_catalog)
        assert published.writer.view().lookup(expected) is not None

    assert published.writer.revision == 6
    assert wrong(published) == []


def test_the_newest_revision_is_no_change(published: Published) -> None:
    commit = published.writer.rollback(published.writer.manifest.root_catalog)

    assert (commit.revision, commit.changed) == (4, False)


def test_a_revision_that_was_collected_cannot_come_back(published: Published) -> None:
    from fs.publish.gc import GcOptions, collect

    store = LocalStore(published.storage, durable=False)
    old = named_revision(store, published.writer.manifest, "2")
    collect(store, store.private, GcOptions(keep_revisions=1, keep_newer_s=0, grace_s=-10, is_alone=True))

    with pytest.raises(AbsentError, match="collected"):
        published.writer.rollback(old.root_catalog)
    tag = Tag(name="late", root_catalog=old.root_catalog, revision=2, published_unix_s=0)
    with pytest.raises(AbsentError, match="collected"):
        published.writer.set_tag(tag)
    with pytest.raises(AbsentError):
        named_revision(store, published.writer.manifest, "2")
    assert published.writer.revision == 4


@pytest.mark.parametrize("name", ["99", "no-such-tag", "0" * 40])
def test_a_revision_that_never_was_is_absent(published: Published, name: str) -> None:
    with pytest.raises(AbsentError):
        root_of(published, name)


def test_a_revision_is_found_by_tag_number_and_hash(published: Published) -> None:
    root = published.writer.manifest.root_catalog

    assert root_of(published, "trunk") == root_of(published, "4") == root_of(published, str(root))


def test_a_writer_that_was_held_up_does_not_undo_what_came_after(published: Published) -> None:
    """Its lock is lost, as that of a stopped process on another machine would be; its manifest is not taken."""
    slow = Repository.open(published.name, str(published.storage), published.keys, durable=False)
    settle = slow._store.settle

    def held_up() -> None:
        settle()
        (published.storage / ".publisher/lock").unlink()  # the other writer's lock is another file from now on
        published.put(quick=b"quick")

    slow._store.settle = held_up  # type: ignore[method-assign]

    with pytest.raises(OvertakenError):
        slow.commit([published.file("/slow", b"slow")])

    view = published.writer.view()
    assert view.lookup(b"/quick") is not None
    assert view.lookup(b"/slow") is None
    assert published.writer.revision == 5
    assert wrong(published) == []
    slow._store.settle = settle  # type: ignore[method-assign]
    assert slow.commit([published.file("/slow", b"slow")]).revision == 6
    assert wrong(published) == []


def test_a_writer_whose_lease_was_lost_does_not_publish(published: Published, tmp_path: Path) -> None:
    keeper = FileLeases(tmp_path)
    writer = Repository.open(
        published.name, str(published.storage), published.keys, settings=Settings(leases=keeper), durable=False
    )
    settle = writer._store.settle

    def held_up() -> None:
        settle()
        for lease in keeper.leases(published.name):
            assert "process" in lease.owner
            keeper.release(lease)

    writer._store.settle = held_up  # type: ignore[method-assign]
    before = (published.storage / MANIFEST).read_bytes()

    with pytest.raises(LeaseLostError):
        writer.commit([published.file("/late", b"late")])

    assert (published.storage / MANIFEST).read_bytes() == before
    assert keeper.leases(published.name) == []


def test_writers_with_leases_take_turns(published: Published, tmp_path: Path) -> None:
    """Each has a private folder of its own, so the file lock does not help: the leases and the swap do."""
    errors: list[Exception] = []

    def write(number: int) -> None:
        settings = Settings(leases=FileLeases(tmp_path))
        opened = Repository.open(
            published.name, str(published.storage), published.keys, settings=settings, durable=False
        )
        private = tmp_path / f"machine{number}"
        private.mkdir()
        opened._private = private
        own = Published(opened, published.storage, published.keys)
        try:
            for turn in range(6):
                own.commit(own.file(f"/w{number}-{turn}", b"%d %d" % (number, turn)))
        except Exception as error:  # noqa: BLE001  # shown below
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert errors == []
    assert published.writer.revision == 4 + 18
    names = {entry.name.decode() for entry in published.writer.view().list(b"")}
    assert names >= {f"w{number}-{turn}" for number in range(3) for turn in range(6)}
    assert wrong(published) == []
