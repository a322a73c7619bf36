"""The programs the demo starts: a registry, unpackd itself, containerd. Each is ended when its block ends."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0


class DemoError(Exception):
    """A step of the demo did not do what it should; the message says which and where its log is."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_until(ready: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S) -> float:
    """Wait until *ready*; gives the seconds it took. Raises DemoError after *timeout_s*."""
    started = time.monotonic()
    while not ready():
        if time.monotonic() - started > timeout_s:
            raise DemoError(f"{what} did not happen within {timeout_s:.0f} s")
        time.sleep(0.05)
    return time.monotonic() - started


def listens(port: int) -> bool:
    """True if something accepts connections on *port* of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def run(command: Sequence[str | Path], *, timeout_s: float = 300) -> str:
    """Run *command* and give its standard output. Raises DemoError with its last words."""
    try:
        done = subprocess.run(
            [str(part) for part in command], check=False, capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"{command[0]} did not end within {timeout_s:.0f} s") from error
    if done.returncode != 0:
        raise DemoError(f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    return done.stdout


@contextmanager
def running(command: Sequence[str | Path], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server with its output in *log*: TERM at the end, KILL if it does not obey."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_TIMEOUT_S)


def started(process: subprocess.Popen[bytes], ready: Callable[[], bool], name: str, log: Path) -> float:
    """Wait until *process* is *ready*. Raises DemoError with the end of its log if it ends instead."""
    seconds = wait_until(lambda: process.poll() is not None or ready(), f"the start of {name} (log: {log})")
    if process.poll() is not None:
        raise DemoError(f"{name} ended at its start: {log.read_text(errors='replace')[-800:]}")
    return seconds


@contextmanager
def registry(folder: Path, port: int, notify_url: str) -> Iterator[Path]:
    """Debian's docker-registry on *port*, which tells *notify_url* of each push; gives its log."""
    config = {
        "version": 0.1,
        "log": {"level": "info", "formatter": "json"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": f"127.0.0.1:{port}"},
        "notifications": {
            "endpoints": [{"name": "unpackd", "url": notify_url, "timeout": "2s", "threshold": 3, "backoff": "1s"}]
        },
    }
    (folder / "registry.yml").write_text(json.dumps(config))  # JSON is YAML
    log = folder / "registry.log"
    with running(["docker-registry", "serve", folder / "registry.yml"], log) as process:
        started(process, lambda: listens(port), "docker-registry", log)
        yield log


def bytes_answered(registry_log: Path) -> int:
    """How many bytes the registry has sent so far, by its access log."""
    lines = registry_log.read_text(errors="replace").splitlines() if registry_log.exists() else []
    records = (json.loads(line) for line in lines if line.startswith("{") and '"http.response.written"' in line)
    return sum(int(record["http.response.written"]) for record in records)


@contextmanager
def containerd(folder: Path, snapshotter_socket: Path) -> Iterator[Path]:
    """Run containerd with its state in *folder* and our snapshotter as a plugin; gives its socket."""
    socket_path = folder / "containerd.sock"
    (folder / "containerd.toml").write_text(
        f"""version = 2
root = "{folder}/containerd-root"
state = "{folder}/containerd-state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "{socket_path}"
[proxy_plugins.cvmfs-snapshotter]
  type = "snapshot"
  address = "{snapshotter_socket}"
"""
    )
    log = folder / "containerd.log"
    try:
        with running(["containerd", "--config", folder / "containerd.toml"], log) as process:
            started(process, lambda: answers(["ctr", "--address", socket_path, "version"]), "containerd", log)
            yield socket_path
    finally:
        unmount_below(folder)


def answers(command: Sequence[str | Path]) -> bool:
    """True if *command* ends with 0 within a few seconds."""
    try:
        done = subprocess.run([str(part) for part in command], check=False, capture_output=True, timeout=5)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def unmount_below(folder: Path) -> None:
    """Unmount what is still mounted below *folder*, deepest first."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = [line.split(" ")[1].encode().decode("unicode_escape") for line in lines]
    for point in sorted((p for p in points if p.startswith(f"{folder}/")), key=len, reverse=True):
        subprocess.run(["umount", "-l", point], check=False, capture_output=True, timeout=30)


def require_root() -> None:
    """Raises DemoError unless this is root: chroot and containers need it."""
    if os.geteuid() != 0:
        raise DemoError("the demo mounts and starts containers: run it as root")
