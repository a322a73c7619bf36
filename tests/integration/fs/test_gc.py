"""Garbage collection of real repositories in directories: what goes, what stays, and what a killed run leaves."""

import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fs.errors import AbsentError, CorruptError, FsError, RefusedError
from fs.format.hashes import Hash, Suffix
from fs.format.tree import Node
from fs.format.trust import load_public_keys
from fs.publish.check import CheckOptions, check_repository
from fs.publish.gc import DAY_S, GcOptions, GcReport, collect
from fs.publish.keys import load_keys
from fs.publish.operations import Graft, Remove
from fs.publish.published import read_manifest
from fs.publish.repository import Repository, Settings
from fs.publish.revisions import revisions, view_of
from fs.store.base import StoredObject
from fs.store.local import LocalStore
from tests.integration.fs.conftest import REPOSITORY
from tests.support.published import Published

NOTHING_BUT_THE_NEWEST = GcOptions(keep_revisions=1, keep_newer_s=0)


@pytest.fixture
def published(tmp_path: Path, made_keys: Path) -> Published:
    """Revisions 2 to 5 with a file each that the next one does not have; trunk-previous keeps the last but one."""
    storage, keys = tmp_path / "storage", tmp_path / "keys"
    shutil.copytree(made_keys, keys)
    hours = itertools.count(-24 * 12)  # every look at the clock takes an hour
    settings = Settings(clock=lambda: time.time() + next(hours) * 3600)
    writer = Repository.create(REPOSITORY, str(storage), keys, settings=settings, durable=False)
    made = Published(writer, storage, keys)
    made.nest("/a")  # revision 2
    for number in range(3, 6):
        path = f"/a/file{number}"
        made.commit(Remove(f"/a/file{number - 1}".encode()), made.file(path, b"content %d" % number * 100))
    age(made.storage)
    return made


def age(storage: Path, days: float = 10) -> None:
    """Let everything be that old."""
    then = time.time() - days * DAY_S
    for folder, _, names in os.walk(storage / "data"):
        for name in names:
            os.utime(Path(folder) / name, (then, then))


def collected(published: Published, options: GcOptions = NOTHING_BUT_THE_NEWEST, *, sign: bool = True) -> GcReport:
    store = LocalStore(published.storage, durable=False)
    keys = load_keys(published.keys, published.name) if sign else None
    return collect(store, store.private, options, keys)


def findings(published: Published, *, notes: bool = True) -> list[str]:
    keys = load_public_keys(published.public_key.read_bytes())
    verdict = check_repository(LocalStore(published.storage), CheckOptions(keys=keys, now=datetime.now(UTC)))
    return [found.message for found in verdict.findings if notes or not found.is_note]


def has(published: Published, content: bytes) -> bool:
    store = LocalStore(published.storage)
    return any(each.suffix is Suffix.PLAIN and content in _plain(store, each) for each in list(store.objects()))


def _plain(store: LocalStore, each: StoredObject) -> bytes:
    import zlib

    return zlib.decompress(store.get(each.name, each.suffix, limit_bytes=1 << 20))


def test_old_revisions_go_and_the_reflog_is_exact(published: Published) -> None:
    report = collected(published)

    assert report.kept == [5]
    assert report.kept_tags == 2, "trunk, and trunk-previous for whoever wants to go back"
    assert report.removed_objects == report.garbage_objects > 4
    assert report.is_complete
    assert not has(published, b"content 3")
    assert has(published, b"content 4")
    assert has(published, b"content 5")
    assert findings(published) == [], "no note either: the manifest names the reflog as it is"
    store = LocalStore(published.storage)
    assert [revision.number for revision in revisions(store, read_manifest(store))] == [5, 4]


def test_what_is_named_pinned_or_young_stays(published: Published) -> None:
    store = LocalStore(published.storage)
    line = {revision.number: revision.root_catalog for revision in revisions(store, read_manifest(store))}
    (store.private / "pins").mkdir()
    (store.private / "pins" / "someone").write_text(f"{line[3]}\n")

    report = collected(published)

    assert has(published, b"content 3")
    assert report.removed_objects > 0
    (store.private / "pins" / "someone").unlink()
    assert collected(published, GcOptions(keep_revisions=1, keep_newer_s=0, pins=[line[3]])).removed_objects == 0
    assert collected(published, GcOptions(keep_revisions=1, keep_newer_s=30 * DAY_S)).removed_objects == 0
    assert collected(published, GcOptions(keep_revisions=9, keep_newer_s=0)).removed_objects == 0
    assert collected(published, GcOptions(keep_revisions=1, keep_newer_s=0, grace_s=11 * DAY_S)).removed_objects == 0
    assert collected(published).removed_objects > 0


