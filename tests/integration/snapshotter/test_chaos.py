"""Snapshotter, FUSE daemon and containerd are killed at random while containers start, write, commit and go.

Whatever a container was told to be written must be there at the end, in the container or in what it was committed to;
what images hold is never read wrongly; nothing stays behind. Calls may fail while what they need is dead: they are
counted. ``make chaos`` does it for 20 minutes.
"""

import io
import itertools
import json
import os
import random
import subprocess
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL

import pytest

from fs.client.control import ask
from fs.client.mountpoints import control_socket
from fs.errors import FsError
from tests.support.mounts import TestMount, mounted
from tests.support.node import PLUGIN, CommandFailedError, Node, running_node
from tests.support.processes import mounts_below, require_root, require_tool, unmount_below, wait_until
from tests.support.registry import Registry
from tests.support.snapshotter import FakeRepository, service_folder
from tests.support.tool_image import TOOL, make_tool_images

pytestmark = pytest.mark.root

SECONDS = float(os.environ.get("UNPACKD_CHAOS_S", "12"))
WORKERS = 3
BACK_TIMEOUT_S = 120.0
DATA = "/dir/data"
MARK = f"chaos{os.getpid()}"  # all containerds of a machine share runc's directory
RUNC = Path("/run/containerd/runc/default")


class CallFailedError(Exception):
    """Something is dead just now."""


@contextmanager
def calling() -> Iterator[None]:
    """Raises CallFailedError: containerd refuses, or does not answer."""
    try:
        yield
    except (CommandFailedError, subprocess.TimeoutExpired) as error:
        raise CallFailedError(str(error)) from error


@dataclass
class Container:
    """A container and what it was told to write."""

    name: str
    lines: list[str] = field(default_factory=list)  # that were answered
    doubtful: set[str] = field(default_factory=set)  # that were not
    is_running: bool = True
    committed: str = ""

    def check(self, content: str) -> None:
        """*content* holds every line that was answered, in order, and none that was never asked for."""
        found = content.splitlines()
        assert [line for line in found if line not in self.doubtful] == self.lines, self.name


