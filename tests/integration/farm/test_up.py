"""``unpackd up`` as a user runs it, with a real registry that tells it of pushes."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from converter.placement import FLAT, placed
from fs.publish.repository import Repository
from tests.support.images import Member, directory, make_layout
from tests.support.processes import free_port, has_ended, listens, require_tool, running, wait_until
from tests.support.registry import Registry, run_registry

NAME = "unpacked.test.local"
MANY_FILES = 8000  # enough to be killed in the middle
UNPACKD = Path(sys.executable).with_name("unpackd")


def unpackd(*arguments: str | Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(UNPACKD), *map(str, arguments)]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60, env={**os.environ, **(environment or {})}
    )


@dataclass(frozen=True, slots=True)
class Stack:
    folder: Path
    port: int
    registry: Registry

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def directory(self) -> Path:
        return self.folder / "up"

    @property
    def log(self) -> Path:
        return self.folder / "up.log"

    def running(self, *options: str | Path, listen: bool = True) -> AbstractContextManager[subprocess.Popen[bytes]]:
        address = ["--listen", f"127.0.0.1:{self.port}"] if listen else []
        return self._running([UNPACKD, "up", "--dir", self.directory, *address, *options])

    @contextmanager
    def _running(self, command: list[str | Path]) -> Iterator[subprocess.Popen[bytes]]:
        self.log.unlink(missing_ok=True)
        with running(command, self.log, environment={"UNPACKD_CONVERTER_POLL_INTERVAL_S": "1"}) as process:
            wait_until(lambda: "mount it with" in self.said() or process.poll() is not None, "the start", 60)
            assert process.poll() is None, self.said()
            yield process

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=10) as reply:
            body: bytes = reply.read()
        return body

    def image(self, reference: str) -> dict[str, object]:
        try:
            found: dict[str, object] = json.loads(self.get(f"/api/v1/images/{reference}"))
        except urllib.error.HTTPError:
            return {"state": "unknown", "digest": None, "error": None}
        return found

    def push(self, name: str, content: bytes, *more: Member) -> str:
        layout = make_layout(
            self.folder / "layouts" / name.replace(":", "-"), [[directory("etc"), Member("etc/x", content), *more]]
        )
        return self.registry.push(layout.source, name)

    def wait_for(self, reference: str, content: bytes) -> None:
        """Wait until the file in the published image has *content*."""
        path = str(self.image(reference).get("public_path") or f"/{reference}").encode()

        def published() -> bool:
            return read(self.directory, path) == content

        wait_until(published, f"the conversion of {reference}: {self.image(reference)}", 30)


def read(stack: Path, public_path: bytes) -> bytes | None:
    """What ``etc/x`` of a published image holds; read from the storage."""
    view = Repository.open(NAME, str(stack / "storage"), stack / "keys").view()
    link = view.lookup(public_path)
    if link is None:
        return None
    digits = view.readlink(public_path).rpartition(b"/")[2].decode()
    return view.read(placed(FLAT, f"sha256:{digits}") + b"/etc/x", 100)


def children(pid: int) -> dict[str, int]:
    """The processes that *pid* started, by the command of ours that they run."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                words = (entry / "cmdline").read_text().split("\0")
            except OSError:
                continue
            if parent == pid:
                found[words[4] if "unpackd" in words else "redis"] = int(entry.name)
    return found


def gone(pids: list[int]) -> Callable[[], bool]:
    return lambda: all(map(has_ended, pids))


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    require_tool("docker-registry", "skopeo", "redis-server")
    port = free_port()
    with run_registry(tmp_path, notify_url=f"http://127.0.0.1:{port}/hooks/distribution") as registry:
        yield Stack(tmp_path, port, registry)


@pytest.fixture
def wishlist(stack: Stack) -> Path:
    path = stack.folder / "wishlist.yaml"
    path.write_text(f"version: 1\ncvmfs_repo: {NAME}\ninput:\n  - '{stack.registry.url}/tool:*'\n")
    return path


