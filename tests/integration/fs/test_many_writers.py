"""Eight writers on two machines, killed, stopped and cut off at random, publish to one bucket.

Nothing is lost, nothing is there twice, and revisions go up by one. The machines are network namespaces with state
folders of their own, so no file lock is shared; what they share is the bucket and a Redis server with the leases. Their
clocks are 40 days fast and 40 days slow. UNPACKD_TEST_GRAFTS sets the number of grafts a writer makes (default 3; 25 is
the full size, see ``make writers``).
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
from tests.support.brokers import redis_over_tcp
from tests.support.machines import Machine, Network, network
from tests.support.s3 import CREDENTIALS, run_s3

pytest.importorskip("boto3")
pytest.importorskip("moto")

GRAFTS = int(os.environ.get("UNPACKD_TEST_GRAFTS", "3"))
WRITERS = 8
FAULTS = 1 if GRAFTS < 10 else 3  # a writer, at most
LIFETIME_S = 1.0
DEADLINE_S = 90 + GRAFTS * WRITERS * 3
SKEWS_S = (40 * 86_400, -40 * 86_400)


class Writer:
    """One process after the other, until one has ended by itself."""

    def __init__(self, name: str, command: list[str], machine: Machine, skew_s: int, log: Path) -> None:
        self._command = machine.command([*command, name, str(skew_s), str(GRAFTS)])
        self._environment = {**os.environ, **CREDENTIALS, "XDG_STATE_HOME": str(machine.state)}
        self.machine = machine
        self.log = log
        self.kills = self.stops = self.cuts = 0
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

    def pause(self, seconds: float = LIFETIME_S * 1.5) -> None:
        """Stand still for longer than a lease lasts."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            self.process.send_signal(signal.SIGCONT)
            self.stops += 1

    def cut_off(self, seconds: float = LIFETIME_S * 1.5) -> None:
        """Pull the machine's cable for longer than a lease lasts."""
        if self.process.poll() is None:
            self.machine.cut_off(seconds)
            self.cuts += 1

    @property
    def faults(self) -> int:
        return self.kills + self.stops + self.cuts

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Network]:
    with network(tmp_path, 2) as made:
        yield made


@pytest.fixture
def url(tmp_path: Path, lan: Network, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with run_s3(tmp_path, lan.address) as server:
        yield f"s3://{server.new_bucket()}?endpoint={server.endpoint}"


@pytest.fixture
def leases(tmp_path: Path, lan: Network) -> Iterator[str]:
    with redis_over_tcp(tmp_path / "redis", lan.address) as server:
        yield server


@pytest.mark.root
@pytest.mark.timeout(DEADLINE_S + 60)
def test_nothing_is_lost_and_nothing_is_published_twice(
    url: str, leases: str, lan: Network, made_keys: Path, tmp_path: Path
) -> None:
    repository = Repository.create(REPOSITORY, url, made_keys)
    command = [sys.executable, "-m", "tests.support.writer", REPOSITORY, url, str(made_keys), leases, str(LIFETIME_S)]
    writers = [
        Writer(f"w{number}", command, lan.machines[number % 2], SKEWS_S[number % 2], tmp_path / f"log{number}")
        for number in range(WRITERS)
    ]
    dice = random.Random(7)
    began = time.monotonic()
    try:
        while not all(writer.is_done for writer in writers) and time.monotonic() < began + DEADLINE_S:
            time.sleep(dice.uniform(0.1, 0.8))
            failed = [writer.log.read_text() for writer in writers if writer.process.poll() not in (None, 0)]
            assert failed == []
            victim = dice.choice(writers)
            if victim.faults < FAULTS:
                dice.choice([Writer.kill, Writer.pause, Writer.cut_off])(victim)
        assert all(writer.is_done for writer in writers), [writer.log.read_text()[-500:] for writer in writers]
    finally:
        for writer in writers:
            writer.end()

    expected = {f"w{writer}-{number}" for writer in range(WRITERS) for number in range(GRAFTS)}
    assert {entry.name.decode() for entry in repository.view().list(b"")} == expected
    numbers = [revision.number for revision in revisions(open_storage(url).store, repository.manifest)]
    assert numbers == list(range(len(expected) + 1, 0, -1)), "one revision for each graft and the first"
    keys = load_public_keys((made_keys / f"{REPOSITORY}.pub").read_bytes())
    assert check_repository(open_storage(url).store, CheckOptions(keys=keys, now=datetime.now(UTC))).findings == []
    times = [revision.published_unix_s for revision in revisions(open_storage(url).store, repository.manifest)]
    assert times == sorted(times, reverse=True), "time never goes back, whatever the machines' clocks say"
    kills, stops, cuts = (sum(getattr(writer, kind) for writer in writers) for kind in ("kills", "stops", "cuts"))
    assert kills + stops + cuts > 0
    refused = sum(writer.log.read_text().count("refused:") for writer in writers)
    took_s = round(time.monotonic() - began)
    print(
        f"\n{len(expected)} grafts by {WRITERS} writers on 2 machines in {took_s} s: {kills} killed, {stops} stopped,"
        f" {cuts} cut off, {refused} attempts refused"
    )
