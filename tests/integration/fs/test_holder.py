"""The session holder: daemons are killed, restarted and replaced under those who read."""

import fcntl
import hashlib
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fs.client.holder import kernel_can_resume
from fs.client.mountpoints import own_file
from fs.publish.operations import MakeDirectory, Remove
from tests.support.flaky_origin import flaky_origin
from tests.support.mounts import TestMount, mounted, unpackd
from tests.support.processes import unmount_below, wait_until
from tests.support.published import Published, publish

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not kernel_can_resume(platform.release()), reason="needs Linux 6.9 or later"),
]

FRONTENDS = ("wire", "pyfuse3")
LONG = os.urandom(1 << 20) * 24
SMALL = {f"/dir/f{number}": os.urandom(5000 + number) for number in range(60)}

_READER = """
import hashlib, os, sys
path, rounds = sys.argv[1], int(sys.argv[2])
for _ in range(rounds):
    seen = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY)
    while piece := os.read(descriptor, 1 << 20):
        seen.update(piece)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    print(seen.hexdigest(), flush=True)
"""


@pytest.fixture
def published(tmp_path: Path) -> Published:
    made = publish(tmp_path / "made")
    made.commit(MakeDirectory(b"/dir", nested=True), made.file("/long", LONG))
    made.commit(*(made.file(path, content) for path, content in SMALL.items()))
    return made


