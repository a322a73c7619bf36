"""A machine that runs containers: a real containerd with the snapshotter as its proxy plugin."""

import os
import platform
import re
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.processes import require_root, require_tool, running, unmount_below, wait_until
from tests.support.snapshotter import UNPACKD, FakeRepository, Service, SnapshotsClient

PLUGIN = "cvmfs-snapshotter"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
SNIPPETS = Path(__file__).parent.parent.parent / "deploy" / "containerd"
_ADDRESS = "/run/unpackd-snapshotter/unpackd-snapshotter.sock"
_ROOT = "/var/lib/unpackd-snapshotter"
_UNUSED = ("btrfs", "zfs", "devmapper", "aufs", "blockfile")
_MACHINE = """version = {version}
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [{disabled}]
[grpc]
  address = "{folder}/c.sock"
"""
_PODS = {
    1: """[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "{sandbox}"
""",
    2: """[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{sandbox}"
""",
}


class CommandFailedError(Exception):
    """What was called ended with another status than 0; the text has what it said."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Which containerd is used: that in a folder, or the machine's own."""

    folder: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        """With it, containerd finds its shim."""
        return {} if self.folder is None else {"PATH": f"{self.folder}:{os.environ['PATH']}"}

    def path(self, name: str) -> str:
        return name if self.folder is None else str(self.folder / name)

    @property
    def release(self) -> tuple[int, int]:
        """The first two numbers of its version."""
        told = subprocess.run([self.path("containerd"), "--version"], check=True, capture_output=True, text=True)
        found = re.search(r" v?(\d+)\.(\d+)\.\d", told.stdout)
        assert found is not None, told.stdout
        return int(found[1]), int(found[2])


def configuration(folder: Path, service: Service, release: tuple[int, int], sandbox: str | None) -> str:
    """What ``deploy/containerd`` says for the release, with the paths of a test, and what this machine needs besides.

    Without *sandbox*, pods cannot be run.
    """
    name = "2" if release[0] > 1 else ".".join(map(str, release))
    snippet = (SNIPPETS / f"{name}.toml").read_text()
    version, sign, snippet = snippet.partition("\n[")
    given = re.search(r"^version = (\d)", version, re.MULTILINE)
    assert given is not None
    for theirs, ours in ((_ADDRESS, service.address), (_ROOT, service.root), ("linux/amd64", f"linux/{ARCHITECTURE}")):
        snippet = snippet.replace(f'"{theirs}"', f'"{ours}"')
    disabled = [f'"io.containerd.snapshotter.v1.{unused}"' for unused in _UNUSED]
    if sandbox is None and release[0] == 1:
        disabled.append('"io.containerd.grpc.v1.cri"')
    machine = _MACHINE.format(version=given[1], folder=folder, disabled=", ".join(disabled))
    pods = "" if sandbox is None else _PODS[1 if release[0] == 1 else 2].format(sandbox=sandbox)
    return machine + pods + sign + snippet


@dataclass(slots=True)
class Node:
    """containerd, the snapshotter, a repository."""

    folder: Path
    service: Service
    repository: FakeRepository
    client: SnapshotsClient
    stack: ExitStack
    programs: Programs = field(default_factory=Programs)
    containerd: "subprocess.Popen[bytes] | None" = None

    @property
    def socket(self) -> Path:
        return self.folder / "c.sock"

    @property
    def version(self) -> tuple[int, ...]:
        """Version of containerd: the first two numbers."""
        return self.programs.release

    def ctr(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Raises CommandFailedError: it ends with another status than 0, and *check* is set."""
        command = [self.programs.path("ctr"), "--address", str(self.socket), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise CommandFailedError(f"{command}: {done.stderr}")
        return done

    def unpackd(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [str(UNPACKD), *arguments, "--containerd", str(self.socket)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
        return done

    def kill_and_restart_snapshotter(self) -> SnapshotsClient:
        """End the snapshotter the hard way and start it again; containerd finds it again within seconds."""
        self.service.kill()
        self.client = self.stack.enter_context(self.service.started())
        listing = ("snapshots", "--snapshotter", PLUGIN, "ls")
        wait_until(lambda: self.ctr(*listing, check=False).returncode == 0, "containerd's new connection")
        return self.client

    def kill_and_restart_containerd(self) -> None:
        """End containerd the hard way and start it again; what runs goes on, the shims are processes of their own."""
        assert self.containerd is not None
        self.containerd.kill()
        self.containerd.wait(10)
        self.start_containerd()

    def start_containerd(self) -> None:
        """Start containerd and wait until it answers."""
        command = [self.programs.path("containerd"), "--config", self.folder / "config.toml"]
        log = self.folder / "containerd.log"
        started = running(command, log, environment=self.programs.environment)
        self.containerd = self.stack.enter_context(started)
        wait_until(lambda: self.ctr("version", check=False).returncode == 0, "the start of containerd")

    def remove(self, name: str) -> None:
        """End a container and forget it."""
        self.ctr("tasks", "kill", "--signal", "SIGKILL", name)
        wait_until(lambda: "STOPPED" in self.ctr("tasks", "ls").stdout, "the end of the container")
        self.ctr("tasks", "rm", name)
        self.ctr("containers", "rm", name)

    def run(self, image: str, name: str, *command: str, snapshotter: str = PLUGIN) -> str:
        """Run a container to its end; gives what it printed."""
        return self.printed(("run",), "--rm", "--snapshotter", snapshotter, image, unique(name), *command)

    def execute(self, container: str, *command: str) -> str:
        """Run a program in a container that goes on; gives what it printed."""
        return self.printed(("tasks", "exec"), "--exec-id", unique("e"), container, *command)

    def printed(self, verb: Sequence[str], *arguments: str) -> str:
        """What a process prints that ``ctr run``, ``ctr tasks start`` or ``exec``, the *verb*, starts.

        Its shim writes it to a file: ctr drops what it has not yet copied when the process ends (containerd#13931).
        """
        log = self.folder / f"{unique('printed')}.log"
        self.ctr(*verb, "--log-uri", f"file://{log}", *arguments)
        return log.read_text()

    def start(self, image: str, name: str, *command: str, options: Sequence[str] = ()) -> str:
        """Start a container that goes on; gives its name, which begins with *name*."""
        container = unique(name)
        self.ctr("run", "-d", "--snapshotter", PLUGIN, *options, image, container, *command)
        return container


def unique(name: str) -> str:
    """A name for a container that no other node of this machine has: what runc knows is the machine's."""
    return f"{name}-{uuid.uuid4().hex[:12]}"


@contextmanager
def running_node(
    folder: Path,
    repository: FakeRepository,
    *options: str,
    sandbox: str | None = None,
    programs: Programs | None = None,
    settings: str = "",
) -> Iterator[Node]:
    """One node below *folder*; what it has mounted is unmounted afterwards.

    Args:
        folder: for its state and sockets: a short path.
        repository: the directory at which images are.
        options: more options of the snapshotter.
        sandbox: image for the sandboxes of pods; None for a containerd without CRI.
        programs: which containerd.
        settings: more of its configuration.
    """
    require_root()
    require_tool("runc")
    if programs is None:
        require_tool("containerd", "ctr")
    programs = programs or Programs()
    service = Service(folder / "s", repository.root, options)
    service.folder.mkdir()
    text = configuration(folder, service, programs.release, sandbox)
    (folder / "config.toml").write_text(text + settings)
    with ExitStack() as stack:
        client = stack.enter_context(service.started())
        stack.callback(unmount_below, folder)
        node = Node(folder, service, repository, client, stack, programs)
        node.start_containerd()
        yield node
