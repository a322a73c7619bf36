"""Mirrors of repositories of the reference server and of our own, over HTTP."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fs.errors import AbsentError, CorruptError, NotTrustedError, RefusedError, RollbackError, UnreachableError
from fs.format.hashes import Suffix
from fs.format.trust import load_public_keys
from fs.publish.check import CheckOptions, Verdict, check_repository
from fs.publish.gc import GcOptions, collect
from fs.publish.operations import MakeDirectory, Remove
from fs.publish.published import read_manifest
from fs.publish.replica_state import STATE, Scope
from fs.publish.replicate import ReplicaOptions, ReplicaReport, replicate_from
from fs.publish.revisions import view_of
from fs.store.local import LocalStore
from fs.store.places import open_storage
from tests.integration.fs.conftest import REPOSITORY
from tests.support.flaky_origin import FlakyOrigin, absent, broken, cut, flaky_origin, flipped
from tests.support.processes import running, stop, wait_until
from tests.support.published import Published, publish
from tests.support.reference import NAMES, unpack_reference


def mirror(url: str, target: Path, key: Path, *paths: bytes, **options: object) -> ReplicaReport:
    keys = load_public_keys(key.read_bytes())
    chosen = ReplicaOptions(keys=keys, scope=Scope(paths), **options)  # type: ignore[arg-type]
    return replicate_from([url], open_storage(str(target), durable=False), chosen)


def checked(target: Path, key: Path) -> Verdict:
    keys = load_public_keys(key.read_bytes())
    return check_repository(LocalStore(target), CheckOptions(keys=keys, now=datetime.now(UTC)))


def wrong(target: Path, key: Path) -> list[str]:
    return [f"{found.where}: {found.message}" for found in checked(target, key).findings if not found.is_note]


@pytest.fixture
def published(tmp_path: Path, made_keys: Path) -> Published:
    shutil.copytree(made_keys, tmp_path / "original/keys")
    made = publish(tmp_path / "original", REPOSITORY)
    made.commit(*(MakeDirectory(path, nested=True) for path in (b"/a", b"/a/deep", b"/b")))
    made.commit(
        made.file("/top", b"top"),
        made.file("/a/one", b"one" * 1000),
        made.file("/a/deep/two", b"two" * 1000),
        made.file("/b/three", b"three" * 1000),
        made.file("/b/large", bytes(range(256)) * 40_000),
    )
    return made


@pytest.fixture
def origin(published: Published) -> Iterator[FlakyOrigin]:
    with flaky_origin(published.storage) as server:
        yield server


@pytest.mark.parametrize("name", NAMES)
def test_a_reference_repository_is_mirrored_whole(name: str, shared: Path, tmp_path: Path) -> None:
    reference = unpack_reference(shared, name, tmp_path)
    target = tmp_path / "mirror"
    with flaky_origin(reference.storage) as server:
        report = mirror(server.url, target, reference.public_key)
        before = server.count("")
        again = mirror(server.url, target, reference.public_key)
        asked = server.count("") - before

    key = reference.public_key
    assert set(wrong(target, key)) <= set(wrong(reference.storage, key)), "the mirror has flaws of its own"
    assert (target / ".cvmfspublished").read_bytes() == (reference.storage / ".cvmfspublished").read_bytes()
    assert report.previous_revision == 0
    assert again.previous_revision == report.revision
    assert asked <= 3, "nothing new, so only manifest, whitelist and consent are asked for"
    print(f"\n{name}: {report.objects} objects, {report.stored_bytes} bytes, {report.revisions} revisions")


def test_a_mirror_is_checked_clean_and_says_when_it_was_made(
    published: Published, origin: FlakyOrigin, tmp_path: Path
) -> None:
    target = tmp_path / "mirror"

    report = mirror(origin.url, target, published.public_key)

    assert wrong(target, published.public_key) == []
    assert report.revision == published.writer.revision
    assert report.objects_there == 0 or report.objects > report.objects_there
    stamp = (target / ".cvmfs_last_snapshot").read_text()
    assert re.fullmatch(r"\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d UTC \d{4}\n", stamp)
    assert json.loads((target / ".cvmfs_status.json").read_text()) == {"last_snapshot": stamp.strip()}
    assert not (target / ".cvmfs_is_snapshotting").exists()
    assert not (target / ".cvmfs_master_replica").exists()


def test_an_update_fetches_only_what_is_new(published: Published, origin: FlakyOrigin, tmp_path: Path) -> None:
    target = tmp_path / "mirror"
    mirror(origin.url, target, published.public_key)
    published.commit(published.file("/a/deep/new", b"new"))

    report = mirror(origin.url, target, published.public_key)

    assert report.catalogs == 3, "the root, /a, /a/deep"
    assert report.objects == 3 + 1 + 1, "and the file, and the list of tags"
    assert report.previous_revision == report.revision - 1
    assert wrong(target, published.public_key) == []


def test_a_mirror_can_be_mirrored(published: Published, origin: FlakyOrigin, tmp_path: Path) -> None:
    mirror(origin.url, tmp_path / "first", published.public_key)

    with flaky_origin(tmp_path / "first") as server:
        mirror(server.url, tmp_path / "second", published.public_key)

    assert wrong(tmp_path / "second", published.public_key) == []


def test_a_part_is_mirrored_and_later_the_whole(published: Published, origin: FlakyOrigin, tmp_path: Path) -> None:
    target, key = tmp_path / "mirror", published.public_key

    mirror(origin.url, target, key, b"/a")

    store = LocalStore(target)
    view = view_of(store, read_manifest(store))
    assert view.read(b"/a/deep/two", 10_000) == b"two" * 1000
    assert not published_object(published, target, b"three" * 1000).exists()
    assert not published_object(published, target, b"top").exists()
    before = origin.count("")
    mirror(origin.url, target, key, b"/a")
    assert origin.count("") - before <= 3, "nothing is new"

    mirror(origin.url, target, key, b"/b/three", b"/a")
    assert published_object(published, target, b"three" * 1000).exists()
    assert not published_object(published, target, b"top").exists()

    mirror(origin.url, target, key)
    assert wrong(target, key) == []
    assert json.loads((target / STATE).read_text())["partial"] == []


def published_object(published: Published, target: Path, content: bytes) -> Path:
    return target / published.object_of(content).relative_to(published.storage)


@pytest.mark.parametrize("answer", [broken, flipped, cut], ids=["503", "flipped", "cut"])
def test_passing_faults_are_overcome(published: Published, origin: FlakyOrigin, tmp_path: Path, answer: object) -> None:
    origin.in_turn("data/", answer, None, answer, None, answer, None)  # type: ignore[arg-type]

    mirror(origin.url, tmp_path / "mirror", published.public_key)

    assert wrong(tmp_path / "mirror", published.public_key) == []


@pytest.mark.parametrize(
    ("answer", "error"), [(absent, AbsentError), (flipped, CorruptError), (broken, UnreachableError)]
)
def test_an_object_that_nobody_gives_stops_it_before_anything_shows(
    published: Published, origin: FlakyOrigin, tmp_path: Path, answer: object, error: type[Exception]
) -> None:
    target, key = tmp_path / "mirror", published.public_key
    missing = published.object_of(b"two" * 1000)
    mirror_path = str(missing.relative_to(published.storage))
    origin.always(mirror_path, answer)  # type: ignore[arg-type]

    with pytest.raises(error):
        mirror(origin.url, target, key)

    assert not (target / ".cvmfspublished").exists()
    assert (target / ".cvmfs_is_snapshotting").exists()
    assert_catalogs_imply_what_is_below(target)
    origin.mend()
    mirror(origin.url, target, key)
    assert wrong(target, key) == []


def assert_catalogs_imply_what_is_below(target: Path) -> None:
    from fs.format.catalog import Catalog
    from fs.format.compression import inflate
    from fs.format.databases import connect_bytes

    store = LocalStore(target)
    for each in list(store.objects()):
        if each.suffix is Suffix.CATALOG:
            stored = store.get(each.name, Suffix.CATALOG, limit_bytes=1 << 24)
            catalog = Catalog(connect_bytes(inflate(stored, limit_bytes=1 << 26)))
            assert all(store.has(name, suffix) for name, suffix, _ in catalog.objects())
            assert all(store.has(nested.hash, Suffix.CATALOG) for nested in catalog.nested())
            catalog.close()


def test_a_killed_run_is_taken_up(published: Published, origin: FlakyOrigin, tmp_path: Path) -> None:
    published.commit(*(published.file(f"/b/many{number}", b"%d" % number * 50) for number in range(150)))
    target, key = tmp_path / "mirror", published.public_key
    origin.delay_s = 0.02
    code = (
        "import sys; from pathlib import Path; from fs.format.trust import load_public_keys as k\n"
        "from fs.publish.replicate import ReplicaOptions, replicate_from; from fs.store.places import open_storage\n"
        "url, target, key = sys.argv[1:]\n"
        "replicate_from([url], open_storage(target), ReplicaOptions(keys=k(Path(key).read_bytes()), transfers=2))\n"
    )
    with running([sys.executable, "-c", code, origin.url, target, key], tmp_path / "log") as process:
        wait_until(lambda: origin.count("data/") > 60 or process.poll() is not None, "the middle of the copy")
        assert process.poll() is None
        process.kill()
        stop(process)
    origin.delay_s = 0.0
    assert not (target / ".cvmfspublished").exists()
    assert_catalogs_imply_what_is_below(target)
    before = origin.count("data/")

    report = mirror(origin.url, target, key)

    assert wrong(target, key) == []
    assert report.objects_there > 30
    assert origin.count("data/") - before < 150


def test_after_a_power_cut_nothing_recent_is_believed(
    published: Published, origin: FlakyOrigin, tmp_path: Path
) -> None:
    target, key = tmp_path / "mirror", published.public_key
    origin.always(str(published.object_of(b"top").relative_to(published.storage)), absent)
    with pytest.raises(AbsentError):
        mirror(origin.url, target, key)
    # as a file system may leave it: the name is there, the bytes are not
    spoiled = published_object(published, target, b"one" * 1000)
    spoiled.write_bytes(b"")
    state = json.loads((target / STATE).read_text())
    (target / STATE).write_text(json.dumps(state | {"boot": "the one before"}))
    origin.mend()

    mirror(origin.url, target, key)

    assert wrong(target, key) == []


def test_an_older_source_is_refused(published: Published, origin: FlakyOrigin, tmp_path: Path) -> None:
    target, key = tmp_path / "mirror", published.public_key
    old = (published.storage / ".cvmfspublished").read_bytes()
    published.put(more=b"more")
    mirror(origin.url, target, key)
    newer = (target / ".cvmfspublished").read_bytes()
    (published.storage / ".cvmfspublished").write_bytes(old)

    with pytest.raises(RollbackError):
        mirror(origin.url, target, key)
    assert (target / ".cvmfspublished").read_bytes() == newer


def test_who_signs_with_another_key_is_not_mirrored(published: Published, origin: FlakyOrigin, tmp_path: Path) -> None:
    other = publish(tmp_path / "other")

    with pytest.raises(NotTrustedError):
        mirror(origin.url, tmp_path / "mirror", other.public_key)
    assert not any((tmp_path / "mirror" / "data").rglob("*C"))


def test_the_originals_own_storage_is_no_place_for_a_mirror(
    published: Published, origin: FlakyOrigin, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError, match="original"):
        mirror(origin.url, published.storage, published.public_key)


def test_a_source_that_does_not_consent_is_left_alone(
    published: Published, origin: FlakyOrigin, tmp_path: Path
) -> None:
    (published.storage / ".cvmfs_master_replica").unlink()

    with pytest.raises(RefusedError, match="replicated"):
        mirror(origin.url, tmp_path / "mirror", published.public_key)
    mirror(origin.url, tmp_path / "mirror", published.public_key, needs_consent=False)


def test_a_mirror_of_another_repository_is_not_overwritten(
    published: Published, origin: FlakyOrigin, tmp_path: Path
) -> None:
    other = publish(tmp_path / "other", "other.example.org")
    with flaky_origin(other.storage) as server:
        mirror(server.url, tmp_path / "mirror", other.public_key)

    with pytest.raises(RefusedError, match="mirrors other"):
        mirror(origin.url, tmp_path / "mirror", published.public_key)


@pytest.mark.parametrize("paths", [(), (b"/a",)], ids=["whole", "part"])
def test_garbage_of_a_mirror_is_collected(
    published: Published, origin: FlakyOrigin, tmp_path: Path, paths: tuple[bytes, ...]
) -> None:
    target, key = tmp_path / "mirror", published.public_key
    mirror(origin.url, target, key, *paths)
    for turn in range(2):  # the last but one has a name
        published.commit(Remove(b"/a/deep/two"), published.file(f"/a/turn{turn}", b"%d" % turn))
        mirror(origin.url, target, key, *paths)
    store = LocalStore(target, durable=False)
    options = GcOptions(keep_revisions=1, keep_newer_s=-10, grace_s=-10, is_alone=True)

    report = collect(store, store.private, options)

    assert report.removed_objects > 0
    assert not published_object(published, target, b"two" * 1000).exists()
    assert view_of(store, read_manifest(store)).read(b"/a/turn1", 10) == b"1"
    assert paths or wrong(target, key) == []
    mirror(origin.url, target, key)
    assert wrong(target, key) == []


def test_a_mirror_that_is_half_made_is_not_collected(published: Published, origin: FlakyOrigin, tmp_path: Path) -> None:
    target, key = tmp_path / "mirror", published.public_key
    mirror(origin.url, target, key)
    published.put(new=b"new")
    origin.always(str(published.object_of(b"new").relative_to(published.storage)), absent)
    with pytest.raises(AbsentError):
        mirror(origin.url, target, key)
    store = LocalStore(target)

    with pytest.raises(RefusedError, match="replication"):
        collect(store, store.private, GcOptions())