class Load:
    """One worker: containers of its own, one operation at a time."""

    def __init__(self, node: Node, image: str, number: int, counts: Counter[str]) -> None:
        self._node = node
        self._image = image
        self._numbers = itertools.count()
        self._number = number
        self._random = random.Random(number)
        self._counts = counts
        self.containers: list[Container] = []
        self.wrong: list[str] = []

    def run(self, until: float) -> None:
        try:
            while time.monotonic() < until:
                operation = self._random.choice(self._possible())
                name = operation.__name__.lstrip("_")
                try:
                    operation()
                    self._counts[name] += 1
                except CallFailedError:
                    self._counts[f"{name} failed"] += 1
                    time.sleep(0.2)
        except BaseException as error:  # noqa: BLE001  # the test's thread fails with it
            self.wrong.append(repr(error))

    def _possible(self) -> list[Callable[[], None]]:
        running = [container for container in self.containers if container.is_running]
        operations = [self._fresh]
        if len(self.containers) < 4:
            operations += [self._start] * 3
        if running:
            operations += [self._write] * 4 + [self._read] * 2 + [self._diff, self._end]
        if any(not container.is_running and not container.committed for container in self.containers):
            operations += [self._commit] * 2
        if self.containers:
            operations += [self._remove]
        return operations

    def ctr(self, *arguments: str) -> str:
        with calling():
            return self._node.ctr(*arguments).stdout

    def tool(self, container: Container, *arguments: str) -> str:
        """What the program prints. A file that cannot be read is an exit status."""
        with calling():
            return self._node.execute(container.name, TOOL, *arguments)

    def _some(self, *, running: bool) -> Container:
        return self._random.choice([one for one in self.containers if one.is_running == running and not one.committed])

    def _fresh(self) -> None:
        """A container that reads the image and ends."""
        name = f"{MARK}-fresh-{self._number}-{next(self._numbers)}"
        command = (TOOL, "cat", "/etc/soft", "/etc/hard", "/dir/file", "/etc/gone")
        try:
            with calling():
                printed = self._node.printed(("run",), "--rm", "--snapshotter", PLUGIN, self._image, name, *command)
        except CallFailedError:
            self.containers.append(Container(name, is_running=False, committed="?"))  # to be removed
            raise
        assert printed == "top\nbase\nfile\ngone\n", printed

    def _start(self) -> None:
        container = Container(f"{MARK}-{self._number}-{next(self._numbers)}")
        try:
            self.ctr("run", "-d", "--snapshotter", PLUGIN, self._image, container.name, TOOL, "pause")
        except CallFailedError:
            container.is_running, container.committed = False, "?"
            raise
        finally:
            self.containers.append(container)

    def _write(self) -> None:
        container = self._some(running=True)
        line = f"line {next(self._numbers)}"
        container.doubtful.add(line)
        self.tool(container, "append", DATA, line + "\n")
        container.doubtful.discard(line)
        container.lines.append(line)

    def _read(self) -> None:
        container = self._some(running=True)
        printed = self.tool(container, "cat", "/etc/base", DATA)
        assert printed.startswith("base\n"), printed
        container.check(printed.removeprefix("base\n").removeprefix(f"no {DATA}\n"))

    def _diff(self) -> None:
        """What commit tools do first: compare a container's layer with what it stands on."""
        container = self._some(running=True)
        arguments = ("snapshots", "--snapshotter", PLUGIN, "diff", container.name)
        command = ["ctr", "--address", str(self._node.socket), *arguments]
        try:
            done = subprocess.run(command, check=False, capture_output=True, timeout=60)
        except subprocess.TimeoutExpired as error:
            raise CallFailedError(str(error)) from error
        if done.returncode != 0:
            raise CallFailedError
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            stream = archive.extractfile(DATA.lstrip("/")) if container.lines else None
            if stream is not None:
                container.check(stream.read().decode())
            else:
                assert not container.lines

    def _end(self) -> None:
        container = self._some(running=True)
        self.ctr("tasks", "rm", "--force", container.name)
        container.is_running = False

    def _commit(self) -> None:
        """The container's layer becomes a snapshot that others can stand on."""
        container = self._some(running=False)
        committed = f"{container.name}-committed"
        with suppress(CallFailedError):
            self.ctr("snapshots", "--snapshotter", PLUGIN, "commit", committed, container.name)
        names = {line.split()[0] for line in self.ctr("snapshots", "--snapshotter", PLUGIN, "ls").splitlines()[1:]}
        assert {committed, container.name} & names, "the layer is in neither"
        if committed in names:
            container.committed = committed

    def _remove(self) -> None:
        container = self._random.choice(self.containers)
        self.verify(container)
        self.forget(container)

    def verify(self, container: Container) -> None:
        """Look for what was written, wherever it must be now. Raises CallFailedError."""
        if container.committed == "?":
            return
        if container.is_running:
            try:
                container.check(self.tool(container, "cat", DATA).removeprefix(f"no {DATA}\n"))
            except CallFailedError as error:
                if "no running task" not in str(error):
                    raise
                self._counts["tasks gone when containerd was killed"] += 1  # its layer must be there all the same
                container.is_running = False
            else:
                return
        names = {line.split()[0] for line in self.ctr("snapshots", "--snapshotter", PLUGIN, "ls").splitlines()[1:]}
        committed = f"{container.name}-committed"  # perhaps without the answer having come
        name = committed if committed in names else container.name
        with self.mounted(name, is_committed=name == committed) as root:
            file = root / DATA.lstrip("/")
            container.check(file.read_text() if file.exists() else "")
            assert (root / "etc/base").read_text() == "base\n"

    def mounted(self, name: str, *, is_committed: bool) -> "Mounted":
        key, command = name, ""
        place = self._node.folder / f"look-{self._number}-{next(self._numbers)}"
        place.mkdir()
        for last in (False, False, True):
            if is_committed:
                key = f"{name}-view-{next(self._numbers)}"
                self.ctr("snapshots", "--snapshotter", PLUGIN, "view", key, name)
            try:
                command = self.ctr("snapshots", "--snapshotter", PLUGIN, "mounts", str(place), key)
            except CallFailedError as error:  # nothing in containerd holds on to a view, so it may have collected it
                if last or not is_committed or "does not exist" not in str(error):
                    raise
            else:
                break
        return Mounted(command, place, lambda: self.ctr("snapshots", "--snapshotter", PLUGIN, "rm", key), is_committed)

    def forget(self, container: Container) -> None:
        """Remove all of it. Raises CallFailedError if something is still there; there is nothing to verify then."""
        container.is_running, container.committed = False, "?"
        for command in (
            ("tasks", "rm", "--force", container.name),
            ("containers", "rm", container.name),
            ("snapshots", "--snapshotter", PLUGIN, "rm", container.name),
            ("snapshots", "--snapshotter", PLUGIN, "rm", f"{container.name}-committed"),
        ):
            with suppress(CallFailedError):
                self.ctr(*command)
        if container.name in self.ctr("containers", "ls", "-q").split():
            raise CallFailedError
        self.containers.remove(container)


