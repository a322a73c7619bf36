"""Starting real servers for tests, and ending exactly what was started."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port of *address* that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
    return port


def require_tool(*names: str) -> None:
    """Skip the test, with a word why, unless all programs are there."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs the program {missing[0]}, which is not installed")


def require_root() -> None:
    """Skip the test unless it runs as root."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


def wait_until(ready: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
    """Wait until *ready* is true; fail with *what* after *timeout_s*."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {timeout_s} s")
        time.sleep(0.02)


def has_ended(pid: int) -> bool:
    """True if there is no such process, or nobody has asked yet what became of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def listens(port: int, address: str = "127.0.0.1") -> bool:
    """True if something accepts connections on *port* of *address*."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((address, port)) == 0


@contextmanager
def running(
    command: Sequence[str | Path], log: Path, *, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run *command* in a process group of its own, output to *log*; ended (TERM, then KILL) at the end."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End *process* and wait for it; nothing happens if it has ended. It is our own child, so its pid is still its."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_TIMEOUT_S)


def mounts_below(directory: Path) -> list[str]:
    """Mount points at or below *directory*, deepest first."""
    prefix = str(directory)
    with Path("/proc/self/mounts").open() as table:
        points = [line.split(" ")[1].encode().decode("unicode_escape") for line in table]
    return sorted((p for p in points if p == prefix or p.startswith(prefix + "/")), key=len, reverse=True)


def unmount_below(directory: Path) -> None:
    """Lazily unmount everything at or below *directory*, which belongs to the test."""
    for point in mounts_below(directory):
        subprocess.run(["umount", "-l", point], check=False, capture_output=True, timeout=30)
