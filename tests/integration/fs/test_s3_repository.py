"""A repository in a bucket: published, checked, collected, mirrored from and to, and served by the server itself."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fs.errors import OvertakenError, RefusedError, UnreachableError
from fs.format.hashes import Suffix
from fs.format.trust import load_public_keys
from fs.publish.check import CheckOptions, check_repository
from fs.publish.gc import GcOptions, collect
from fs.publish.keys import load_keys
from fs.publish.operations import MakeDirectory, Remove
from fs.publish.replicate import ReplicaOptions, replicate_from
from fs.publish.repository import Repository, Settings
from fs.publish.sql_leases import SqlLeases
from fs.store.places import open_storage
from tests.integration.fs.conftest import REPOSITORY
from tests.support.faulty_proxy import Fault, run_faulty_proxy
from tests.support.flaky_origin import flaky_origin
from tests.support.published import Published
from tests.support.s3 import CREDENTIALS, S3Server, run_s3

pytest.importorskip("boto3")
pytest.importorskip("moto")


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with run_s3(tmp_path_factory.mktemp("s3")) as server:
            yield server


@pytest.fixture
def url(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return f"s3://{s3_server.new_bucket()}/repositories/one?endpoint={s3_server.endpoint}&region=us-east-1"


@pytest.fixture
def repository(url: str, made_keys: Path) -> Repository:
    made = Repository.create(REPOSITORY, url, made_keys)
    files = Published(made, Path("/nowhere"), made_keys)
    made.commit([MakeDirectory(b"/a", nested=True), files.file("/a/one", b"one" * 1000), files.file("/top", b"top")])
    return made


def wrong(url: str, keys: Path) -> list[str]:
    public = load_public_keys((keys / f"{REPOSITORY}.pub").read_bytes())
    verdict = check_repository(open_storage(url).store, CheckOptions(keys=public, now=datetime.now(UTC)))
    return [found.message for found in verdict.findings if not found.is_note]


def put(writer: Repository, path: str, content: bytes) -> int:
    return writer.commit([Published(writer, Path("/nowhere"), Path("/nowhere")).file(path, content)]).revision


def test_what_is_published_is_checked_clean_and_read_by_another_process(
    repository: Repository, url: str, made_keys: Path, tmp_path: Path
) -> None:
    assert wrong(url, made_keys) == []
    again = Repository.open(REPOSITORY, url, made_keys)
    assert again.revision == 2
    assert again.view().read(b"/a/one", 10_000) == b"one" * 1000
    assert put(again, "/a/two", b"two") == 3
    assert repository.view().read(b"/a/two", 10) == b"two"
    assert next((tmp_path / "state/unpackd/storage").iterdir()).stat().st_mode & 0o077 == 0
    with pytest.raises(RefusedError, match="already"):
        Repository.create(REPOSITORY, url, made_keys)


def test_equal_contents_are_uploaded_once(repository: Repository, url: str, made_keys: Path) -> None:
    before = sum(1 for _ in open_storage(url).store.objects())

    again = Repository.open(REPOSITORY, url, made_keys)
    again.ingester().add_bytes(b"one" * 1000)

    assert sum(1 for _ in open_storage(url).store.objects()) == before


def test_the_index_of_contents_is_not_believed_about_another_bucket(
    repository: Repository, s3_server: S3Server, url: str, made_keys: Path
) -> None:
    """Emptied behind the publisher's back: what the index says is there is put again."""
    repository.ingester().flush()
    store = open_storage(url).store
    store.remove([each for each in store.objects() if each.suffix is Suffix.PLAIN])
    again = Repository.open(REPOSITORY, url, made_keys)

    content = again.ingester().add_bytes(b"one" * 1000)

    assert content.hash is not None
    assert open_storage(url).store.has(content.hash, Suffix.PLAIN)


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.LOST_REPLY, Fault.RESET])
def test_a_commit_survives_a_fault_of_the_manifests_upload(
    repository: Repository, s3_server: S3Server, url: str, made_keys: Path, fault: Fault
) -> None:
    with run_faulty_proxy(s3_server.port) as proxy:
        through = Repository.open(REPOSITORY, url.replace(s3_server.endpoint, proxy.endpoint), made_keys)
        rule = proxy.spoil("PUT", r"\.cvmfspublished", fault)

        assert put(through, "/more", b"more") == 3

    assert rule.hits == 1
    assert wrong(url, made_keys) == []
    assert repository.view().lookup(b"/more") is not None