@pytest.fixture(params=FRONTENDS)
def options(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return ("--frontend", request.param)


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "work"
    unmount_below(tmp_path)


def _daemon(mount: TestMount) -> int:
    return int(mount.control("status")["pid"])


def _kill_daemon(mount: TestMount) -> None:
    """Kill the daemon that the holder, our mount's process, has now, whatever it is doing."""
    children = Path(f"/proc/{mount.pid}/task/{mount.pid}/children")
    wait_until(lambda: bool(children.read_text()), "there is a daemon")
    for child in children.read_text().split():
        os.kill(int(child), signal.SIGKILL)


def test_readers_go_on_through_five_kills(published: Published, work: Path, options: tuple[str, ...]) -> None:
    with mounted(published.name, [published.storage.as_uri()], published.public_key, work, *options) as mount:
        kept = (mount.path / "dir" / "f7").open("rb")
        command = [sys.executable, "-c", _READER, str(mount.path / "long"), "20"]
        reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        over = threading.Event()

        def read_small() -> int:
            rounds = 0
            while not over.is_set():
                for path, content in SMALL.items():
                    with Path(f"{mount.path}{path}").open("rb") as stream:
                        assert stream.read() == content
                        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert len(os.listdir(mount.path / "dir")) == len(SMALL)
                rounds += 1
            return rounds

        with ThreadPoolExecutor(4) as pool:
            readers = [pool.submit(read_small) for _ in range(4)]
            for _ in range(5):
                time.sleep(0.7)
                _kill_daemon(mount)
            assert _status_answers(mount)
            over.set()
            assert all(one.result(60) > 0 for one in readers)
        output, _ = reader.communicate(timeout=90)
        assert output.split() == [hashlib.sha256(LONG).hexdigest()] * 20
        assert kept.read() == SMALL["/dir/f7"]
        kept.close()
        assert mount.log_text().count("daemon_follows") == 5
        assert "request_broken" not in mount.log_text()


def _status_answers(mount: TestMount) -> bool:
    wait_until(lambda: unpackd("mountctl", mount.path, "status").returncode == 0, "the daemon answers", timeout_s=30)
    return True


def test_a_kill_while_a_request_waits_for_the_server(
    published: Published, work: Path, options: tuple[str, ...]
) -> None:
    with flaky_origin(published.storage) as origin:
        slow = threading.Event()

        def late(path: str, content: bytes) -> tuple[int, bytes]:
            if slow.is_set() and "/data/" in path:
                time.sleep(1.5)
            return 200, content

        origin.answer = late  # type: ignore[method-assign]
        with mounted(published.name, [origin.url], published.public_key, work, *options) as mount:
            (mount.path / "dir" / "f1").stat()
            slow.set()
            with ThreadPoolExecutor(8) as pool:
                paths = list(SMALL)[:8]
                reads = [pool.submit(Path(f"{mount.path}{path}").read_bytes) for path in paths]
                time.sleep(0.4)
                _kill_daemon(mount)
                slow.clear()
                assert [one.result(60) for one in reads] == [SMALL[path] for path in paths]


def test_a_new_life_knows_what_the_kernel_knows_and_revokes_what_has_changed(
    published: Published, work: Path, options: tuple[str, ...]
) -> None:
    with mounted(published.name, [published.storage.as_uri()], published.public_key, work, *options) as mount:
        late = mount.path / "late"
        assert not late.exists()
        assert len(os.listdir(mount.path / "dir")) == len(SMALL)
        same = (mount.path / "dir" / "f3").stat()
        gone = (mount.path / "dir" / "f4").open("rb")
        inside = os.open(mount.path / "dir", os.O_RDONLY | os.O_DIRECTORY)
        changed = (mount.path / "dir" / "f5").open("rb")
        known = mount.control("status")["known_inodes"]
        published.commit(
            published.file("/late", b"came"), published.file("/dir/f5", b"new"), Remove(b"/dir/f4"),
        )  # fmt: skip
        before = mount.control("revision")["revision"]
        _kill_daemon(mount)  # the next one begins with the new revision
        assert _status_answers(mount)
        assert mount.control("revision")["revision"] == before + 1
        assert mount.control("status")["known_inodes"] >= known
        assert late.read_bytes() == b"came"
        assert (mount.path / "dir" / "f5").read_bytes() == b"new"
        assert not (mount.path / "dir" / "f4").exists()
        assert "f4" not in os.listdir(inside)
        assert (mount.path / "dir" / "f3").stat() == same
        assert gone.read() == SMALL["/dir/f4"]
        assert changed.read() == SMALL["/dir/f5"]
        for one in (gone, changed):
            one.close()
        os.close(inside)

        # and what an earlier life told is revoked by a later refresh as well
        assert not (mount.path / "later").exists()
        _kill_daemon(mount)
        assert _status_answers(mount)
        published.commit(published.file("/later", b"came too"), published.file("/dir/f6", b"newer"))
        assert mount.control("refresh")["changed"]
        assert (mount.path / "later").read_bytes() == b"came too"
        assert (mount.path / "dir" / "f6").read_bytes() == b"newer"


def test_a_daemon_that_dies_when_the_root_was_just_revoked(
    published: Published, work: Path, options: tuple[str, ...]
) -> None:
    """The next one must come up without asking the mount for anything."""
    with mounted(published.name, [published.storage.as_uri()], published.public_key, work, *options) as mount:
        for number in range(3):
            published.commit(published.file(f"/new{number}", b"changes the root"))
            assert mount.control("refresh")["changed"]
            _kill_daemon(mount)
            assert _status_answers(mount)
            assert (mount.path / f"new{number}").read_bytes() == b"changes the root"


def test_a_restart_under_open_files(published: Published, work: Path, options: tuple[str, ...]) -> None:
    with mounted(published.name, [published.storage.as_uri()], published.public_key, work, *options) as mount:
        with (mount.path / "long").open("rb") as opened:
            assert opened.read(100) == LONG[:100]
            before = _daemon(mount)
            answer = mount.control("restart")
            assert answer["before"] == before
            assert answer["pid"] == _daemon(mount) != before
            assert opened.read() == LONG[100:]
        assert mount.control("status")["is_resumable"]
        assert unpackd("umount", mount.path).returncode == 0
        wait_until(lambda: mount.log_text().count("daemon_ended") == 2, "the holder sees the end")
        assert not os.path.ismount(mount.path)


def test_a_holder_told_to_end_unmounts(published: Published, work: Path, options: tuple[str, ...]) -> None:
    with mounted(published.name, [published.storage.as_uri()], published.public_key, work, *options) as mount:
        os.kill(mount.pid, signal.SIGTERM)
        wait_until(lambda: not os.path.ismount(mount.path), "the mount goes")
        wait_until(lambda: "daemon_ended" in mount.log_text(), "the daemon ends")
        assert "daemon_follows" not in mount.log_text()


def test_a_mount_outlives_its_holder(published: Published, work: Path, options: tuple[str, ...]) -> None:
    with mounted(published.name, [published.storage.as_uri()], published.public_key, work, *options) as mount:
        os.kill(mount.pid, signal.SIGKILL)
        assert (mount.path / "dir" / "f1").read_bytes() == SMALL["/dir/f1"]
        assert unpackd("umount", mount.path).returncode == 0


def test_what_cannot_be_mounted_says_why(published: Published, work: Path, options: tuple[str, ...]) -> None:
    mountpoint = work / "mnt"
    mountpoint.mkdir(parents=True)
    arguments = [published.name, mountpoint, "--pubkey", published.public_key, "--cache", work / "cache", *options]
    absent = unpackd("mount", *arguments, "--url", "http://127.0.0.1:9/none")
    assert (absent.returncode, "did not give" in absent.stderr) == (13, True), absent.stderr
    assert not os.path.ismount(mountpoint)
    lock = own_file(work / "cache" / "mounts" / published.name, mountpoint, "lock")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as a daemon does that has not ended yet
        locked = unpackd("mount", *arguments, "--url", published.storage.as_uri())
    assert (locked.returncode, "another daemon" in locked.stderr) == (11, True), locked.stderr
    refused = unpackd("mount", *arguments[:-2], "--url", "file:///x", "--resumable", "--foreground")
    assert refused.returncode == 2
