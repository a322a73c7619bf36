"""What a mount costs: names, small reads, listings and long reads, beside a local directory in the same run.

Run as root from the project folder: ``python -m benchmarks.client [--frontend NAME] [--files N] [--runs N] [--json]``.

Each run makes a fresh mount with an empty cache over HTTP on the loopback. *cold* is the first time in a mount (names
are looked up, objects fetched), *disk* a second mount over the same cache, *warm* the second time in the same mount.
Numbers are microseconds an operation (MiB/s for long reads), the median over the runs.
"""

import argparse
import json
import os
import shutil
import socket
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fs.format.tree import Node
from fs.publish.operations import Graft
from fs.publish.repository import Repository

NAME = "bench.example.org"
SMALL_BYTES = 4096
LONG_BYTES = 64 << 20
IN_ONE_FOLDER = 5000
PROCESSES = 64
UNPACKD = (sys.executable, "-m", "unpackd")


def build(work: Path, files: int) -> None:
    """Publish *files* small files, one folder of IN_ONE_FOLDER empty ones and a long file; and the same locally."""
    keys = work / "keys"
    keys.mkdir()
    repository = Repository.create(NAME, str(work / "storage"), keys, durable=False)
    ingester = repository.ingester()
    local = work / "local"
    small, many = (Node(mode=stat.S_IFDIR | 0o755) for _ in range(2))
    for folder in ("small", "many"):
        (local / folder).mkdir(parents=True)
    for number in range(files):
        content = os.urandom(SMALL_BYTES // 2) * 2
        small.children[b"%d" % number] = Node(mode=stat.S_IFREG | 0o644, content=ingester.add_bytes(content))
        (local / "small" / str(number)).write_bytes(content)
    for number in range(IN_ONE_FOLDER):
        many.children[b"%d" % number] = Node(mode=stat.S_IFREG | 0o644, content=ingester.add_bytes(b""))
        (local / "many" / str(number)).write_bytes(b"")
    pattern = os.urandom(1 << 20)
    with (local / "long").open("wb") as stream:
        for number in range(LONG_BYTES // len(pattern)):
            stream.write(number.to_bytes(8) + pattern[8:])
    with (local / "long").open("rb") as stream:
        long = Node(mode=stat.S_IFREG | 0o644, content=ingester.add_stream(stream.read, LONG_BYTES))
    root = Node(mode=stat.S_IFDIR | 0o755, children={b"small": small, b"many": many, b"long": long})
    repository.commit([Graft(b"/tree", repository.prepare_subtree(b"/tree", root))])


@contextmanager
def origin(work: Path) -> Iterator[str]:
    """The HTTP origin, as users run it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (work / "origin.log").open("w") as log:
        server = subprocess.Popen(
            [*UNPACKD, "repo", "serve", "--storage", work / "storage", "--listen", f"127.0.0.1:{port}"], stderr=log
        )
    try:
        deadline = time.monotonic() + 20
        while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/cvmfs/{NAME}"
    finally:
        server.terminate()
        server.wait(20)


@contextmanager
def mount(work: Path, url: str, frontend: str) -> Iterator[Path]:
    """A mount over ``work/cache``."""
    mountpoint = work / "mnt"
    mountpoint.mkdir(exist_ok=True)
    arguments = ["--url", url, "--pubkey", work / "keys" / f"{NAME}.pub", "--cache", work / "cache"]
    arguments += ["--frontend", frontend]
    subprocess.run([*UNPACKD, "mount", NAME, mountpoint, *arguments], check=True, capture_output=True, timeout=60)
    try:
        yield mountpoint / "tree"
    finally:
        subprocess.run([*UNPACKD, "umount", mountpoint], check=True, capture_output=True, timeout=60)


def each(paths: list[str], operation: Callable[[str], object]) -> float:
    """Microseconds that *operation* takes on average."""
    began = time.perf_counter()
    for path in paths:
        operation(path)
    return (time.perf_counter() - began) / len(paths) * 1e6


def read_small(path: str) -> None:
    """Open, read, close, with system calls alone."""
    descriptor = os.open(path, os.O_RDONLY)
    os.read(descriptor, SMALL_BYTES)
    os.close(descriptor)


def read_long(path: Path) -> float:
    """MiB/s of reading a file from its beginning to its end."""
    began = time.perf_counter()
    descriptor = os.open(path, os.O_RDONLY)
    while os.read(descriptor, 1 << 20):
        pass
    os.close(descriptor)
    return LONG_BYTES / (1 << 20) / (time.perf_counter() - began)


def list_many(folder: Path) -> float:
    """Microseconds an entry of a listing."""
    began = time.perf_counter()
    count = sum(1 for _ in os.scandir(folder))
    return (time.perf_counter() - began) / count * 1e6


def together(paths: list[str]) -> float:
    """Microseconds that reading a small file takes when PROCESSES do it at the same time; wall time, per file."""
    began = time.perf_counter()
    readers: list[int] = []
    for _ in range(PROCESSES):
        reader = os.fork()
        if not reader:
            for path in paths:
                read_small(path)
            os._exit(0)
        readers.append(reader)
    for reader in readers:
        if os.waitpid(reader, 0)[1]:
            raise OSError("a reader failed")
    return (time.perf_counter() - began) / len(paths) / PROCESSES * 1e6


def measure(root: Path, names: list[str], word: str) -> dict[str, float]:
    """All figures of one pass; *word* says what state the caches are in."""
    paths = [f"{root}/small/{name}" for name in names]
    return {
        f"{word} stat us": each(paths, os.stat),
        f"{word} open+read+close us": each(paths, read_small),
        f"{word} readdir us": list_many(root / "many"),
        f"{word} long read MiB/s": read_long(root / "long"),
        f"{word} {PROCESSES} processes open+read+close us": together(paths),
    }


def one_run(work: Path, url: str, names: list[str], frontends: list[str]) -> dict[str, float]:
    """A local pass, then for each front end cold, warm, and over the disk cache."""
    figures = measure(work / "local", names, "local")
    for frontend in frontends:
        shutil.rmtree(work / "cache", ignore_errors=True)
        with mount(work, url, frontend) as root:
            figures |= measure(root, names, f"{frontend} cold")
            figures |= measure(root, names, f"{frontend} warm")
        with mount(work, url, frontend) as root:
            figures |= measure(root, names, f"{frontend} disk")
    return figures


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frontend", action="append", choices=["pyfuse3", "wire"], help="repeatable; all by default")
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    names = [str(number) for number in range(arguments.files)]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        build(work, arguments.files)
        with origin(work) as url:
            runs = [one_run(work, url, names, arguments.frontend or ["pyfuse3", "wire"]) for _ in range(arguments.runs)]
    medians = {key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0]}
    if arguments.json:
        print(json.dumps({"files": arguments.files, "runs": arguments.runs, "medians": medians}, indent=2))
    else:
        for key, value in medians.items():
            print(f"{key:48} {value:10}")


if __name__ == "__main__":
    main()
