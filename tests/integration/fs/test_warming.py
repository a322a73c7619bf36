"""The kernel is told of what a profile names: no look-up and no read is left for the start."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
import trio

from fs.client import warming as warming_module
from fs.client.control import ask
from fs.client.mountpoints import control_socket
from fs.client.profile import Read
from fs.client.warming import Warming, warming
from fs.publish.operations import MakeDirectory
from tests.support.flaky_origin import FlakyOrigin, flaky_origin
from tests.support.mounts import TestMount, mounted, unpackd
from tests.support.processes import wait_until
from tests.support.published import Published, publish

FILES = 40

WATCHED = """
import os, runpy, sys
def seen(event, arguments):
    if event == "open" and isinstance(arguments[0], (bytes, str)) and not str(arguments[0]).endswith((".py", ".pyc")):
        os.write(2, os.fsencode(arguments[0]) + b"\\n")
program = sys.argv.pop()
sys.addaudithook(seen)
runpy.run_path(program, run_name="__main__")
"""


@pytest.fixture
def published(tmp_path: Path) -> Published:
    made = publish(tmp_path / "made")
    made.nest("/deep")
    made.commit(*(made.file(f"/deep/f{number}", b"content %d" % number) for number in range(FILES)))
    return made


@pytest.fixture
def origin(published: Published) -> Iterator[FlakyOrigin]:
    with flaky_origin(published.storage) as server:
        yield server


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    file = tmp_path / "profile"
    file.write_text("".join(f"/deep/f{number}\n" for number in range(FILES)) + "/deep/absent\n")
    return file


def _figure(mount: TestMount, name: str) -> int:
    return int(mount.control("status")[name])


@pytest.mark.root
@pytest.mark.parametrize("frontend", ["wire", "pyfuse3"])
def test_the_kernel_knows_what_a_profile_names(
    published: Published, origin: FlakyOrigin, profile: Path, tmp_path: Path, frontend: str
) -> None:
    with mounted(published.name, [origin.url], published.public_key, tmp_path, "--frontend", frontend) as mount:
        known = _figure(mount, "known_inodes")
        done = unpackd("mountctl", mount.path, "prefetch", "--profile", profile, "--json")
        assert done.returncode == 3, done.stderr  # one path is absent
        assert f'"warmed": {FILES}' in done.stdout
        assert _figure(mount, "known_inodes") - known >= FILES
        wait_until(lambda: _figure(mount, "opened_files") >= FILES, "the kernel reads them")
        daemon = _figure(mount, "pid")
        files = [mount.path / f"deep/f{number}" for number in range(FILES)]
        # the plain front end is told of every opening, so there only names can be had without an answer
        command: list[str | Path] = ["cat", *files] if frontend == "wire" else ["stat", "-c", "%s", *files]
        os.kill(daemon, signal.SIGSTOP)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        finally:
            os.kill(daemon, signal.SIGCONT)
        contents = [f"content {number}" for number in range(FILES)]
        assert done.stdout == ("".join(contents) if frontend == "wire" else "".join(f"{len(c)}\n" for c in contents))


@pytest.mark.root
def test_who_reads_through_the_content_view_finds_the_files_there(
    published: Published, origin: FlakyOrigin, profile: Path, tmp_path: Path
) -> None:
    published.commit(MakeDirectory(b"/.unpackd", nested=True))
    with mounted(published.name, [origin.url], published.public_key, tmp_path, "--frontend", "wire") as mount:
        socket = control_socket(mount.path, os.geteuid())
        job = ask(socket, {"command": "prefetch", "profile": str(profile), "through": "content"})["job"]
        progress = {"command": "prefetch_progress", "job": job}
        wait_until(lambda: ask(socket, progress)["is_done"], "fetching")
        wait_until(lambda: _figure(mount, "opened_files") >= FILES, "the kernel reads them")
        daemon = _figure(mount, "pid")
        os.kill(daemon, signal.SIGSTOP)
        try:
            file = mount.path / ".unpackd/content/deep/f7"
            done = subprocess.run(["cat", file], capture_output=True, timeout=20, check=True)
        finally:
            os.kill(daemon, signal.SIGCONT)
        assert done.stdout == b"content 7"


@pytest.mark.root
def test_directories_that_are_read_as_a_whole_are_not_warmed(
    published: Published, origin: FlakyOrigin, tmp_path: Path
) -> None:
    with mounted(published.name, [origin.url], published.public_key, tmp_path) as mount:
        known = _figure(mount, "known_inodes")
        done = unpackd("mountctl", mount.path, "prefetch", "/deep", "--json")
        assert '"warmed": 0' in done.stdout
        assert _figure(mount, "known_inodes") == known


@pytest.mark.root
def test_a_daemon_that_is_killed_meanwhile_is_followed(
    published: Published, origin: FlakyOrigin, profile: Path, tmp_path: Path
) -> None:
    origin.delay_s = 0.02
    options = ("--resumable", "--frontend", "wire", "--profile", profile)
    with mounted(published.name, [origin.url], published.public_key, tmp_path, *options) as mount:
        os.kill(_figure(mount, "pid"), signal.SIGKILL)
        for number in range(FILES):
            assert (mount.path / f"deep/f{number}").read_bytes() == b"content %d" % number
        wait_until(lambda: not _helpers(mount.path), "what warms has ended")


@pytest.mark.root
def test_a_mount_can_be_unmounted_meanwhile(
    published: Published, origin: FlakyOrigin, profile: Path, tmp_path: Path
) -> None:
    origin.delay_s = 0.05
    with mounted(published.name, [origin.url], published.public_key, tmp_path, "--profile", profile) as mount:
        assert unpackd("umount", mount.path).returncode == 0
        wait_until(lambda: not _helpers(mount.path), "what warms has ended")


def test_only_directories_with_little_else_are_worth_listing() -> None:
    reads = [Read(b"/big/a/one"), Read(b"/big/a/two"), Read(b"/big/b")]
    sending, _ = anyio.create_memory_object_stream[bytes](10)
    made = Warming(reads, sending)
    few, each = 64, 8
    assert list(made.folders(b"/big/a/one")) == [
        (b"", few + each),
        (b"/big", few + 2 * each),
        (b"/big/a", few + 2 * each),
    ]
    assert list(made.folders(b"/big/a/two")) == []
    assert list(made.folders(b"/big/b")) == []


def test_what_is_warmed_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warming_module, "_MOST_FILES", 3)
    monkeypatch.setattr(warming_module, "_MOST_BYTES", 100)
    sending, receiving = anyio.create_memory_object_stream[bytes](10)
    made = Warming([], sending)
    made.read(b"/large", 101)
    for number in range(5):
        made.read(b"/%d" % number, 10)
    told = [receiving.receive_nowait() for _ in range(receiving.statistics().current_buffer_used)]
    assert told == [b"r/0\0", b"r/1\0", b"r/2\0"]


@pytest.mark.parametrize("program", ["/bin/false", "/nowhere", "/bin/cat"])
def test_a_process_that_fails_fails_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr("sys.executable", program)

    async def work() -> None:
        async with warming(tmp_path, []) as warmed:
            for number in range(1000):
                warmed.read(b"/%d" % number, 10)
                await anyio.lowlevel.checkpoint()

    began = time.monotonic()
    trio.run(work)
    assert time.monotonic() - began < 10


def _helpers(mountpoint: Path) -> list[str]:
    """Processes that warm the kernel for *mountpoint*."""
    wanted = f"warm_kernel.py\0{mountpoint}\0".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if wanted in (folder / "cmdline").read_bytes():
                    found.append(folder.name)
            except OSError:
                continue
    return found


def test_links_are_not_followed_and_only_files_are_opened(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "real/inner").mkdir(parents=True)
    (root / "real/file").write_bytes(b"x")
    os.mkfifo(root / "real/pipe")
    (root / "linked").symlink_to("/")
    (root / "real/link").symlink_to("/etc/passwd")
    listed = [b"", b"/real", b"/linked", b"/real/inner"]
    read = [b"/real/file", b"/linked/etc/passwd", b"/real/link", b"/real/pipe", b"/absent/file", b"/real/inner"]
    records = [*(b"l" + path for path in listed), *(b"r" + path for path in read)]
    program = warming_module.__file__.replace("warming.py", "warm_kernel.py")
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, root, program],
        input=b"\0".join(records) + b"\0",
        capture_output=True,
        timeout=20,
        check=True,
    )
    opened = done.stderr.decode().split()
    at = str(root)
    assert opened == [
        *(at, "."),
        *(at, "real", "."),
        *(at, "linked"),
        *(at, "real", "inner", "."),
        *(at, "real", "file"),
        *(at, "linked"),
        *(at, "real"),
        *(at, "absent"),
        *(at, "real"),
    ]
