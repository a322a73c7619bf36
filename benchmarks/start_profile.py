"""What a recorded profile gains: cold starts of a Python tree from a server that is far away.

Run as root from the project's folder: ``python -m benchmarks.start_profile [--modules N] [--runs N] [--json]``.

The tree is a package of many modules, which one start imports all. Each start has a fresh mount over an empty cache,
through a relay that adds 20 ms to every round trip. *plain* reads as Python asks; *profile* fetches the recorded
profile first (``mountctl prefetch --profile``) and then starts; *mount* has it fetched by ``mount --profile`` while
the start runs. *local* is a local copy of the tree. Seconds, the median over the runs.
"""

import argparse
import json
import shutil
import socket
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.client import NAME, UNPACKD, origin
from fs.format.tree import Node
from fs.publish.operations import Graft
from fs.publish.repository import Repository
from tests.support.delaying_relay import delaying_relay

IN_ONE_FOLDER = 100


def build(work: Path, modules: int) -> None:
    """Publish a package of *modules* modules, and write the same locally."""
    keys = work / "keys"
    keys.mkdir()
    repository = Repository.create(NAME, str(work / "storage"), keys, durable=False)
    ingester = repository.ingester()
    root = Node(mode=stat.S_IFDIR | 0o755)

    def put(folder: Node, place: Path, name: str, text: str) -> None:
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
        folder.children[name.encode()] = Node(mode=stat.S_IFREG | 0o644, content=ingester.add_bytes(text.encode()))

    names: list[str] = []
    for number in range(0, modules, IN_ONE_FOLDER):
        package = f"p{number // IN_ONE_FOLDER}"
        folder = root.children[package.encode()] = Node(mode=stat.S_IFDIR | 0o755)
        put(folder, work / "local" / package, "__init__.py", "")
        for one in range(number, min(number + IN_ONE_FOLDER, modules)):
            body = "\n".join(f"def function_{one}_{line}(value):\n    return value + {line}" for line in range(30))
            put(folder, work / "local" / package, f"m{one}.py", body)
            names.append(f"{package}.m{one}")
    put(root, work / "local", "start.py", "\n".join(f"import {name}" for name in names))
    repository.commit([Graft(b"/tree", repository.prepare_subtree(b"/tree", root))])


@contextmanager
def mount(work: Path, url: str, *options: str | Path) -> Iterator[Path]:
    """A fresh mount."""
    shutil.rmtree(work / "cache", ignore_errors=True)
    mountpoint = work / "mnt"
    mountpoint.mkdir(exist_ok=True)
    arguments = ["--url", url, "--pubkey", work / "keys" / f"{NAME}.pub", "--cache", work / "cache", *options]
    subprocess.run([*UNPACKD, "mount", NAME, mountpoint, *arguments], check=True, capture_output=True, timeout=60)
    try:
        yield mountpoint
    finally:
        subprocess.run([*UNPACKD, "umount", mountpoint], check=True, capture_output=True, timeout=60)


def start(root: Path) -> float:
    """Seconds that a start takes."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-IBS", "-c", f"import sys; sys.path.insert(0, {str(root)!r}); import start"], check=True
    )
    return time.perf_counter() - began


def mountctl(mountpoint: Path, *arguments: str | Path) -> bytes:
    """What mountctl prints."""
    command = [*UNPACKD, "mountctl", mountpoint, *arguments, "--json"]
    return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout


def one_run(work: Path, url: str) -> dict[str, float]:
    """All ways to start, once each."""
    profile = work / "profile.json"
    figures = {"local start": start(work / "local")}
    with mount(work, url) as mountpoint:
        figures["plain start"] = start(mountpoint / "tree")
        profile.write_bytes(mountctl(mountpoint, "profile"))
        figures["warm start"] = start(mountpoint / "tree")
    with mount(work, url) as mountpoint:
        figures["profile fetch"] = json.loads(mountctl(mountpoint, "prefetch", "--profile", profile))["seconds"]
        figures["profile start"] = start(mountpoint / "tree")
        figures["profile fetch+start"] = figures["profile fetch"] + figures["profile start"]
    with mount(work, url, "--profile", profile) as mountpoint:
        figures["mount --profile start"] = start(mountpoint / "tree")
    return figures


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modules", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--round-trip-ms", type=float, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        build(work, arguments.modules)
        with origin(work) as url:
            place = urlsplit(url)
            target = socket.gethostbyname(place.hostname or ""), place.port or 80
            with delaying_relay(target, arguments.round_trip_ms / 1000) as relay:
                far = f"http://127.0.0.1:{relay.port}{place.path}"
                runs = [one_run(work, far) for _ in range(arguments.runs)]
    medians = {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
    if arguments.json:
        print(json.dumps({**vars(arguments), "medians": medians}, indent=2))
    else:
        for key, value in medians.items():
            print(f"{key:24} {value:8} s")


if __name__ == "__main__":
    main()
