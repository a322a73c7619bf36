"""Real mounts for tests: started by the command, unmounted at the end."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import unmount_below

UNPACKD = (sys.executable, "-m", "unpackd")


def unpackd(*arguments: str | Path, timeout_s: float = 120) -> "subprocess.CompletedProcess[str]":
    """Run the command and give what came of it."""
    return subprocess.run(
        [*UNPACKD, *map(str, arguments)], capture_output=True, text=True, timeout=timeout_s, check=False
    )


@dataclass(frozen=True)
class TestMount:
    """A repository that is mounted."""

    __test__ = False

    path: Path
    log: Path
    pid: int

    def control(self, question: str) -> Any:  # noqa: ANN401  # JSON
        done = unpackd("mountctl", self.path, question, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def log_text(self) -> str:
        return self.log.read_text()


@contextmanager
def mounted(
    name: str, urls: Sequence[str], public_key: Path, work: Path, *options: str | Path, key_option: str = "--pubkey"
) -> Iterator[TestMount]:
    """Mount at ``work/mnt`` with the cache in ``work/cache``."""
    mountpoint = work / "mnt"
    mountpoint.mkdir(parents=True, exist_ok=True)
    done = unpackd(
        "mount", name, mountpoint, "--url", ",".join(urls), key_option, public_key, "--cache", work / "cache",
        "--json", *options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    try:
        yield TestMount(mountpoint, Path(answer["log"]), answer["pid"])
    finally:
        unpackd("umount", mountpoint)
        unmount_below(work)
