"""Caches that were filled beforehand, and objects in memory."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fs.client.memory import MemoryTier
from fs.format.hashes import Hash
from tests.support.flaky_origin import flaky_origin
from tests.support.mounts import mounted, unpackd
from tests.support.processes import unmount_below, wait_until
from tests.support.published import Published, publish

CONTENT = os.urandom(400_000)


@pytest.fixture
def published(tmp_path: Path) -> Iterator[Published]:
    made = publish(tmp_path / "made")
    made.nest("/dir")
    made.writer.commit([made.file("/dir/inner", b"inside"), made.file("/file", CONTENT)], tag="then")
    yield made
    unmount_below(tmp_path)


def _preload(published: Published, url: str, target: Path, *more: str | Path) -> dict[str, int]:
    done = unpackd("repo", "preload", target, *more, "--url", url, "--pubkey", published.public_key, "--json")
    assert done.returncode == 0, done.stderr
    facts: dict[str, int] = json.loads(done.stdout)
    return facts


@pytest.mark.root
def test_a_preloaded_cache_on_a_read_only_disk_needs_no_server(published: Published, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with flaky_origin(published.storage) as origin:
        facts = _preload(published, origin.url, disk)
        assert (facts["failed"], facts["missing"], facts["tags"]) == (0, 0, 3)
        assert facts["fetched"] == facts["objects"] >= 2
        assert _preload(published, origin.url, disk)["fetched"] == 0
        url = origin.url
    before = _state(disk)
    subprocess.run(["mount", "--bind", disk, disk], check=True, timeout=30)
    subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True, timeout=30)
    try:
        for number, options in enumerate([(), ("--frontend", "wire"), ("--tag", "then")]):
            work = tmp_path / f"work{number}"
            added = (*options, "--preloaded", disk)
            with mounted(published.name, [url], published.public_key, work, *added) as mount:
                assert (mount.path / "file").read_bytes() == CONTENT
                assert (mount.path / "dir" / "inner").read_bytes() == b"inside"
                status = mount.control("status")
                assert status["is_offline"]
                assert status["cache"]["objects"] == 0
                assert status["cache"]["preloaded_hits"] > 2
    finally:
        wait_until(
            lambda: subprocess.run(["umount", disk], check=False, timeout=30).returncode == 0, "the daemons' end", 20
        )
    assert _state(disk) == before


def _state(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.root
def test_what_is_not_preloaded_or_damaged_there_is_fetched(published: Published, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with flaky_origin(published.storage) as origin:
        _preload(published, origin.url, disk, "/file")
        newest = published.put(later=b"later")
        named = next(one for one in (disk / "objects").rglob("*") if one.is_file() and one.stat().st_size > 400_000)
        body = bytearray(named.read_bytes())
        body[1000] ^= 1
        named.write_bytes(body)
        origin.requests.clear()
        with mounted(published.name, [origin.url], published.public_key, tmp_path / "w", "--preloaded", disk) as mount:
            assert mount.control("status")["revision"] == newest
            assert (mount.path / "later").read_bytes() == b"later"
            assert (mount.path / "dir" / "inner").read_bytes() == b"inside"
            assert (mount.path / "file").read_bytes() == CONTENT
            assert "preloaded_object_damaged" in mount.log_text()
        assert origin.count(published.object_of(CONTENT).name) == 1
        assert named.read_bytes() == body


def test_what_is_no_preloaded_cache_is_refused(published: Published, tmp_path: Path) -> None:
    done = unpackd(
        "mount", published.name, tmp_path, "--url", published.storage.as_uri(), "--pubkey", published.public_key,
        "--cache", tmp_path / "c", "--preloaded", tmp_path / "none",
    )  # fmt: skip
    assert (done.returncode, "no preloaded cache" in done.stderr) == (10, True), done.stderr


def test_parts_that_are_not_there_are_said(published: Published, tmp_path: Path) -> None:
    where = ("--url", published.storage.as_uri(), "--pubkey", published.public_key)
    done = unpackd("repo", "preload", tmp_path / "d", "/file", "/none", *where)
    assert (done.returncode, "1 missing" in done.stderr) == (3, True), done.stderr


@pytest.mark.root
def test_memory_answers_for_what_was_read_last(published: Published, tmp_path: Path) -> None:
    files = {f"f{number}": os.urandom(50_000) for number in range(20)}
    published.put(**files)
    with flaky_origin(published.storage) as origin:
        options = ("--memory", "500k")
        with mounted(published.name, [origin.url], published.public_key, tmp_path / "w", *options) as mount:
            for name, content in files.items():
                assert (mount.path / name).read_bytes() == content
            state = mount.control("cache")
            assert 400_000 < state["memory_bytes"] <= 500_000
            before = origin.count("/data/")
            Path("/proc/sys/vm/drop_caches").write_text("1")  # what the kernel has is not asked for
            for name in list(files)[-9:]:
                assert (mount.path / name).read_bytes() == files[name]
            assert origin.count("/data/") == before
            assert mount.control("cache")["memory_hits"] >= 9


def test_the_memory_tier_keeps_to_its_bound_and_to_what_is_used() -> None:
    tier = MemoryTier(1000)
    names = [Hash.of(b"%d" % number) for number in range(20)]
    for name in names[:10]:
        tier.put(name, bytes(100))
    assert tier.get(names[0]) == bytes(100)
    tier.put(names[10], bytes(100))
    assert tier.used_bytes == 1000
    assert names[0] in tier
    assert names[1] not in tier
    tier.put(names[11], bytes(126))
    assert names[11] not in tier
    assert MemoryTier().takes(1) is False
