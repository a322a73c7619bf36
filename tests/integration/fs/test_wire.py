"""Mounts through the wire front end: what is different from the other one."""

import errno
import fcntl
import os
import signal
import subprocess
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fs.publish.operations import MakeDirectory, Remove
from tests.support.mounts import UNPACKD, mounted, unpackd
from tests.support.processes import require_tool, running, unmount_below, wait_until
from tests.support.published import Published, publish

pytestmark = pytest.mark.root

CONTENT = bytes(range(256)) * 1000
ALONE = ("--frontend", "wire", "--no-resumable")


@pytest.fixture
def published(tmp_path: Path) -> Published:
    made = publish(tmp_path / "made")
    made.commit(
        MakeDirectory(b"/dir", nested=True),
        made.file("/dir/inner", b"inside"),
        made.file("/file", CONTENT),
        made.file("/empty", b""),
    )
    return made


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "work"
    unmount_below(tmp_path)


def test_a_refresh_shows_the_new_revision_at_once_and_open_files_keep_the_old(published: Published, work: Path) -> None:
    with mounted(published.name, [published.storage.as_uri()], published.public_key, work, *ALONE) as mount:
        file, late = mount.path / "file", mount.path / "late"
        assert not late.exists()
        assert sorted(os.listdir(mount.path)) == ["dir", "empty", "file"]
        assert os.listdir(mount.path / "dir") == ["inner"]
        before = file.stat()
        with file.open("rb") as opened:
            assert opened.read(10) == CONTENT[:10]
            inside = os.open(mount.path / "dir", os.O_RDONLY | os.O_DIRECTORY)
            published.commit(
                published.file("/file", b"new content"),
                published.file("/late", b"came"),
                Remove(b"/dir"),
            )
            assert mount.control("refresh")["changed"]

            assert file.read_bytes() == b"new content"
            assert late.read_bytes() == b"came"
            assert sorted(os.listdir(mount.path)) == ["empty", "file", "late"]
            assert opened.read() == CONTENT[10:]
            assert os.fstat(opened.fileno()).st_ino == before.st_ino
            found = os.open("inner", os.O_RDONLY, dir_fd=inside)
            assert os.read(found, 100) == b"inside"
            os.close(found)
            os.close(inside)


def test_opening_listing_and_closing_need_no_message_after_the_first_time(published: Published, work: Path) -> None:
    with mounted(published.name, [published.storage.as_uri()], published.public_key, work, *ALONE) as mount:
        file = mount.path / "file"
        assert file.read_bytes() == CONTENT
        assert os.listdir(mount.path / "dir") == ["inner"]
        pid = mount.pid
        os.kill(pid, signal.SIGSTOP)  # whatever asked it now would hang
        try:
            done = subprocess.run(
                ["sh", "-c", f"cat {file} | wc -c; ls {mount.path}/dir; stat -c %s {file}"],
                capture_output=True, text=True, check=False, timeout=20,
            )  # fmt: skip
        finally:
            os.kill(pid, signal.SIGCONT)
        assert done.stdout.split() == [str(len(CONTENT)), "inner", str(len(CONTENT))]


def test_a_large_folder_is_listed_once_and_whole_while_revisions_come(published: Published, work: Path) -> None:
    names = {f"n{number}" for number in range(3000)}
    published.commit(MakeDirectory(b"/many"), *(published.file(f"/many/{name}", b"") for name in names))
    with mounted(published.name, [published.storage.as_uri()], published.public_key, work, *ALONE) as mount:
        over = threading.Event()

        def change() -> None:
            number = 0
            while not over.wait(0.05):
                number += 1
                published.commit(published.file(f"/many/late{number}", b""))
                mount.control("refresh")

        changer = threading.Thread(target=change)
        changer.start()
        try:
            for _ in range(4):
                subprocess.run(["sh", "-c", "echo 2 > /proc/sys/vm/drop_caches"], check=False, timeout=30)
                listed = [name for name in os.listdir(mount.path / "many") if name.startswith("n")]
                assert len(listed) == len(names)
                assert set(listed) == names
        finally:
            over.set()
            changer.join()
        assert "request_broken" not in mount.log_text()


def test_attributes_that_do_not_fit_and_questions_for_terminals(published: Published, work: Path) -> None:
    with mounted(published.name, [published.storage.as_uri()], published.public_key, work, *ALONE) as mount:
        assert os.getxattr(mount.path, "user.fqrn") == published.name.encode()
        assert os.listxattr(mount.path / "file") == []
        with pytest.raises(OSError, match="No data"):
            os.getxattr(mount.path, "user.none")
        with (mount.path / "file").open("rb") as opened, pytest.raises(OSError, match="Inappropriate") as caught:
            fcntl.ioctl(opened.fileno(), termios.TCGETS, bytes(60))
        assert caught.value.errno == errno.ENOTTY
        with pytest.raises(OSError, match="Read-only"):
            (mount.path / "new").write_bytes(b"")
        numbers = os.statvfs(mount.path)
        assert (numbers.f_namemax, numbers.f_bsize) == (255, 4096)


def test_it_ends_when_told_and_when_unmounted(published: Published, work: Path) -> None:
    with mounted(published.name, [published.storage.as_uri()], published.public_key, work, *ALONE) as mount:
        with (mount.path / "file").open("rb"):
            assert unpackd("umount", mount.path).returncode == 11
        os.kill(mount.pid, signal.SIGTERM)
        wait_until(lambda: not os.path.ismount(mount.path), "the mount goes")
        wait_until(lambda: "unmounted" in mount.log_text(), "the daemon ends")
    mountpoint = work / "mnt"
    command = [*UNPACKD, "mount", published.name, mountpoint, "--url", published.storage.as_uri(), "--pubkey",
               published.public_key, "--cache", work / "cache", "--foreground", "--frontend", "wire"]  # fmt: skip
    with running(command, work / "log") as process:
        wait_until(lambda: os.path.ismount(mountpoint), "it is mounted")
        assert (mountpoint / "dir" / "inner").read_bytes() == b"inside"
        assert unpackd("umount", mountpoint).returncode == 0
        assert process.wait(20) == 0


def test_only_root_can_have_it(published: Published, work: Path) -> None:
    require_tool("setpriv")
    work.mkdir()
    command = ["setpriv", "--reuid=65534", "--clear-groups", *UNPACKD, "mount", published.name, work, "--url", "file:///",
               "--pubkey", published.public_key, "--frontend", "wire"]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "only root" in done.stderr) == (2, True), done.stderr
