"""What the daemon of a mount takes while the kernel knows very many entries of it.

Run as root from the project folder: ``python -m benchmarks.memory [--entries N] [--frontend NAME] [--json]``.

A fifth of the entries lie in one directory, the others in directories of a thousand. All are listed with their
attributes, so that the kernel has looked up every one and has forgotten none. MiB of resident memory, when the mount
is fresh, at the end and at most.
"""

import argparse
import json
import os
import re
import stat
import tempfile
import time
from pathlib import Path

from benchmarks.soak.faults import Mounted, Origin
from benchmarks.soak.world import NAME
from fs.format.tree import Node
from fs.publish.operations import Graft
from fs.publish.repository import Repository

IN_ONE_FOLDER = 1000
SHARE_OF_THE_LARGE_ONE = 0.2
SETTLED_S = 3.0
AT_ONCE = 100


def build(work: Path, entries: int) -> None:
    """Publish *entries* empty files."""
    keys = work / "keys"
    keys.mkdir()
    repository = Repository.create(NAME, str(work / "storage"), keys, durable=False)
    content = repository.ingester().add_bytes(b"")

    def folder(count: int) -> Node:
        made = Node(mode=stat.S_IFDIR | 0o755)
        for number in range(count):
            made.children[b"some-library-%07d.py" % number] = Node(mode=stat.S_IFREG | 0o644, content=content)
        return made

    large = int(entries * SHARE_OF_THE_LARGE_ONE)
    folders = {b"package-%d" % number: IN_ONE_FOLDER for number in range((entries - large) // IN_ONE_FOLDER)}
    waiting = [*{b"large": large, **folders}.items()]
    while waiting:
        part, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        repository.commit(
            [Graft(b"/" + name, repository.prepare_subtree(b"/" + name, folder(count))) for name, count in part]
        )


def resident_mib(process: int) -> tuple[float, float]:
    """Now, and the most so far."""
    status = Path(f"/proc/{process}/status").read_text("ascii")
    now, most = (re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmRSS", "VmHWM"))
    return tuple(round(int(found[1]) / 1024, 1) if found else 0.0 for found in (now, most))  # type: ignore[return-value]


def walk(root: Path) -> int:
    """List everything with its attributes; gives the number of entries."""
    count = 0
    for folder in sorted(os.scandir(root), key=lambda entry: entry.name):
        with os.scandir(folder) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
                count += 1
    return count


def measure(work: Path, frontend: str) -> dict[str, float]:
    """One mount."""
    origin = Origin(work / "storage", work / "origin.log")
    origin.start()
    key = work / "keys" / f"{NAME}.pub"
    place = work / frontend
    place.mkdir()
    try:
        mount = Mounted(key, place, origin.url, 4_000_000_000, ["--frontend", frontend])
        try:
            began = time.monotonic()
            fresh, _ = resident_mib(mount.daemon())
            entries = walk(mount.mountpoint)
            seconds = time.monotonic() - began
            time.sleep(SETTLED_S)
            now, most = resident_mib(mount.daemon())
            status = mount.control("status") or {}
            return {
                "entries": entries,
                "known_inodes": float(str(status["known_inodes"])),
                "fresh_mib": fresh,
                "resident_mib": now,
                "most_mib": most,
                "walk_s": round(seconds, 1),
            }
        finally:
            mount.unmount()
    finally:
        origin.stop()


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--frontend", action="append", choices=["pyfuse3", "wire"], help="repeatable; all by default")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        build(work, arguments.entries)
        figures = {frontend: measure(work, frontend) for frontend in arguments.frontend or ["wire", "pyfuse3"]}
    if arguments.json:
        print(json.dumps(figures, indent=1))
    else:
        for frontend, values in figures.items():
            print(frontend, *(f"{key} {value}" for key, value in values.items()))


if __name__ == "__main__":
    main()
