"""Ingest of new contents, beside a bare loop over the same bytes: what this machine could do at best.

The bare loop compresses and hashes (the plain bytes and the result) and stores nothing; it has a thread a worker. One
worker is the process itself, two are processes that it has started. Files lie in memory.
"""

import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.processes import family, peak_mib
from benchmarks.publish.places import Moment, fresh
from fs.format.compression import deflate
from fs.format.hashes import Hash
from fs.publish.ingest import Ingester
from fs.publish.repository import Repository

MIB = 1 << 20
_BATCH_FILES, _BATCH_BYTES = 256, MIB
SETS = {
    "2 KiB": (2048, 8000),
    "16 KiB": (16 << 10, 4000),
    "64 KiB": (64 << 10, 1500),
    "1 MiB": (1 << 20, 100),
    "64 MiB": (64 << 20, 3),
}


def contents(size: int, count: int, seed: int) -> list[bytes]:
    """*count* different contents that compress about as well as programs do."""
    chance = random.Random(seed)
    words = [chance.randbytes(chance.randint(3, 12)) for _ in range(4000)]
    block = b"".join(chance.choice(words) for _ in range(MIB // 2))

    def piece(length: int) -> bytes:
        start = chance.randrange(len(block) - length)
        return (chance.randbytes(16) + block[start : start + length])[:length]

    return [b"".join(piece(min(MIB, size - at)) for at in range(0, size, MIB)) for _ in range(count)]


def rate(files: Sequence[bytes], work: Callable[[Sequence[bytes]], object], threads: int) -> Moment:
    """What *work* takes over *files*, in batches as the converter makes them."""
    at_once = max(1, min(_BATCH_FILES, _BATCH_BYTES // len(files[0])))
    batches = [files[start : start + at_once] for start in range(0, len(files), at_once)]
    before = Moment.now()
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, batches):
            pass
    return Moment.now().since(before)


def ingest(repository: Repository, files: Sequence[bytes]) -> None:
    """Store some files as the converter does."""
    ingester = repository.ingester()
    if len(files[0]) <= 4 * MIB:
        ingester.add_many(files)
        return
    for data in files:
        stream(ingester, data)


def stream(ingester: Ingester, data: bytes) -> None:
    """Store a file that is not held as a whole."""
    view, position = memoryview(data), 0

    def read(size: int) -> bytes:
        nonlocal position
        part = bytes(view[position : position + size])
        position += len(part)
        return part

    ingester.add_stream(read, len(data))


def bare(files: Sequence[bytes]) -> None:
    """The least that storing needs: name of the plain bytes, compression, name of the result."""
    for view in map(memoryview, files):
        for start in range(0, len(view), 8 * MIB):
            part = view[start : start + 8 * MIB]
            Hash.of(part)
            Hash.of(deflate(part))


def started(repository: Repository, processes: int) -> None:
    """Let it begin with all its processes."""
    for number in itertools.count():
        ingest(repository, contents(100_000, 1, -number))
        if sum(1 for _ in family(os.getpid())) > processes:
            return


def measure(label: str, workers: int, runs: int, folder: Path) -> dict[str, object]:
    """One line of the table, of a process that has done nothing else."""
    size, count = SETS[label]
    stored, limit, peaks = [], [], [0.0]
    for run in range(runs):
        files = contents(size, count, run)
        processes = workers if workers > 1 else 0
        repository = fresh(folder, processes=processes)
        started(repository, processes)
        rate(files[: max(1, count // 20)], bare, workers)  # warm
        limit.append(rate(files, bare, workers))
        stored.append(rate(files, lambda batch, to=repository: ingest(to, batch), workers))  # type: ignore[misc]
        peaks += [peak_mib(process) for process in family(os.getpid()) if process != os.getpid()]
    pairs = list(zip(limit, stored, strict=True))
    data_mib = size * count / MIB
    wall_s, bare_s = (statistics.median(each.wall_s for each in kind) for kind in (stored, limit))
    return {
        "files": label,
        "workers": workers,
        "mib_per_s": round(data_mib / wall_s, 1),
        "files_per_s": round(count / wall_s),
        "bare_mib_per_s": round(data_mib / bare_s, 1),
        "part_of_bare": round(statistics.median(one.wall_s / other.wall_s for one, other in pairs), 2),
        "cpu_us_a_file": round(statistics.median(each.cpu_s for each in stored) / count * 1e6),
        "bare_cpu_us_a_file": round(statistics.median(each.cpu_s for each in limit) / count * 1e6),
        "part_of_bare_cpu": round(statistics.median(one.cpu_s / other.cpu_s for one, other in pairs), 2),
        "peak_mib_without_data": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10) - round(data_mib),
        "peak_mib_of_a_process": round(max(peaks)),
    }


def measure_ingest(runs: int) -> list[dict[str, object]]:
    """One line a set of files and number of workers."""
    lines = []
    for label in SETS:
        for workers in (1, 2):
            command = [sys.executable, "-m", "benchmarks.publish.ingest", label, str(workers), str(runs)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            lines.append(json.loads(done.stdout))
    return lines


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="unpackd-bench-") as place:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(place))))
