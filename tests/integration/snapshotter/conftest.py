"""A real containerd with the snapshotter as its proxy plugin."""

import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import require_root, require_tool, running, unmount_below, wait_until
from tests.support.snapshotter import UNPACKD, FakeRepository, Service, SnapshotsClient, service_folder

PLUGIN = "cvmfs-snapshotter"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
_UNUSED = ("btrfs", "zfs", "devmapper", "aufs")


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that runs containers: containerd, the snapshotter, a repository."""

    folder: Path
    service: Service
    repository: FakeRepository
    client: SnapshotsClient
    stack: ExitStack

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
        client = self.stack.enter_context(self.service.started())
        listing = ("snapshots", "--snapshotter", PLUGIN, "ls")
        wait_until(lambda: self.ctr(*listing, check=False).returncode == 0, "containerd's new connection")
        return client

    def run(self, image: str, name: str, *command: str) -> str:
        """Run a container to its end; gives what it printed."""
        return self.ctr("run", "--rm", "--snapshotter", PLUGIN, image, name, *command).stdout


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """One node a test module; what it has mounted is unmounted afterwards."""
    require_root()
    require_tool("containerd", "ctr", "runc")
    with service_folder() as folder, ExitStack() as stack:
        repository = FakeRepository(folder / "repository")
        repository.root.mkdir()
        service = Service(folder / "s", repository.root)
        service.folder.mkdir()
        client = stack.enter_context(service.started())
        disabled = ", ".join(f'"io.containerd.snapshotter.v1.{name}"' for name in _UNUSED)
        config = folder / "config.toml"
        config.write_text(
            f"""version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [{disabled}, "io.containerd.grpc.v1.cri"]
[grpc]
  address = "{folder}/c.sock"
[proxy_plugins.{PLUGIN}]
  type = "snapshot"
  address = "{service.address}"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/{ARCHITECTURE}"
  snapshotter = "{PLUGIN}"
""",
        )
        stack.callback(unmount_below, folder)
        stack.enter_context(running(["containerd", "--config", config], folder / "containerd.log"))
        node = Node(folder, service, repository, client, stack)
        wait_until(lambda: node.ctr("version", check=False).returncode == 0, "the start of containerd")
        yield node
