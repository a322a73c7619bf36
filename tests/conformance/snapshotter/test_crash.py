"""Death at each step of an operation: what the next start finds must be whole."""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from snapshotter import directories as directories_module
from snapshotter import metastore as metastore_module
from snapshotter.cvmfs import CvmfsLayers
from snapshotter.directories import Directories
from snapshotter.errors import SnapshotterError
from snapshotter.metastore import Metastore
from snapshotter.mounts import OverlayTraits
from snapshotter.operations import Snapshotter
from snapshotter.snapshots import Info
from tests.support.snapshotter import REF, FakeRepository

CHAIN = "sha256:" + "a" * 64
DIED = 99


@contextmanager
def opened(folder: Path) -> Iterator[tuple[Snapshotter, Directories, Metastore]]:
    directories = Directories(folder / "root")
    metastore = Metastore(directories.metadata)
    layers = CvmfsLayers(folder / "repository", timeout_s=5, by_layer_digest=False)
    try:
        yield (
            Snapshotter(
                directories=directories,
                metastore=metastore,
                layers=layers,
                traits=OverlayTraits(),
                now_ns=time.time_ns,
            ),
            directories,
            metastore,
        )
    finally:
        metastore.close()


async def prepare(service: Snapshotter) -> None:
    await service.prepare("new", "base", {})


async def serve(service: Snapshotter) -> None:
    await service.prepare("extract", "", {REF: CHAIN})


async def commit(service: Snapshotter) -> None:
    await service.commit("committed", "active", "", {})


async def remove(service: Snapshotter) -> None:
    await service.remove("active")


async def cleanup(service: Snapshotter) -> None:
    await service.cleanup()


def die(*_: object, **__: object) -> None:
    os._exit(DIED)


def before(holder: object, name: str) -> None:
    """The process ends where *holder* would be asked for *name*."""
    setattr(holder, name, die)


def after(holder: object, name: str) -> None:
    """The process ends when *name* of *holder* has been done."""
    real = getattr(holder, name)

    def done_and_dead(*arguments: object, **options: object) -> None:
        real(*arguments, **options)
        die()

    setattr(holder, name, done_and_dead)


WRITES = {
    "insert": (metastore_module.Writing, "insert"),
    "change": (metastore_module.Writing, "change"),
    "delete": (metastore_module.Writing, "delete"),
    "create": (Directories, "create"),
    "sync": (directories_module, "sync_directory"),
    "chown": (os, "chown"),
    "mounts": (Snapshotter, "_mounts"),
    "rename": (Path, "rename"),
    "set_aside": (Directories, "set_aside"),
    "delete_garbage": (Directories, "delete"),
    "lower": (Directories, "lower"),
}


@pytest.mark.parametrize(
    ("operation", "when", "step"),
    [
        (operation, when, step)
        for operation, steps in (
            (prepare, ("insert", "create", "sync", "chown", "rename", "lower", "mounts")),
            (serve, ("insert",)),
            (commit, ("change",)),
            (remove, ("delete",)),
            (cleanup, ("set_aside", "rename", "delete_garbage")),
        )
        for step in steps
        for when in (before, after)
    ],
)
def test_nothing_is_half_done(
    tmp_path: Path,
    operation: Callable[[Snapshotter], object],
    when: Callable[[object, str], None],
    step: str,
) -> None:
    repository = FakeRepository(tmp_path / "repository")
    repository.add_chain([CHAIN], [{"a": "1"}])
    with opened(tmp_path) as (service, _, _):
        anyio.run(furnish, service)

    child = os.fork()
    if child == 0:
        try:
            with opened(tmp_path) as (service, _, _):
                when(*WRITES[step])
                anyio.run(operation, service)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == DIED, "the step was not reached"
    with opened(tmp_path) as (service, directories, metastore):
        anyio.run(inspect, service, directories, metastore)
        anyio.run(again, operation, service)
        anyio.run(service.cleanup)
        rows = ordinary(metastore)
        assert {path.name for path in (tmp_path / "root/s").iterdir()} == {str(number) for number in rows}
        assert list((tmp_path / "root/t").iterdir()) == []
    with sqlite3.connect(tmp_path / "root/metadata.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def furnish(service: Snapshotter) -> None:
    """A base, an Active snapshot, and garbage."""
    await service.prepare("base-active", "", {})
    await service.commit("base", "base-active", "", {})
    await service.prepare("active", "", {})
    await service.prepare("garbage", "", {})
    await service.remove("garbage")


def ordinary(metastore: Metastore) -> dict[int, Info]:
    with metastore.reading() as rows:
        return {row.number: row.info for row in rows.page(after=0, limit=100) if row.source is None}


async def inspect(service: Snapshotter, directories: Directories, metastore: Metastore) -> None:
    """No row is without its directory, and what has mounts gives them."""
    for number, info in ordinary(metastore).items():
        assert directories.content(number).is_dir()
        if info.kind.word != "committed":
            assert await service.mounts(info.name)


async def again(operation: Callable[[Snapshotter], object], service: Snapshotter) -> None:
    """A retry works, or says that it had worked."""
    try:
        await operation(service)  # type: ignore[misc]
    except SnapshotterError as error:
        assert any(word in str(error) for word in ("exists", "does not exist", "is available"))  # noqa: PT017