def test_a_push_is_published_and_everything_says_so(stack: Stack, wishlist: Path) -> None:
    before = stack.push("tool:before", b"before\n")
    with stack.running("--wishlist", wishlist) as process:
        stack.wait_for(before, b"before\n")
        started = time.monotonic()
        reference = stack.push("tool:1", b"one\n")
        pushed = time.monotonic()
        stack.wait_for(reference, b"one\n")
        print(f"push took {pushed - started:.2f} s; visible {time.monotonic() - pushed:.2f} s after it")

        wait_until(lambda: stack.image(reference)["state"] == "done", "the state")
        shown = f"/cvmfs/{NAME}/{reference}"
        assert shown in stack.get("/").decode()
        assert f"unpackd mount {NAME} /cvmfs/{NAME} --url {stack.url}/cvmfs/{NAME}" in stack.said()
        assert stack.get(f"/cvmfs/{NAME}/.cvmfspublished").startswith(b"C")
        assert b'unpackd_notifications_total{hook="distribution",outcome="taken"}' in stack.get("/metrics")
        for where in (["--url", stack.url], ["--dir", stack.directory]):
            told = unpackd("wish", "status", "tool:1", "--json", *where)
            assert json.loads(told.stdout)["images"][0]["state"] == "done", told
        assert unpackd("wish", "status", "absent", environment={"UNPACKD_URL": stack.url}).returncode == 10
        assert "tool:*" in unpackd("wish", "ls", "--url", stack.url).stdout

        stack.push("tool:1", b"moved\n")
        stack.wait_for(reference, b"moved\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_everything_can_be_set_in_a_file(stack: Stack, wishlist: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    database = tmp_path / "other.sqlite"
    config.write_text(
        f'[converter]\nlisten = "127.0.0.1:{stack.port}"\nwishlist = "{wishlist}"\nconcurrency = 1\n'
        f'broker_url = "filesystem://{tmp_path}/queue"\ndatabase_url = "sqlite:///{database}"\n'
        'storage = "/nowhere"\n[converter.limits]\nmax_entries = 2\n'
    )

    with stack.running("--config", config, listen=False):
        stack.push("tool:1", b"one")
        stack.wait_for(f"{stack.registry.host}/tool:1", b"one")
        stack.push("tool:2", b"two", Member("etc/y", b""))
        name = f"{stack.registry.host}/tool:2"
        wait_until(lambda: stack.image(name)["state"] == "failed", "the refusal of an image with 3 entries", 30)

    assert database.exists()
    assert not (stack.directory / "broker").exists()


def test_users_push_images_out_of_files_and_registries(stack: Stack) -> None:
    files = make_layout(
        stack.folder / "mine", [[directory("etc"), Member("etc/x", b"mine")], [Member("big", b"b" * 70_000)]]
    )
    stack.push("other:1", b"other")
    with stack.running("--name", NAME):
        url = ("--url", stack.url)
        name = "users.example/me/tool:1"
        sent = unpackd("push", files.source, name, *url)
        assert (sent.returncode, sent.stdout) == (0, f"/cvmfs/{NAME}/{name}\n"), sent.stderr
        assert sent.stderr.count("sending sha256:") == 2
        assert read(stack.directory, f"/{name}".encode()) == b"mine"
        again = unpackd("push", files.source, name, *url, "--json")
        assert (json.loads(again.stdout)["state"], "sending" in again.stderr) == ("done", False)
        fetched = unpackd("push", f"{stack.registry.host}/other:1", *url)
        assert fetched.stdout == f"/cvmfs/{NAME}/{stack.registry.host}/other:1\n", fetched.stderr
        absent = unpackd("push", f"{stack.registry.host}/other:absent", *url)
        assert (absent.returncode, "other" in absent.stderr) == (1, True)
        assert unpackd("push", files.source, *url).returncode == 2  # it needs a name


def test_it_ends_cleanly_and_goes_on_where_it_was(stack: Stack, wishlist: Path) -> None:
    reference = stack.push("tool:1", b"one\n")
    with stack.running("--wishlist", wishlist) as process:
        stack.wait_for(reference, b"one\n")
        wait_until(lambda: stack.image(reference)["state"] == "done", "the state")
        mine = children(process.pid)
        assert set(mine) == {"redis", "web", "worker", "watch"}
        second = unpackd("up", "--dir", stack.directory, "--listen", "127.0.0.1:0")
        assert (second.returncode, str(process.pid) in second.stderr) == (11, True)

        before = time.monotonic()
        process.terminate()
        assert process.wait(10) == 0
        print(f"ended in {time.monotonic() - before:.2f} s")
    assert gone(list(mine.values()))()
    assert not listens(stack.port)
    assert [path.name for path in (stack.directory / "broker").glob("*.sock")] == []

    while_away = stack.push("tool:2", b"two\n")
    with stack.running() as process:  # the wishlist is remembered
        assert stack.image(reference)["state"] == "done"
        stack.wait_for(while_away, b"two\n")


def test_processes_that_are_killed_come_back_and_none_survives_its_parent(stack: Stack, wishlist: Path) -> None:
    with stack.running("--wishlist", wishlist) as process:
        first = children(process.pid)
        for pid in first.values():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: set(children(process.pid)) == set(first), "the second start of all")
        many = [Member(f"etc/{number}", f"{number}\n".encode()) for number in range(MANY_FILES)]
        reference = stack.push("tool:1", b"one\n", *many)
        wait_until(lambda: stack.image(reference)["state"] == "running", "the start of the conversion")
        os.kill(children(process.pid)["worker"], signal.SIGKILL)
        stack.wait_for(reference, b"one\n")
        wait_until(lambda: stack.image(reference)["state"] == "done", "the state")
        assert stack.image(reference)["attempts"] == 2

        second = children(process.pid)
        workers = list(children(second["worker"]).values())
        process.kill()
        wait_until(gone([*second.values(), *workers]), "the end of all children", 15)


