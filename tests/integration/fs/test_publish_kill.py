"""A publisher that is killed leaves the old revision or the new one, and its lock dies with it."""

import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fs.format.trust import load_public_keys
from fs.publish.check import CheckOptions, check_repository
from fs.publish.operations import PutFile
from fs.publish.repository import Repository
from fs.store.local import LocalStore

NAME = "published.test"

KILLED = """
import os, signal, sys
from pathlib import Path
from fs.publish.keys import load_keys
from fs.publish.operations import MakeDirectory, PutFile
from fs.publish.repository import Repository
from fs.store.local import LocalStore

folder, step, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def die(done, wanted):
    if done == wanted:
        os.kill(os.getpid(), signal.SIGKILL)

class Deadly(LocalStore):
    puts = 0
    def put(self, name, suffix, stored):
        die(f"put {self.puts}", step)
        self.puts += 1
        return super().put(name, suffix, stored)
    def settle(self):
        die("settle", step)
        super().settle()
    def replace_named(self, name, content):
        die("before " + name, step)
        super().replace_named(name, content)
        die("after " + name, step)

store = Deadly(folder / "storage")
repository = Repository("published.test", store, load_keys(folder / "keys", "published.test"), private=store.private)
content = repository.ingester().add_bytes(b"new %d" % number)
repository.commit([MakeDirectory(b"/nested", nested=True), PutFile(b"/nested/f", content), PutFile(b"/g", content)])
"""

WRITER = """
import sys
from pathlib import Path
from fs.publish.operations import PutFile
from fs.publish.repository import Repository

folder, writer = Path(sys.argv[1]), sys.argv[2].encode()
repository = Repository.open("published.test", str(folder / "storage"), folder / "keys", durable=False)
print("ready", flush=True)
sys.stdin.readline()
for turn in range(6):
    content = repository.ingester().add_bytes(b"%s %d" % (writer, turn))
    repository.commit([PutFile(b"/%s/%d" % (writer, turn), content), PutFile(b"/last", content)], timeout_s=30)
"""

STEPS = [
    *(f"put {number}" for number in range(6)),
    "settle",
    "before .cvmfsreflog",
    "after .cvmfsreflog",
    "before .cvmfspublished",
    "after .cvmfspublished",
]


def assert_good(folder: Path) -> None:
    keys = load_public_keys((folder / "keys" / f"{NAME}.pub").read_bytes())
    verdict = check_repository(LocalStore(folder / "storage"), CheckOptions(keys=keys, now=datetime.now(UTC)))
    assert [finding for finding in verdict.findings if not finding.is_note] == []


def test_killed_anywhere(repository: Repository, tmp_path: Path) -> None:
    repository.commit([PutFile(b"/g", repository.ingester().add_bytes(b"old"))])
    for number, step in enumerate(STEPS):
        before = repository.revision
        done = subprocess.run(
            [sys.executable, "-c", KILLED, tmp_path, step, str(number)], check=False, timeout=60, capture_output=True
        )
        assert done.returncode == -signal.SIGKILL, (step, done.stderr)

        is_new = step == "after .cvmfspublished"
        assert repository.revision == before + is_new
        if is_new:
            assert repository.view().read(b"/g", 20) == b"new %d" % number
        assert_good(tmp_path)

    content = repository.ingester().add_bytes(b"afterwards")
    repository.commit([PutFile(b"/g", content)], timeout_s=1)
    assert repository.view().read(b"/g", 20) == b"afterwards"
    assert_good(tmp_path)


def test_processes_that_commit_at_once_lose_nothing(repository: Repository, tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in ("one", "two")
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            writer.communicate("go\n", timeout=60)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait(10)

    assert [writer.returncode for writer in writers] == [0, 0]
    assert repository.revision == 1 + 12
    view = repository.view()
    assert [len(view.list(path)) for path in (b"/one", b"/two")] == [6, 6]
    assert_good(tmp_path)


@pytest.mark.timeout(60)
def test_what_nobody_finished_is_not_served_and_not_in_the_way(repository: Repository, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, tmp_path, "settle", "1"], check=False, timeout=60)

    (tmp_path / "storage/data/txn/4711-1-1").write_bytes(b"half")
    other = Repository.open(NAME, str(tmp_path / "storage"), tmp_path / "keys", durable=False)

    assert other.commit([PutFile(b"/f", other.ingester().add_bytes(b"x"))], timeout_s=1).changed
    assert other.revision == 2
