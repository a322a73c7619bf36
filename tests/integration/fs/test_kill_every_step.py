"""kill -9 of a real process before each of its changes to the disk, one after the other, for every kind of work.

After each the repository is at the old or the new revision, the check is clean, and running again completes the work.
Each seventh change is taken, and with UNPACKD_TEST_KILLS=all (``make kills``) each.
"""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fs.format.entries import NestedReference
from fs.format.hashes import Suffix
from fs.format.paths import ROOT
from fs.format.trust import load_public_keys
from fs.publish.check import CheckOptions, check_repository
from fs.publish.marks import read_catalog
from fs.publish.operations import Remove
from fs.publish.published import MANIFEST, read_manifest, read_whitelist
from fs.publish.repository import Repository
from fs.store.local import LocalStore
from tests.support.mortal import NAME, Mortals, contents, image, make_old, mortals, turn

STRIDE = 1 if os.environ.get("UNPACKD_TEST_KILLS") == "all" else 7


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mortals]:
    with mortals(tmp_path_factory.mktemp("mortals") / "log") as running:
        yield running


@pytest.fixture
def world(tmp_path: Path, made_keys: Path, server: Mortals) -> Path:
    """A repository with two revisions that hold images."""
    folder = tmp_path / "world"
    folder.mkdir()
    shutil.copytree(made_keys, folder / "keys")
    Repository.create(NAME, str(folder / "storage"), folder / "keys", durable=False)
    for number in range(2):
        assert server.run("graft", folder, number)
    return folder


def opened(folder: Path) -> Repository:
    return Repository.open(NAME, str(folder / "storage"), folder / "keys", durable=False)


def revision(folder: Path) -> int:
    return read_manifest(LocalStore(folder / "storage")).revision


def wrong(folder: Path, storage: str = "storage") -> list[str]:
    keys = load_public_keys((folder / "keys" / f"{NAME}.pub").read_bytes())
    verdict = check_repository(LocalStore(folder / storage), CheckOptions(keys=keys, now=datetime.now(UTC)))
    return [found.message for found in verdict.findings if not found.is_note]


def at_every_step(
    server: Mortals, job: str, folder: Path, finished: Callable[[int], bool], *, revisions: int, least: int
) -> None:
    """Kill *job* before each of its changes, and run it again.

    Args:
        server: runs it.
        job: which.
        folder: of the repository.
        finished: says if the job with that number is complete.
        revisions: how many a complete run makes.
        least: how many steps there are at least.
    """
    for step in itertools.count(0, STRIDE):
        number = step // STRIDE + 2
        before = revision(folder)
        is_over = server.run(job, folder, number, after=step)

        after = revision(folder) if not is_over else before + revisions
        assert after in (before, before + revisions), f"killed before change {step}"
        assert wrong(folder) == [], f"killed before change {step}"
        if not is_over:
            assert server.run(job, folder, number)
        assert revision(folder) - before in (revisions, revisions + (after - before))
        assert finished(number)
        if is_over:
            break
    assert wrong(folder) == []
    assert step >= least
    print(f"\n{job}: {step // STRIDE} times killed, {step} steps")


def test_ingest(server: Mortals, world: Path) -> None:
    store = LocalStore(world / "storage")

    def finished(number: int) -> bool:
        before = {each.name for each in store.objects()}
        assert server.run("ingest", world, number)
        return {each.name for each in store.objects()} == before

    at_every_step(server, "ingest", world, finished, revisions=0, least=12)


def test_graft_and_commit_with_a_tag_under_a_lease(server: Mortals, world: Path) -> None:
    def finished(number: int) -> bool:
        repository = opened(world)
        view = repository.view()
        return (
            view.readlink(b"/turn") == b"%d" % number
            and view.read(image(number) + b"/usr/f2", 10_000) == contents(number)[2]
            and {tag.name: tag.revision for tag in repository.tags()}[turn(number)] == repository.revision
        )

    at_every_step(server, "graft", world, finished, revisions=1, least=40)


