"""Publishes a directory tree in a process of its own, and says what that cost.

Arguments: repository, storage, folder of keys, directory, path in the repository, and of a chunk the least, average
and most bytes.
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fs.format.chunking import ChunkSizes
from fs.format.tree import Content, Node
from fs.publish.ingest import Ingester
from fs.publish.operations import Graft
from fs.publish.packing import Codec
from fs.publish.repository import Repository, Settings
from tests.support.trees import load

THREADS = 2
AT_ONCE = 1000


def add_file(ingester: Ingester, path: bytes) -> Content:
    """Store a file as it is read."""
    with open(path, "rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        return ingester.add_stream(stream.read, size)


def peak_mib() -> int:
    """Most memory that this process has had so far.

    Not ``ru_maxrss``, in which the kernel counts what the process that started this one had.
    """
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) >> 10


def main() -> None:
    """Publish, and print one JSON object."""
    name, storage, keys, source, path, *sizes = sys.argv[1:]
    codec = Codec(chunk_sizes=ChunkSizes(*map(int, sizes)))
    repository = Repository.open(name, storage, Path(keys), settings=Settings(codec=codec))
    ingester = repository.ingester()
    began = time.monotonic()
    files: list[tuple[bytes, Node]] = []
    tree = load(Path(source), lambda file, node: files.append((file, node)))
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(files), AT_ONCE):
            part = files[start : start + AT_ONCE]
            contents = pool.map(lambda file: add_file(ingester, file[0]), part)
            for (_, node), content in zip(part, contents, strict=True):
                node.content = content
    files.clear()
    ingested, ingest_mib = time.monotonic(), peak_mib()
    subtree = repository.prepare_subtree(path.encode(), tree)
    prepared = time.monotonic()
    commit = repository.commit([Graft(subtree.path, subtree)])
    facts = {
        "revision": commit.revision,
        "entries": subtree.entries,
        "catalogs": subtree.catalogs,
        "ingest_s": round(ingested - began, 2),
        "catalogs_s": round(prepared - ingested, 2),
        "commit_s": round(time.monotonic() - prepared, 2),
        "ingest_peak_mib": ingest_mib,
        "peak_mib": peak_mib(),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
