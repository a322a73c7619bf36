"""Contents that other processes pack: the same objects, whatever becomes of those processes."""

import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fs.errors import RefusedError
from fs.format.chunking import ChunkSizes
from fs.format.hashes import Hash, Suffix
from fs.format.tree import Content, Node
from fs.publish.catalogs import CatalogOptions, publish_tree
from fs.publish.ingest import Ingester
from fs.publish.packing import Codec, DedupIndex, Packer
from fs.publish.writer_processes import WriterProcesses
from fs.store.local import LocalStore
from fs.store.memory import MemoryStore
from tests.support.processes import has_ended, wait_until

CODEC = Codec(chunk_sizes=ChunkSizes(256 << 10, 512 << 10, 1 << 20))
FILES = [random.Random(number).randbytes(20_000) * (1 + number % 3) for number in range(40)]
ALONE = """
import sys
from pathlib import Path
from fs.format.hashes import Suffix
from fs.publish.packing import Codec
from fs.publish.writer_processes import WriterProcesses
from fs.store.local import LocalStore
processes = WriterProcesses(LocalStore(Path(sys.argv[1])), Path(sys.argv[2]), Codec(), 2)
while not processes._free:
    processes.objects([bytes(100_000)], Suffix.PLAIN)
print(*(one.pid for one in processes._starting + processes._free), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path / "storage", durable=False)
    store.prepare()
    return store


@pytest.fixture
def processes(store: LocalStore, tmp_path: Path) -> Iterator[WriterProcesses]:
    made = WriterProcesses(store, tmp_path / "contents.db", CODEC, 2)
    yield made
    made.close()


def started(processes: WriterProcesses) -> list[int]:
    """The pids, once all are there."""

    def are_there() -> bool:
        processes.objects([bytes(100_000)], Suffix.PLAIN)
        return len(processes._free) == processes._count

    wait_until(are_there, "the processes")
    return [process.pid for process in processes._free]


def test_they_give_what_one_process_gives(processes: WriterProcesses, store: LocalStore) -> None:
    started(processes)
    expected = Ingester(MemoryStore(), Packer(MemoryStore(), DedupIndex(None), CODEC))
    large = random.Random(1).randbytes(5 << 20)
    ingester = Ingester(store, processes)

    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(ingester.add_many, [FILES[at : at + 10] for at in range(0, 40, 10)] * 3))

    assert list(chain(*batches[:4])) == expected.add_many(FILES)
    assert batches[:4] == batches[4:8] == batches[8:]
    content = ingester.add_bytes(large)
    assert content == expected.add_bytes(large)
    assert all(store.has(chunk.hash, Suffix.CHUNK) for chunk in content.chunks)


def test_they_build_the_catalogs_that_one_process_builds(processes: WriterProcesses, store: LocalStore) -> None:
    started(processes)
    files = {
        b"f%d" % number: Node(mode=stat.S_IFREG, mtime_ns=number, content=Content(1, Hash.of(b"%d" % number)))
        for number in range(3000)
    }
    tree = Node(mode=stat.S_IFDIR, children={b"a": Node(mode=stat.S_IFDIR, children=files), b"b": files[b"f1"]})
    trees = {b"/x/y": tree, b"/z": Node(mode=stat.S_IFDIR, children={b"below": tree})}
    options = CatalogOptions(most_rows=1000, least_rows=10)
    elsewhere = MemoryStore()

    built = processes.build(trees, options)

    assert built == [publish_tree(path, root, elsewhere, options) for path, root in trees.items()]
    assert [subtree.path for subtree in built] == list(trees)
    assert all(store.has(one.name, one.suffix) for one in elsewhere.objects())


def test_a_tree_that_cannot_be_is_refused_wherever_it_is_built(processes: WriterProcesses) -> None:
    started(processes)
    names = {
        b"n%d" % number + b"x" * 100: Node(mode=stat.S_IFREG, content=Content(1, Hash.of(b""))) for number in range(999)
    }
    names[b"a/b"] = names[b"n0" + b"x" * 100]

    with pytest.raises(RefusedError, match="a/b"):
        processes.build({b"/x": Node(mode=stat.S_IFDIR, children=names)}, CatalogOptions())


def test_nothing_is_started_for_little(processes: WriterProcesses) -> None:
    processes.objects([b"little"] * 100, Suffix.PLAIN)

    assert not processes._starting


def test_who_was_killed_is_replaced_and_nothing_is_missing(
    processes: WriterProcesses, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fs.publish.writer_processes._NEXT_START_S", 0.0)
    pids = started(processes)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)

    with capture_logs() as logs:
        names = [processes.objects([data, data + b"x"], Suffix.PLAIN) for data in FILES if len(data) > 32 << 10]

    assert all(store.has(name, Suffix.PLAIN) for pair in names for name in pair)
    assert {line["pid"] for line in logs if line["event"] == "writer_process_lost"} == set(pids)
    assert not set(pids) & set(started(processes))


@pytest.mark.parametrize("size", [70_000, 4 << 20, 20 << 20])
def test_one_that_does_not_answer_is_given_up(
    processes: WriterProcesses, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("fs.publish.writer_processes._ANSWER_TIMEOUT_S", 0.2)
    monkeypatch.setattr("fs.publish.writer_processes._END_TIMEOUT_S", 0.2)
    pids = started(processes)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)

    [name] = processes.objects([bytes(size)], Suffix.PLAIN)

    assert name == Packer(MemoryStore(), DedupIndex(None), CODEC).objects([bytes(size)], Suffix.PLAIN)[0]
    for pid in pids:
        if not has_ended(pid):
            os.kill(pid, signal.SIGCONT)


def test_whoever_is_interrupted_leaves_no_answer_for_the_next(
    processes: WriterProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(processes)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("fs.publish.writer_processes._Process._answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            processes.objects([bytes(70_000)], Suffix.PLAIN)

    names = [processes.objects([data, bytes(70_000)], Suffix.PLAIN)[0] for data in FILES]
    alone = Packer(MemoryStore(), DedupIndex(None), CODEC)
    assert names == [alone.objects([data], Suffix.PLAIN)[0] for data in FILES]


def test_what_the_disk_refuses_is_raised(processes: WriterProcesses, store: LocalStore) -> None:
    pids = started(processes)
    staging = store.root / "data" / "txn"
    staging.rename(store.root / "elsewhere")

    with pytest.raises(FileNotFoundError):
        processes.objects([random.Random(9).randbytes(100_000)], Suffix.PLAIN)

    (store.root / "elsewhere").rename(staging)
    [name] = processes.objects([random.Random(9).randbytes(100_000)], Suffix.PLAIN)
    assert store.has(name, Suffix.PLAIN)
    assert started(processes) == pids


def test_old_objects_that_they_counted_on_are_looked_at_before_a_commit(
    processes: WriterProcesses, store: LocalStore
) -> None:
    started(processes)
    [name] = processes.objects([bytes(99_000)], Suffix.PLAIN)
    time.sleep(1)  # until the index is written by whoever packed it
    path = store.root / name.object_path(Suffix.PLAIN)
    os.utime(path, (0, 0))

    processes.objects([bytes(99_000)], Suffix.PLAIN)

    assert path.stat().st_mtime > 0
    assert store.hand_over() == {(name, Suffix.PLAIN)}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_they_end_with_whoever_started_them(store: LocalStore, tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", ALONE, store.root, tmp_path / "contents.db"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as alone:
        assert alone.stdout is not None
        pids = [int(word) for word in alone.stdout.readline().split()]
        alone.send_signal(number)

    assert len(pids) == 2
    wait_until(lambda: all(map(has_ended, pids)), "the end of the processes")
