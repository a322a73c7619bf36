"""What publishing costs: ingest beside a bare loop of deflate and hash over the same bytes, commits beside full houses.

Run from the project's folder: ``python -m benchmarks.publish [--runs N] [--images N[,N…]] [--json]``.

*ingest* stores new contents, files in the page cache, from one and from two threads; *bare* compresses and hashes the
same bytes and stores nothing: what this machine could do at best. *commit* grafts finished subtrees into a repository
that holds the named number of images already. Medians over the runs.
"""

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fs.format.compression import deflate
from fs.format.hashes import Hash
from fs.format.tree import Node
from fs.publish.operations import Graft, PutSymlink
from fs.publish.repository import Repository

NAME = "bench.example.org"
MIB = 1 << 20
SETS = {"small (2 KiB)": (2048, 12_000), "middle (64 KiB)": (64 << 10, 1_500), "large (64 MiB)": (64 << 20, 3)}
GRAFTS = (1, 10, 100)


def contents(size: int, count: int, seed: int) -> list[bytes]:
    """*count* different contents that compress about as well as programs do."""
    chance = random.Random(seed)
    words = [chance.randbytes(chance.randint(3, 12)) for _ in range(4000)]
    block = b"".join(chance.choice(words) for _ in range(MIB // 2))

    def piece(length: int) -> bytes:
        start = chance.randrange(len(block) - length)
        return (chance.randbytes(16) + block[start : start + length])[:length]

    return [b"".join(piece(min(MIB, size - at)) for at in range(0, size, MIB)) for _ in range(count)]


def rate(files: Sequence[bytes], work: Callable[[bytes], object], threads: int) -> tuple[float, float]:
    """MiB and files a second of *work* over *files*."""
    before = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, files, chunksize=16):
            pass
    seconds = time.perf_counter() - before
    return sum(map(len, files)) / MIB / seconds, len(files) / seconds


def ingest(repository: Repository, data: bytes) -> None:
    """Store one file as the converter does."""
    ingester = repository.ingester()
    if len(data) <= 4 * MIB:
        ingester.add_bytes(data)
        return
    view, position = memoryview(data), 0

    def read(size: int) -> bytes:
        nonlocal position
        part = bytes(view[position : position + size])
        position += len(part)
        return part

    ingester.add_stream(read, len(data))


def bare(data: bytes) -> None:
    """The least that storing needs: name of the plain bytes, compression, name of the result."""
    view = memoryview(data)
    for start in range(0, len(data), 8 * MIB):
        part = view[start : start + 8 * MIB]
        Hash.of(part)
        Hash.of(deflate(part))


def measure_ingest(folder: Path, runs: int) -> list[dict[str, object]]:
    """One line a set of files and number of threads."""
    lines: list[dict[str, object]] = []
    for label, (size, count) in SETS.items():
        for threads in (1, 2):
            stored, limit = [], []
            for run in range(runs):
                files = contents(size, count, run)
                repository = fresh(folder)
                limit.append(rate(files, bare, threads))
                stored.append(rate(files, lambda data, to=repository: ingest(to, data), threads))  # type: ignore[misc]
            mib, per_second = (statistics.median(values) for values in zip(*stored, strict=True))
            limit_mib = statistics.median(value for value, _ in limit)
            lines.append(
                {
                    "files": label,
                    "threads": threads,
                    "mib_per_s": round(mib, 1),
                    "files_per_s": round(per_second),
                    "bare_mib_per_s": round(limit_mib, 1),
                    "part_of_bare": round(mib / limit_mib, 2),
                }
            )
    return lines


def measure_commits(folder: Path, runs: int, houses: Sequence[int]) -> list[dict[str, object]]:
    """One line a number of grafts and of images that are there."""
    lines: list[dict[str, object]] = []
    repository = fresh(folder)
    there = 0
    for images in houses:
        while there < images:
            step = min(images - there, 2000)
            repository.commit(grafts(repository, there, step))
            there += step
        for count in GRAFTS:
            seconds = []
            for _ in range(runs):
                operations = grafts(repository, there, count)
                before = time.perf_counter()
                repository.commit(operations)
                seconds.append(time.perf_counter() - before)
                there += count
            lines.append({"images": images, "grafts": count, "seconds": round(statistics.median(seconds), 4)})
    return lines


def grafts(repository: Repository, first: int, count: int) -> list[Graft | PutSymlink]:
    """The operations that add *count* small images, numbered from *first* on."""
    content = repository.ingester().add_bytes(b"x")
    operations: list[Graft | PutSymlink] = []
    for number in range(first, first + count):
        name = Hash.of(b"%d" % number).digest.hex().encode()
        path = b"/.flat/" + name[:2] + b"/" + name
        tree = Node(mode=0o040755, children={b"file": Node(mode=0o100644, content=content)})
        operations.append(Graft(path, repository.prepare_subtree(path, tree)))
        operations.append(PutSymlink(b"/registry.example.org/r%03d/i:%d" % (number % 997, number), b"../.." + path))
    return operations


def fresh(folder: Path) -> Repository:
    """An empty repository in place of the one before."""
    for part in ("storage", "keys"):
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / "keys").mkdir()
    return Repository.create(NAME, str(folder / "storage"), folder / "keys")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--images", default="10,10000", help="numbers of images that are there when commits are timed")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="unpackd-bench-") as folder:
        report = {
            "cpus": os.cpu_count(),
            "load": os.getloadavg()[0],
            "runs": options.runs,
            "ingest": measure_ingest(Path(folder), options.runs),
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "commit": measure_commits(Path(folder), options.runs, [int(n) for n in options.images.split(",")]),
        }
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for part in ("ingest", "commit"):
        for line in report[part]:  # type: ignore[attr-defined]
            print("  ".join(f"{key} {value}" for key, value in line.items()))
    print(f"peak memory {report['peak_rss_mib']} MiB (with the test data)")


if __name__ == "__main__":
    main()