def test_a_young_catalog_keeps_what_is_below_it(published: Published) -> None:
    store = LocalStore(published.storage)
    line = {revision.number: revision.root_catalog for revision in revisions(store, read_manifest(store))}
    os.utime(published.storage / line[3].object_path(Suffix.CATALOG))  # dropped, but too young to go

    collected(published)

    assert has(published, b"content 3"), "its root catalog says that it is there"


def test_uploads_that_were_never_published_are_found(published: Published) -> None:
    published.writer.ingester().add_bytes(b"nobody refers to this")
    published.writer.prepare_subtree(b"/x", Node(mode=0o040755, children={b"d": Node(mode=0o040755)}))
    staged = published.storage / "data/txn/left"
    staged.write_bytes(b"half of it")
    collected(published)
    assert has(published, b"nobody refers to this"), "it is young"
    age(published.storage)

    report = collected(published)

    assert not has(published, b"nobody refers to this")
    assert report.removed_objects >= 2
    assert report.leftovers == 1
    assert not staged.exists()


def test_a_dry_run_removes_nothing_and_says_why(published: Published) -> None:
    published.writer.ingester().add_bytes(b"nobody refers to this")
    age(published.storage)
    before = sorted(path for path in (published.storage / "data").rglob("*"))

    report = collected(published, GcOptions(keep_revisions=1, keep_newer_s=0, dry_run=True))

    assert sorted(path for path in (published.storage / "data").rglob("*")) == before
    assert len(report.garbage) == report.garbage_objects > 0
    reasons = {garbage.reason for garbage in report.garbage}
    assert "root of revision 3, which is not kept" in reasons
    assert "last used by revision 3, which is not kept" in reasons
    assert "no revision refers to it: left by an upload that was never published" in reasons
    assert "a list of tags that a newer one has replaced" in reasons
    assert collected(published).removed_objects == report.garbage_objects


def test_a_capped_run_is_taken_up(published: Published) -> None:
    total = collected(published, GcOptions(keep_revisions=1, keep_newer_s=0, dry_run=True)).garbage_objects
    removed = 0
    for _ in range(total):  # enough, if each run goes on where the one before stopped
        report = collected(published, GcOptions(keep_revisions=1, keep_newer_s=0, most_objects=2))
        removed += report.removed_objects
        assert report.removed_objects <= 2
        assert findings(published) == []
        if report.is_complete:
            break

    assert removed == total
    assert collected(published).garbage_objects == 0


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"junk")], ids=["lost", "damaged"])
@pytest.mark.parametrize("which", ["root", "nested", "previous"])
def test_a_catalog_that_cannot_be_read_stops_it(
    published: Published, which: str, spoil: Callable[[Path], object]
) -> None:
    store = LocalStore(published.storage)
    line = [revision.root_catalog for revision in revisions(store, read_manifest(store))]
    victim = {"root": line[0], "nested": _nested(store), "previous": line[1]}[which]
    spoil(published.storage / victim.object_path(Suffix.CATALOG))
    before = sum(1 for _ in store.objects())

    with pytest.raises((AbsentError, CorruptError)):
        collected(published)

    assert sum(1 for _ in store.objects()) == before


def _nested(store: LocalStore) -> Hash:
    from fs.format.entries import NestedReference
    from fs.publish.marks import read_catalog

    return read_catalog(store, NestedReference(b"", read_manifest(store).root_catalog, 0)).nested()[0].hash


def test_a_repository_without_reflog_is_left_alone(published: Published) -> None:
    (published.storage / ".cvmfsreflog").unlink()

    with pytest.raises(RefusedError, match="reflog"):
        collected(published)


def test_a_short_grace_period_has_to_be_meant(published: Published) -> None:
    with pytest.raises(RefusedError, match="grace"):
        collected(published, GcOptions(grace_s=0))


