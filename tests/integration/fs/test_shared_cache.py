"""Daemons that share one cache directory: one quota, one transfer, and a kill of one is nothing to the other."""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.flaky_origin import flaky_origin
from tests.support.mounts import TestMount, mounted
from tests.support.processes import unmount_below, wait_until
from tests.support.published import Published, publish

pytestmark = pytest.mark.root

SIZE = 300_000
FILES = 24


@pytest.fixture
def contents() -> dict[str, bytes]:
    return {f"f{number:02}": os.urandom(SIZE) for number in range(FILES)}


@pytest.fixture
def published(tmp_path: Path, contents: dict[str, bytes]) -> Iterator[Published]:
    made = publish(tmp_path / "made")
    made.put(**contents)
    yield made
    unmount_below(tmp_path)


@contextmanager
def two_mounts(
    published: Published, url: str, tmp_path: Path, *options: str, frontends: Sequence[str] = ("pyfuse3", "pyfuse3")
) -> Iterator[list[TestMount]]:
    """Of one repository, over the cache in ``tmp_path/shared``."""
    with ExitStack() as stack:
        shared = ("--cache", tmp_path / "shared", *options)
        yield [
            stack.enter_context(
                mounted(published.name, [url], published.public_key, tmp_path / str(number), *shared, "--frontend", one)
            )
            for number, one in enumerate(frontends)
        ]


def test_what_one_mount_fetched_the_other_has(published: Published, contents: dict[str, bytes], tmp_path: Path) -> None:
    frontends = ("pyfuse3", "wire")
    with (
        flaky_origin(published.storage) as origin,
        two_mounts(published, origin.url, tmp_path, frontends=frontends) as (one, other),
    ):
        for name, content in contents.items():
            assert (one.path / name).read_bytes() == content
        before = origin.count("/data/")
        for name, content in contents.items():
            assert (other.path / name).read_bytes() == content
        assert origin.count("/data/") == before
        assert other.control("cache")["damaged"] == 0
        assert one.control("cache")["used_bytes"] == other.control("cache")["used_bytes"] == _on_disk(tmp_path)


def test_two_who_want_an_object_at_once_cause_one_transfer(
    published: Published, contents: dict[str, bytes], tmp_path: Path
) -> None:
    name = published.object_of(contents["f00"]).name
    with flaky_origin(published.storage) as origin, two_mounts(published, origin.url, tmp_path) as mounts:
        origin.delay_s = 0.5
        read: list[bytes] = []
        threads = [
            threading.Thread(target=lambda path=mount.path / "f00": read.append(path.read_bytes())) for mount in mounts
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert read == [contents["f00"]] * 2
        assert origin.count(name) == 1


def test_a_kill_of_one_under_a_small_quota_is_nothing_to_the_other(
    published: Published, contents: dict[str, bytes], tmp_path: Path
) -> None:
    quota = SIZE * FILES // 4
    hashes = {name: hashlib.sha256(content).digest() for name, content in contents.items()}
    wrong: list[str] = []
    is_over = threading.Event()

    def read_on(mount: TestMount, seed: int, *, may_fail: bool) -> None:
        number = seed
        while not is_over.is_set():
            number = (number * 1103515245 + 12345) % 2**31
            name = f"f{number // 65536 % FILES:02}"
            try:
                descriptor = os.open(mount.path / name, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # the daemon shall be asked
                with os.fdopen(descriptor, "rb") as stream:
                    if hashlib.sha256(stream.read()).digest() != hashes[name]:
                        wrong.append(f"{name} is wrong")
            except OSError as error:
                if may_fail:
                    return
                wrong.append(f"{name}: {error}")

    url = published.storage.as_uri()
    with two_mounts(published, url, tmp_path, "--quota", str(quota)) as (one, other):
        readers = [threading.Thread(target=read_on, args=(other, seed), kwargs={"may_fail": False}) for seed in (1, 2)]
        readers += [threading.Thread(target=read_on, args=(one, seed), kwargs={"may_fail": True}) for seed in (3, 4)]
        for reader in readers:
            reader.start()
        time.sleep(2)
        os.kill(one.pid, signal.SIGKILL)
        time.sleep(2)
        is_over.set()
        for reader in readers:
            reader.join(60)
        assert wrong == []
        state = other.control("cache")
        assert state["evicted"] > 0
        assert state["damaged"] == 0
        assert _on_disk(tmp_path) <= quota + 2 * SIZE
    with mounted(
        published.name,
        [url],
        published.public_key,
        tmp_path / "2",
        "--cache",
        tmp_path / "shared",
        "--quota",
        str(quota),
    ) as again:
        for name, content in contents.items():
            assert (again.path / name).read_bytes() == content
        wait_until(lambda: again.control("cache")["used_bytes"] == _on_disk(tmp_path), "the number is right again")


def _on_disk(tmp_path: Path) -> int:
    return sum(file.stat().st_size for file in (tmp_path / "shared" / "objects").rglob("*") if file.is_file())