@dataclass
class Mounted:
    """A snapshot, mounted to look at."""

    command: str  # what ctr says
    place: Path
    remove: Callable[[], str]
    is_view: bool

    def __enter__(self) -> Path:
        done = subprocess.run(self.command, shell=True, check=False, capture_output=True, text=True, timeout=30)
        if done.returncode != 0:
            raise CallFailedError(done.stderr)
        return self.place

    def __exit__(self, *_: object) -> None:
        unmount_below(self.place)
        self.place.rmdir()
        if self.is_view:
            with suppress(CallFailedError):
                self.remove()


@dataclass
class Victims:
    """What is killed, and how it comes back."""

    node: Node
    mount: TestMount
    counts: Counter[str]
    dice: random.Random = field(default_factory=lambda: random.Random(0))

    def run(self, until: float) -> None:
        kinds = [self.snapshotter, self.fuse, self.containerd]
        while time.monotonic() < until:
            time.sleep(self.dice.uniform(1.0, 5.0))
            kind = self.dice.choice(kinds)
            kind()
            self.counts[f"kills of {kind.__name__}"] += 1

    def snapshotter(self) -> None:
        service = self.node.service
        service.kill()
        time.sleep(self.dice.uniform(0, 1))
        self.node.client = self.node.stack.enter_context(service.started())

    def containerd(self) -> None:
        assert self.node.containerd is not None
        self.node.containerd.kill()
        self.node.containerd.wait(10)
        time.sleep(self.dice.uniform(0, 1))
        self.node.start_containerd()

    def fuse(self) -> None:
        before = self.daemon()
        os.kill(before, SIGKILL)  # the holder starts another one
        wait_until(lambda: self.daemon(missing=before) != before, "another FUSE daemon", BACK_TIMEOUT_S)

    def daemon(self, missing: int = 0) -> int:
        try:
            return int(ask(control_socket(self.mount.path, os.geteuid()), {"command": "status"}, timeout_s=10)["pid"])
        except FsError:
            return missing


@pytest.fixture
def chaos(tmp_path: Path, registry: Registry) -> Iterator[tuple[Node, TestMount, str]]:
    require_root()
    require_tool("gcc", "containerd", "fusermount3")
    images = make_tool_images(tmp_path, registry)
    published = images.published
    with ExitStack() as stack:
        folder = stack.enter_context(service_folder())
        work = folder / "client"
        url = published.storage.as_uri()
        mount = stack.enter_context(mounted(published.name, [url], published.public_key, work, "--frontend", "wire"))
        if not mount.control("status")["is_resumable"]:
            pytest.skip("on this kernel a FUSE daemon cannot be followed by another one (Linux 6.9)")
        (folder / "n").mkdir()
        node = stack.enter_context(running_node(folder / "n", FakeRepository(mount.path)))
        stack.callback(end_shims, folder / "n")
        yield node, mount, images.app


