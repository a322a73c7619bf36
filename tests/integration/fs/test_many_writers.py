"""Writers of several machines, killed and stopped at random, publish to one bucket: nothing is lost, nothing twice.

A machine is a state folder of its own, so that no file lock is shared; what they share is the bucket and the database
of leases. UNPACKD_TEST_GRAFTS sets the number of grafts a writer makes (default 5; 25 for the full size).
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fs.format.trust import load_public_keys
from fs.publish.check import CheckOptions, check_repository
from fs.publish.repository import Repository
from fs.publish.revisions import revisions
from fs.store.places import open_storage
from tests.conftest import ROOT
from tests.integration.fs.conftest import REPOSITORY
from tests.support.s3 import CREDENTIALS, run_s3

pytest.importorskip("boto3")
pytest.importorskip("moto")

GRAFTS = int(os.environ.get("UNPACKD_TEST_GRAFTS", "5"))
WRITERS = 8 if GRAFTS > 5 else 4
LIFETIME_S = 1.0
DEADLINE_S = 60 + GRAFTS * WRITERS * 2


class Writer:
    """One process after the other, until one has ended by itself."""

    def __init__(self, name: str, command: list[str], machine: Path, log: Path) -> None:
        self._command = [*command, name, str(GRAFTS)]
        self._environment = {**os.environ, **CREDENTIALS, "XDG_STATE_HOME": str(machine)}
        self.log = log
        self.kills = 0
        self.stops = 0
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(self._command, cwd=ROOT, env=self._environment, stdout=log, stderr=log)

    @property
    def is_done(self) -> bool:
        return self.process.poll() == 0

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
            self.kills += 1
            self.process = self._start()

    def pause(self, seconds: float) -> None:
        """Stand still for longer than a lease lasts."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            self.process.send_signal(signal.SIGCONT)
            self.stops += 1

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with run_s3(tmp_path) as server:
        yield f"s3://{server.new_bucket()}?endpoint={server.endpoint}"


@pytest.mark.timeout(DEADLINE_S + 60)
def test_nothing_is_lost_and_nothing_is_published_twice(url: str, made_keys: Path, tmp_path: Path) -> None:
    repository = Repository.create(REPOSITORY, url, made_keys)
    database = f"sqlite:///{tmp_path}/leases.db"
    command = [sys.executable, "-m", "tests.support.writer", REPOSITORY, url, str(made_keys), database, str(LIFETIME_S)]
    writers = [
        Writer(f"w{number}", command, tmp_path / f"machine{number % 2}", tmp_path / f"log{number}")
        for number in range(WRITERS)
    ]
    dice = random.Random(7)
    deadline = time.monotonic() + DEADLINE_S
    try:
        while not all(writer.is_done for writer in writers) and time.monotonic() < deadline:
            time.sleep(dice.uniform(0.1, 0.8))
            failed = [writer.log.read_text() for writer in writers if writer.process.poll() not in (None, 0)]
            assert failed == []
            victim = dice.choice(writers)
            if victim.kills + victim.stops < 3:
                victim.kill() if dice.random() < 0.5 else victim.pause(LIFETIME_S * 1.5)
        assert all(writer.is_done for writer in writers)
    finally:
        for writer in writers:
            writer.end()

    expected = {f"w{writer}-{number}" for writer in range(WRITERS) for number in range(GRAFTS)}
    assert {entry.name.decode() for entry in repository.view().list(b"")} == expected
    numbers = [revision.number for revision in revisions(open_storage(url).store, repository.manifest)]
    assert numbers == list(range(len(expected) + 1, 0, -1)), "one revision for each graft and the first"
    keys = load_public_keys((made_keys / f"{REPOSITORY}.pub").read_bytes())
    assert check_repository(open_storage(url).store, CheckOptions(keys=keys, now=datetime.now(UTC))).findings == []
    kills, stops = sum(writer.kills for writer in writers), sum(writer.stops for writer in writers)
    assert kills + stops > 0
    refused = sum(writer.log.read_text().count("\n") for writer in writers)
    print(f"\n{len(expected)} grafts by {WRITERS} writers, {kills} killed, {stops} stopped, {refused} attempts refused")
