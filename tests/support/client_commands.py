"""nerdctl and Docker as users call them, beside a node's own containerd."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.node import PLUGIN, Node
from tests.support.processes import running, wait_until

TIMEOUT_S = 120
NERDCTL_NAMESPACE = "nerd"


@dataclass(frozen=True, slots=True)
class Nerdctl:
    """nerdctl with all that it keeps below one folder."""

    program: Path
    node: Node
    folder: Path

    def __call__(self, *arguments: str | Path, snapshotter: str = PLUGIN) -> str:
        """What the command prints; the test fails if it does."""
        where = ["--address", self.node.socket, "--namespace", NERDCTL_NAMESPACE, "--data-root", self.folder / "data"]
        where += ["--cgroup-manager", "cgroupfs", "--cni-netconfpath", self.folder / "cni", "--insecure-registry"]
        command = [self.program, *where, "--snapshotter", snapshotter, *arguments]
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env={**os.environ, **self.node.programs.environment, "NERDCTL_TOML": str(self.folder / "none.toml")},
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout


@dataclass(frozen=True, slots=True)
class Docker:
    """A client of a running engine."""

    program: Path
    socket: Path

    def __call__(self, *arguments: str) -> str:
        """What the command prints; the test fails if it does."""
        command = [self.program, "--host", f"unix://{self.socket}", *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout


@contextmanager
def running_docker(folder: Path, programs: Path, node: Node, registry: str) -> Iterator[Docker]:
    """An engine whose images are in the node's containerd; it leaves the machine's network alone.

    Args:
        folder: for its state.
        programs: where the packages were unpacked.
        node: whose containerd.
        registry: host and port of one that speaks plain HTTP.
    """
    settings = {"features": {"containerd-snapshotter": True}, "storage-driver": PLUGIN}
    folder.mkdir()
    (folder / "daemon.json").write_text(json.dumps(settings))
    socket = folder / "d.sock"
    network = ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
    state = [f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid"]
    command = [
        programs / "usr/sbin/dockerd", f"--config-file={folder}/daemon.json", f"--host=unix://{socket}",
        f"--containerd={node.socket}", f"--insecure-registry={registry}", *state, *network,
    ]  # fmt: skip
    path = f"{programs}/usr/bin:{programs}/usr/sbin:{os.environ['PATH']}"
    with running(command, folder / "log", environment={"PATH": path}) as process:
        docker = Docker(programs / "usr/bin/docker", socket)
        wait_until(lambda: socket.exists() or process.poll() is not None, "the start of dockerd", 60)
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        yield docker