def test_what_is_published_during_the_run_stays(published: Published) -> None:
    """A writer brings back an old content, which is garbage, between listing and sweep."""

    class Interrupted(LocalStore):
        def survey(self, objects: Sequence[StoredObject]) -> list[StoredObject | None]:
            self.between()
            return super().survey(objects)

        def between(self) -> None:
            if published.writer.revision == 5 and not self.writing:
                self.writing = True
                again.start()
                time.sleep(0.3)  # it waits for the lock that this batch holds

        writing = False

    def bring_back() -> None:
        published.commit(published.file("/a/file3", b"content 3" * 100))

    again = threading.Thread(target=bring_back)
    store = Interrupted(published.storage, durable=False)

    collect(store, store.private, NOTHING_BUT_THE_NEWEST)
    again.join(30)

    assert published.writer.revision == 6
    assert findings(published, notes=False) == []


def test_writers_and_collections_at_once(published: Published) -> None:
    """Contents that come and go while everything that nobody claims is old enough to be removed."""
    stop = threading.Event()
    errors: list[BaseException] = []
    removed: list[int] = []
    at_work = [threading.Lock(), threading.Lock()]

    @contextmanager
    def noting_errors() -> Iterator[None]:
        try:
            yield
        except FsError as error:
            if not error.transient:
                errors.append(error)

    def write(number: int) -> None:
        writer = Repository.open(published.name, str(published.storage), published.keys, durable=False)
        own = Published(writer, published.storage, published.keys)
        path = b"/graft%d" % number
        for turn in range(12):
            with at_work[number], noting_errors():
                own.commit(own.file(f"/a/w{number}", b"%d" % (turn % 3) * 500))
                tree = Node(mode=0o040755, children={b"f": _file(own, b"%d" % (turn % 2) * 700)})
                writer.commit([Graft(path, writer.prepare_subtree(path, tree))])

    def collect_again_and_again() -> None:
        while not stop.is_set():
            with noting_errors():
                removed.append(collected(published, sign=False).removed_objects)
            with at_work[0], at_work[1]:  # nobody works for longer than the grace period
                age(published.storage)

    collector = threading.Thread(target=collect_again_and_again)
    writers = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in (*writers, collector):
        thread.start()
    for thread in writers:
        thread.join(60)
    stop.set()
    collector.join(60)

    assert errors == []
    assert sum(removed) > 0
    assert findings(published, notes=False) == []


def _file(published: Published, data: bytes) -> Node:
    return Node(mode=0o100644, content=published.writer.ingester().add_bytes(data))


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


class DyingStore(LocalStore):
    """Ends the process at the n-th change."""

    left = 0

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def remove(self, objects: Sequence[StoredObject]) -> None:
        for each in objects:
            self._count()
            super().remove([each])

    def replace_named(self, name: str, content: bytes) -> None:
        self._count()
        super().replace_named(name, content)

    def remove_leftovers(self, before_unix_s: float) -> int:
        self._count()
        return super().remove_leftovers(before_unix_s)


def test_a_run_that_is_killed_at_any_change_leaves_a_good_repository(published: Published, tmp_path: Path) -> None:
    keys = load_keys(published.keys, published.name)
    ends = 0
    for changes in range(200):
        storage = tmp_path / f"copy{changes}"
        shutil.copytree(published.storage, storage)
        copy = Published(published.writer, storage, published.keys)
        store = DyingStore(storage, durable=False)
        store.left = changes
        try:
            collect(store, store.private, NOTHING_BUT_THE_NEWEST, keys)
        except Killed:
            ends += 1
        else:
            break
        assert findings(copy, notes=False) == []
        assert_catalogs_imply_what_is_below(store)
        assert collected(copy).is_complete
        assert findings(copy) == []
        assert not has(copy, b"content 3")
        shutil.rmtree(storage)

    assert ends >= 10
    print(f"\nkilled at {ends} changes")


def assert_catalogs_imply_what_is_below(store: LocalStore) -> None:
    from fs.format.entries import NestedReference
    from fs.publish.marks import read_catalog

    for each in list(store.objects()):
        if each.suffix is Suffix.CATALOG:
            catalog = read_catalog(store, NestedReference(b"", each.name, 0))
            assert all(LocalStore.has(store, name, suffix) for name, suffix, _ in catalog.objects())
            assert all(LocalStore.has(store, nested.hash, Suffix.CATALOG) for nested in catalog.nested())
            catalog.close()


def test_a_view_of_what_is_kept_still_reads(published: Published) -> None:
    collected(published)

    store = LocalStore(published.storage)
    assert view_of(store, read_manifest(store), "trunk-previous").read(b"/a/file4", 10_000) == b"content 4" * 100
    assert published.put(more=b"more") == 6
    assert findings(published) == []