def test_a_server_that_goes_away_leaves_the_old_revision(
    repository: Repository, s3_server: S3Server, url: str, made_keys: Path
) -> None:
    with run_faulty_proxy(s3_server.port) as proxy:
        through = Repository.open(REPOSITORY, url.replace(s3_server.endpoint, proxy.endpoint), made_keys)
        proxy.spoil("PUT", r"\.cvmfs", Fault.RESET, count=1000)

        with pytest.raises(UnreachableError):
            put(through, "/more", b"more")

    assert repository.revision == 2
    assert wrong(url, made_keys) == []


def test_writers_on_several_machines_take_turns(
    repository: Repository, url: str, made_keys: Path, tmp_path: Path
) -> None:
    database = f"sqlite:///{tmp_path}/leases.db"
    errors: list[Exception] = []

    def write(number: int) -> None:
        settings = Settings(leases=SqlLeases.open(database))
        writer = Repository.open(REPOSITORY, url, made_keys, settings=settings)
        writer._private = tmp_path / f"machine{number}"
        writer._private.mkdir()
        try:
            for turn in range(3):
                put(writer, f"/w{number}-{turn}", b"%d %d" % (number, turn))
        except Exception as error:  # noqa: BLE001  # shown below
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert errors == []
    assert repository.revision == 2 + 6
    assert wrong(url, made_keys) == []


def test_without_a_lease_the_slower_writer_is_refused(repository: Repository, url: str, made_keys: Path) -> None:
    slow = Repository.open(REPOSITORY, url, made_keys)
    settle = slow._store.settle

    def held_up() -> None:
        settle()
        quick = Repository.open(REPOSITORY, url, made_keys)
        quick._private = quick._private / "other"  # as on another machine
        quick._private.mkdir()
        put(quick, "/quick", b"quick")

    slow._store.settle = held_up  # type: ignore[method-assign]

    with pytest.raises(OvertakenError):
        put(slow, "/slow", b"slow")

    assert repository.revision == 3
    assert repository.view().lookup(b"/quick") is not None
    assert wrong(url, made_keys) == []


def test_garbage_is_collected(repository: Repository, url: str, made_keys: Path) -> None:
    repository.commit([Remove(b"/a/one")])
    put(repository, "/last", b"last")
    storage = open_storage(url)
    # the server's clock counts in seconds, so everything is at most a moment old
    options = GcOptions(keep_revisions=1, keep_newer_s=-10, grace_s=-10, is_alone=True)

    report = collect(storage.store, storage.private, options, load_keys(made_keys, REPOSITORY))

    assert report.removed_objects > 0
    assert wrong(url, made_keys) == []
    assert put(Repository.open(REPOSITORY, url, made_keys), "/a/one", b"one" * 1000) == 5
    assert wrong(url, made_keys) == []


def test_mirrors_from_the_buckets_own_server_and_into_a_bucket(
    repository: Repository, s3_server: S3Server, url: str, made_keys: Path, tmp_path: Path
) -> None:
    keys = load_public_keys((made_keys / f"{REPOSITORY}.pub").read_bytes())
    bucket = url.split("/")[2]
    s3_server.client().put_bucket_acl(Bucket=bucket, ACL="public-read")
    for row in s3_server.client().list_objects_v2(Bucket=bucket)["Contents"]:
        s3_server.client().put_object_acl(Bucket=bucket, Key=row["Key"], ACL="public-read")
    target = f"s3://{s3_server.new_bucket()}?endpoint={s3_server.endpoint}"

    replicate_from(
        [f"{s3_server.endpoint}/{bucket}/repositories/one"],
        open_storage(str(tmp_path / "m")),
        ReplicaOptions(keys=keys),
    )
    with flaky_origin(tmp_path / "m") as origin:
        report = replicate_from([origin.url], open_storage(target), ReplicaOptions(keys=keys))

    assert report.revision == 2
    assert wrong(str(tmp_path / "m"), made_keys) == []
    assert wrong(target, made_keys) == []
