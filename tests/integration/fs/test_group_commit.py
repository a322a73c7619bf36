"""Threads that commit at the same time share a revision; what makes no sense fails alone."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from fs.errors import OvertakenError, RefusedError
from fs.format.trust import load_public_keys
from fs.publish.check import CheckOptions, check_repository
from fs.publish.operations import MakeDirectory, Operation, PutFile, Remove, Require, RequireRevision
from fs.publish.repository import Commit, Repository
from fs.store.local import LocalStore
from tests.integration.fs.conftest import REPOSITORY


def commit_at_once(
    repository: Repository, wanted: list[list[Operation]], tags: dict[int, str] | None = None
) -> list[Commit | BaseException]:
    """Commit all of *wanted*, each in a thread, when all of them wait for the lock."""
    with ThreadPoolExecutor(len(wanted)) as pool:
        with repository._locked(10):
            futures = [
                pool.submit(repository.commit, operations, timeout_s=60, tag=(tags or {}).get(number))
                for number, operations in enumerate(wanted)
            ]
            while len(repository._group._waiting) < len(wanted):
                threading.Event().wait(0.005)
        return [future.exception() or future.result() for future in futures]


def file(repository: Repository, path: bytes) -> PutFile:
    return PutFile(path, repository.ingester().add_bytes(path))


def assert_good(tmp_path: Path) -> None:
    keys = load_public_keys((tmp_path / "keys" / f"{REPOSITORY}.pub").read_bytes())
    verdict = check_repository(LocalStore(tmp_path / "storage"), CheckOptions(keys=keys, now=datetime.now(UTC)))
    assert verdict.findings == []


def test_what_waits_becomes_one_revision(repository: Repository, tmp_path: Path) -> None:
    wanted: list[list[Operation]] = [
        [MakeDirectory(b"/d%d" % number, nested=True), file(repository, b"/d%d/f" % number)] for number in range(8)
    ]

    commits = commit_at_once(repository, wanted)

    assert repository.revision == 2
    assert all(isinstance(commit, Commit) and commit.revision == 2 and commit.changed for commit in commits)
    assert [entry.name for entry in repository.view().list(b"")] == [b"d%d" % number for number in range(8)]
    assert_good(tmp_path)


def test_what_makes_no_sense_fails_alone_and_leaves_nothing(repository: Repository, tmp_path: Path) -> None:
    repository.commit([file(repository, b"/file")])
    wanted: list[list[Operation]] = [
        [file(repository, b"/a")],
        [file(repository, b"/half"), MakeDirectory(b"/file/below")],
        [file(repository, b"/b")],
        [file(repository, b"/other"), Require(b"/nothing")],
    ]

    first, refused, third, absent = commit_at_once(repository, wanted)

    assert isinstance(refused, RefusedError)
    assert isinstance(absent, OvertakenError)
    assert isinstance(first, Commit)
    assert first == third
    assert [entry.name for entry in repository.view().list(b"")] == [b"a", b"b", b"file"]
    assert_good(tmp_path)


def test_who_changes_nothing_is_told_so(repository: Repository) -> None:
    repository.commit([file(repository, b"/there")])

    new, nothing, gone = commit_at_once(
        repository, [[file(repository, b"/new")], [file(repository, b"/there")], [Remove(b"/never")]]
    )

    assert (new, nothing, gone) == (
        Commit(3, repository.manifest.root_catalog, changed=True),
        Commit(3, repository.manifest.root_catalog, changed=False),
        Commit(3, repository.manifest.root_catalog, changed=False),
    )


def test_each_may_name_the_revision(repository: Repository) -> None:
    commit_at_once(repository, [[file(repository, b"/a")], [file(repository, b"/b")], []], {0: "one", 2: "two"})

    tags = {tag.name: tag.revision for tag in repository.tags()}
    assert tags["one"] == tags["two"] == repository.revision == 2


def test_who_insists_on_a_revision_shares_it_with_nobody(repository: Repository, tmp_path: Path) -> None:
    wanted: list[list[Operation]] = [
        [file(repository, b"/a")],
        [RequireRevision(1), file(repository, b"/strict")],
        [file(repository, b"/b")],
        [RequireRevision(1), file(repository, b"/late")],
    ]

    one, strict, two, late = commit_at_once(repository, wanted)

    assert isinstance(strict, Commit)
    assert strict.revision == 2
    assert isinstance(late, OvertakenError)
    assert isinstance(one, Commit)
    assert one == two
    assert one.revision == 3
    assert_good(tmp_path)


def test_a_lost_race_is_everybodys(repository: Repository, tmp_path: Path) -> None:
    """Somebody without regard for locks publishes while a group is at work."""
    other = Repository.open(REPOSITORY, str(tmp_path / "storage"), tmp_path / "keys", durable=False)
    store = repository._store
    settle, hit = store.settle, []

    def overtaken() -> None:
        settle()
        if not hit:
            hit.append(True)
            other._lease = None
            with other._guard:
                other._base = store.read_named(".cvmfspublished", limit_bytes=10_000)
            other._publish(other.manifest, [])

    store.settle = overtaken  # type: ignore[method-assign]

    answers = commit_at_once(repository, [[file(repository, b"/a")], [file(repository, b"/b")]])

    assert [type(answer) for answer in answers] == [OvertakenError, OvertakenError]
    assert repository.commit([file(repository, b"/a")]).changed