def test_tag(server: Mortals, world: Path) -> None:
    def finished(number: int) -> bool:
        return [tag.name for tag in opened(world).tags() if tag.name.startswith("tag-")] == [f"tag-{number}"]

    at_every_step(server, "tag", world, finished, revisions=0, least=10)


def test_rollback(server: Mortals, world: Path) -> None:
    def finished(number: int) -> bool:
        return opened(world).view().readlink(b"/turn") == b"%d" % (number % 2)

    at_every_step(server, "rollback", world, finished, revisions=1, least=15)


def test_resign(server: Mortals, world: Path) -> None:
    at_every_step(server, "resign", world, lambda _: True, revisions=0, least=3)


def test_exchange_of_the_key(server: Mortals, world: Path) -> None:
    """A run that is taken up may exchange the key once more; what counts is that readers always believe."""
    files = sorted(path.name for path in (world / "keys").iterdir())
    for step in itertools.count(0, STRIDE):
        is_over = server.run("rotate", world, 2 * (step // STRIDE), after=step)
        assert wrong(world) == [], f"killed before change {step}"
        if is_over:
            break
        assert server.run("rotate", world, 2 * (step // STRIDE) + 1)
        assert len(read_whitelist(LocalStore(world / "storage")).fingerprints) >= 2
        assert sorted(path.name for path in (world / "keys").iterdir() if path.name[0] != ".") == files
        assert wrong(world) == []
    assert step >= 20
    print(f"\nrotate: {step // STRIDE} times killed, {step} steps")


def test_gc(server: Mortals, world: Path, tmp_path: Path) -> None:
    repository = opened(world)
    for number in range(2):
        repository.remove_tag(turn(number))
    repository.commit([Remove(b"/.flat")])
    repository.commit([Remove(b"/turn")])
    make_old(world / "storage")
    live = 0
    for step in itertools.count(0, STRIDE):
        folder = tmp_path / f"copy{step}"
        shutil.copytree(world, folder)
        store = LocalStore(folder / "storage")

        is_over = server.run("gc", folder, after=step)

        assert wrong(folder) == [], f"killed before change {step}"
        assert revision(folder) == repository.revision
        if not is_over:
            assert server.run("gc", folder)
        assert wrong(folder) == []
        left = sum(1 for _ in store.objects())
        assert live in (0, left), "every run ends with the same objects"
        live = left
        shutil.rmtree(folder)
        if is_over:
            break
    assert live < sum(1 for _ in LocalStore(world / "storage").objects()) - 10
    assert step >= 20
    print(f"\ngc: {step // STRIDE} times killed, {step} steps")


def test_replicate(server: Mortals, world: Path) -> None:
    for step in itertools.count(0, STRIDE):
        is_over = server.run("replicate", world, after=step)

        mirror = LocalStore(world / "mirror")
        for each in list(mirror.objects()):
            if each.suffix is Suffix.CATALOG:  # that it is there implies everything below it
                catalog = read_catalog(mirror, NestedReference(ROOT, each.name, 0))
                assert all(mirror.has(name, suffix) for name, suffix, _ in catalog.objects())
                assert all(mirror.has(nested.hash, Suffix.CATALOG) for nested in catalog.nested())
                catalog.close()
        if (world / "mirror" / MANIFEST).exists():
            assert wrong(world, "mirror") == [], f"killed before change {step}"
        if not is_over:
            assert server.run("replicate", world)
        assert wrong(world, "mirror") == []
        assert not (world / "mirror/.cvmfs_is_snapshotting").exists()
        assert (world / "mirror/.cvmfs_last_snapshot").exists()
        shutil.rmtree(world / "mirror")
        if is_over:
            break
    assert step >= 40
    print(f"\nreplicate: {step // STRIDE} times killed, {step} steps")
