"""A machine that runs containers: a real containerd with the snapshotter as its proxy plugin."""

import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import require_root, require_tool, running, unmount_below, wait_until
from tests.support.snapshotter import UNPACKD, FakeRepository, Service, SnapshotsClient

PLUGIN = "cvmfs-snapshotter"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
_UNUSED = ("btrfs", "zfs", "devmapper", "aufs")
_WITHOUT_CRI = 'disabled_plugins = [{disabled}, "io.containerd.grpc.v1.cri"]'
_WITH_CRI = """disabled_plugins = [{disabled}]
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "{sandbox}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{plugin}"
    disable_snapshot_annotations = false
"""
_CONFIG = """version = 2
root = "{folder}/root"
state = "{folder}/state"
{plugins}
[grpc]
  address = "{folder}/c.sock"
[proxy_plugins.{plugin}]
  type = "snapshot"
  address = "{address}"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/{architecture}"
  snapshotter = "{plugin}"
"""


@dataclass(slots=True)
class Node:
    """containerd, the snapshotter, a repository."""

    folder: Path
    service: Service
    repository: FakeRepository
    client: SnapshotsClient
    stack: ExitStack
    containerd: "subprocess.Popen[bytes] | None" = None

    @property
    def socket(self) -> Path:
        return self.folder / "c.sock"

    @property
    def version(self) -> tuple[int, ...]:
        """Version of containerd: the first two numbers."""
        told = self.ctr("version").stdout.partition("Server:")[2]
        return tuple(int(number) for number in re.findall(r"\d+", told)[:2])

    def ctr(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["ctr", "--address", str(self.socket), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
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
        command = ["containerd", "--config", self.folder / "config.toml"]
        self.containerd = self.stack.enter_context(running(command, self.folder / "containerd.log"))
        wait_until(lambda: self.ctr("version", check=False).returncode == 0, "the start of containerd")

    def run(self, image: str, name: str, *command: str, snapshotter: str = PLUGIN) -> str:
        """Run a container to its end; gives what it printed."""
        return self.ctr("run", "--rm", "--snapshotter", snapshotter, image, name, *command).stdout


@contextmanager
def running_node(folder: Path, repository: FakeRepository, *options: str, sandbox: str | None = None) -> Iterator[Node]:
    """One node below *folder*; what it has mounted is unmounted afterwards.

    Args:
        folder: for its state and sockets: a short path.
        repository: the directory at which images are.
        options: more options of the snapshotter.
        sandbox: image for the sandboxes of pods; None for a containerd without CRI.
    """
    require_root()
    require_tool("containerd", "ctr", "runc")
    service = Service(folder / "s", repository.root, options)
    service.folder.mkdir()
    disabled = ", ".join(f'"io.containerd.snapshotter.v1.{name}"' for name in _UNUSED)
    plugins = (_WITHOUT_CRI if sandbox is None else _WITH_CRI).format(disabled=disabled, sandbox=sandbox, plugin=PLUGIN)
    (folder / "config.toml").write_text(
        _CONFIG.format(
            folder=folder, plugins=plugins, plugin=PLUGIN, address=service.address, architecture=ARCHITECTURE
        )
    )
    with ExitStack() as stack:
        client = stack.enter_context(service.started())
        stack.callback(unmount_below, folder)
        node = Node(folder, service, repository, client, stack)
        node.start_containerd()
        yield node