def test_a_registry_that_is_down_takes_nothing_away(stack: Stack, tmp_path: Path) -> None:
    port = free_port()
    folder = tmp_path / "other"
    folder.mkdir()
    wishlist = tmp_path / "wishlist.yaml"
    wishlist.write_text(f"version: 1\ncvmfs_repo: {NAME}\ninput:\n  - 'http://127.0.0.1:{port}/tool:*'\n")
    with stack.running("--name", NAME):
        with run_registry(folder, port=port) as silent:  # it sends no notifications: polling finds the image
            other = Stack(stack.folder, stack.port, silent)
            reference = other.push("tool:1", b"one\n")
            applied = unpackd("wish", "apply", wishlist, "--dir", stack.directory)
            assert applied.returncode == 0, applied.stderr
            other.wait_for(reference, b"one\n")
            wait_until(lambda: stack.image(reference)["state"] == "done", "the state")
        wait_until(lambda: b"Registries that cannot be read" in stack.get("/"), "the warning")
        assert stack.image(reference)["state"] == "done"
        with run_registry(folder, port=port) as silent:
            again = Stack(stack.folder, stack.port, silent)
            second = again.push("tool:2", b"two\n")
            again.wait_for(second, b"two\n")


@pytest.mark.parametrize(
    ("text", "code", "sentence"),
    [
        ("cvmfs_repo: unpacked.test.local\ninput: [nonsense]\n", 2, "wishlist.yaml:2:9:"),
        ("cvmfs_repo: unpacked.test.local\ninput: []\n", 2, "this farm publishes into other.example"),
    ],
)
def test_wishlists_that_will_not_do_start_nothing(tmp_path: Path, text: str, code: int, sentence: str) -> None:
    wishlist = tmp_path / "wishlist.yaml"
    wishlist.write_text(text)
    options = ("--listen", "127.0.0.1:0", "--name", "other.example", "--wishlist", wishlist)

    done = unpackd("up", "--dir", tmp_path / "up", *options)

    assert (done.returncode, sentence in done.stderr) == (code, True), done.stderr
    assert not (tmp_path / "up" / "storage").exists()


def test_an_address_in_use_is_named(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = unpackd("up", "--dir", tmp_path / "up", "--listen", address)

    assert done.returncode == 1
    assert f"cannot listen at {address}: Address already in use" in done.stderr
    assert unpackd("up", "--dir", tmp_path / "up", "--listen", "nonsense").returncode == 2


def test_check_names_each_mistake_with_its_place(tmp_path: Path) -> None:
    wishlist = tmp_path / "wishlist.yaml"
    wishlist.write_text("version: 3\ncvmfs_repo: r.example\ninput:\n  - library/redis:4\n")

    done = unpackd("wish", "check", wishlist)

    assert done.returncode == 2
    assert [line.partition(": ")[0] for line in done.stdout.splitlines()] == [f"{wishlist}:1:10", f"{wishlist}:4:5"]
    assert json.loads(unpackd("wish", "check", wishlist, "--json").stdout)["mistakes"][0]["column"] == 10
    assert unpackd("wish", "check", tmp_path / "absent.yaml").returncode == 10
    wishlist.write_text("version: 1\ncvmfs_repo: r.example\ninput: []\n")
    assert unpackd("wish", "check", wishlist).returncode == 0
    assert unpackd("wish", "apply", wishlist, "--dir", tmp_path).returncode == 10
    assert unpackd("wish", "ls", "--url", f"http://127.0.0.1:{free_port()}").returncode == 13
