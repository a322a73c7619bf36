"""What is done to a mount while it is read: its origin restarts, its daemon is killed; and a look at its processes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.soak.world import NAME

UNPACKD = (sys.executable, "-m", "unpackd")
_READY_TIMEOUT_S = 60.0


class Origin:
    """The HTTP origin, as users run it, always on the same port."""

    def __init__(self, storage: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self._storage = storage
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.restarts = 0
        self.longest_absence_s = 0.0

    @property
    def url(self) -> str:
        """Of the repository."""
        return f"http://127.0.0.1:{self._port}/cvmfs/{NAME}"

    def start(self) -> None:
        """Start, and wait until it listens."""
        command = [*UNPACKD, "repo", "serve", "--storage", str(self._storage), "--listen", f"127.0.0.1:{self._port}"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", self._port)):
                    return
            time.sleep(0.05)
        raise TimeoutError("the origin does not listen")

    def stop(self, how: int = signal.SIGTERM) -> None:
        """End it."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def restart(self) -> None:
        """Once politely, once not."""
        began = time.monotonic()
        self.stop(signal.SIGKILL if self.restarts % 2 else signal.SIGTERM)
        self.start()
        self.restarts += 1
        self.longest_absence_s = max(self.longest_absence_s, time.monotonic() - began)


@dataclass(frozen=True, slots=True)
class Look:
    """What a process took at a moment."""

    at_s: float  # since the beginning
    age_s: float  # of the daemon
    daemon_kib: int
    daemon_descriptors: int
    daemon_threads: int
    holder_kib: int
    holder_descriptors: int
    journal_bytes: int
    known_inodes: int


class Mounted:
    """The mount under test."""

    def __init__(self, public_key: Path, work: Path, url: str, quota_bytes: int, options: list[str]) -> None:
        self.mountpoint = work / "mnt"
        self.mountpoint.mkdir()
        self._cache = work / "cache"
        arguments = ["--url", url, "--pubkey", public_key, "--cache", self._cache, "--quota", str(quota_bytes)]
        command = [*UNPACKD, "mount", NAME, self.mountpoint, "--json", *arguments, *options]
        answer = json.loads(subprocess.run([str(one) for one in command], check=True, capture_output=True).stdout)
        self.log = Path(answer["log"])
        self._process: int = answer["pid"]
        self.kills = 0
        self._began = time.monotonic()
        self._daemon_since = (0, self._began)

    def daemon(self) -> int:
        """The process that answers now: the holder's child, or, without a holder, what was started; 0 if none."""
        if not self.is_held:
            return self._process
        children = Path(f"/proc/{self._process}/task/{self._process}/children").read_text("ascii").split()
        return int(children[-1]) if children else 0

    @property
    def is_held(self) -> bool:
        """True if a holder keeps the session."""
        return b"fs.client.holder" in Path(f"/proc/{self._process}/cmdline").read_bytes()

    def kill(self) -> None:
        """SIGKILL to the daemon, whatever it is doing."""
        daemon = self.daemon()
        if daemon:
            os.kill(daemon, signal.SIGKILL)
            self.kills += 1

    def control(self, question: str) -> dict[str, object] | None:
        """What the daemon says; None if it says nothing now."""
        done = subprocess.run(
            [*UNPACKD, "mountctl", str(self.mountpoint), question, "--json"],
            capture_output=True, check=False, timeout=120,
        )  # fmt: skip
        return dict(json.loads(done.stdout)) if done.returncode == 0 else None

    def look(self) -> Look | None:
        """The state of daemon and holder; None if the daemon is not there now."""
        daemon = self.daemon()
        if not daemon:
            return None
        if self._daemon_since[0] != daemon:
            self._daemon_since = (daemon, time.monotonic())
        status = self.control("status") or {}
        journals = list((self._cache / "mounts" / NAME).glob("mount-*.journal"))
        try:
            return Look(
                at_s=round(time.monotonic() - self._began, 1),
                age_s=round(time.monotonic() - self._daemon_since[1], 1),
                daemon_kib=_resident_kib(daemon),
                daemon_descriptors=_descriptors(daemon),
                daemon_threads=len(list(Path(f"/proc/{daemon}/task").iterdir())),
                holder_kib=_resident_kib(self._process),
                holder_descriptors=_descriptors(self._process),
                journal_bytes=sum(journal.stat().st_size for journal in journals),
                known_inodes=int(str(status.get("known_inodes", 0))),
            )
        except (OSError, TypeError):  # it was killed meanwhile
            return None

    def unmount(self) -> None:
        """Unmount; by force if it must be."""
        done = subprocess.run([*UNPACKD, "umount", str(self.mountpoint)], capture_output=True, check=False, timeout=120)
        if done.returncode != 0 and os.path.ismount(self.mountpoint):
            subprocess.run(["umount", "-l", str(self.mountpoint)], check=False, timeout=60)


def _resident_kib(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text("ascii")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) if found else 0


def _descriptors(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/fd"))  # noqa: PTH208  # numbers, not paths


def as_lists(looks: list[Look]) -> list[dict[str, object]]:
    """For JSON."""
    return [asdict(look) for look in looks]