@pytest.mark.timeout(SECONDS * 2 + 240)
def test_nothing_is_lost_and_nothing_is_left(chaos: tuple[Node, TestMount, str]) -> None:
    node, mount, image = chaos
    assert json.loads(node.unpackd("pull", image, "--json").stdout)["layers_unpacked"] == 0
    counts: Counter[str] = Counter()
    loads = [Load(node, image, number, counts) for number in range(WORKERS)]
    until = time.monotonic() + SECONDS
    threads = [threading.Thread(target=load.run, args=(until,)) for load in loads]
    for thread in threads:
        thread.start()
    victims = Victims(node, mount, counts)
    try:
        victims.run(until)
    finally:
        for thread in threads:
            thread.join(180)
    assert [load.wrong for load in loads] == [[]] * WORKERS

    listing = ("snapshots", "--snapshotter", PLUGIN, "ls")
    wait_until(lambda: node.ctr(*listing, check=False).returncode == 0, "everything's return", BACK_TIMEOUT_S)
    for load in loads:  # everything that was written is there, and all works
        for container in list(load.containers):
            load.verify(container)
        load._start()
        load._write()
        load._read()
        load._fresh()
    for load in loads:
        for container in list(load.containers):
            load.forget(container)
    remove_all(node)

    leftovers = [os.listdir(node.service.root / folder) for folder in ("s", "l", "e", "m", "t")]
    assert (leftovers, mounts_below(node.folder)) == ([[]] * 5, [])
    assert (mount.path / ".unpackd").is_dir()
    assert mount.control("pins") == []
    counts["shims that containerd forgot"] = end_shims(node.folder)
    print(json.dumps({"seconds": SECONDS, **dict(sorted(counts.items()))}, indent=1))


def remove_all(node: Node) -> None:
    """Take away what clients that failed half-way have left in containerd: leases, images, snapshots."""
    for lease in node.ctr("leases", "ls", "-q").stdout.split():
        node.ctr("leases", "rm", lease)
    node.ctr("images", "rm", "--sync", *node.ctr("images", "ls", "-q").stdout.split())

    left: list[str] = []

    def are_gone() -> bool:
        """A snapshot that comes and goes makes containerd look at all: it forgets over a restart where it has to."""
        names = [line.split()[0] for line in node.ctr("snapshots", "--snapshotter", PLUGIN, "ls").stdout.splitlines()]
        for name in [*names[1:], "last"]:
            if name == "last":
                node.ctr("snapshots", "--snapshotter", PLUGIN, "prepare", name, check=False)
            # a child that containerd collected stays a child for its own `rm`, but not for its next collection
            node.ctr("snapshots", "--snapshotter", PLUGIN, "label", name, "containerd.io/gc.root=", check=False)
            node.ctr("snapshots", "--snapshotter", PLUGIN, "rm", name, check=False)
        node.ctr("leases", "create", "--id", "last", check=False)
        node.ctr("leases", "rm", "--sync", "last", check=False)  # else it collects at a pace of its own
        left[:] = [info.name for info in node.client.list()]
        return not names[1:] and not left

    deadline = time.monotonic() + BACK_TIMEOUT_S
    while not are_gone():
        assert time.monotonic() < deadline, f"snapshots that nobody needs: {left}"
        time.sleep(0.5)
    node.client.cleanup()


def end_shims(folder: Path) -> int:
    """End the shims that containerd forgot when it was killed while it started them; gives how many there were."""
    count = 0
    for container in RUNC.glob(f"{MARK}-*"):
        subprocess.run(["runc", "--root", RUNC, "delete", "--force", container.name], check=False, timeout=30)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                if os.fsencode(folder) in command and b"shim" in command:
                    os.kill(int(entry.name), SIGKILL)
                    count += 1
    return count
