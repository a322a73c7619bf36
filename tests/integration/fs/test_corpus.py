"""Trees of every kind are published, checked twice, mounted and compared, entry by entry and byte by byte.

UNPACKD_TEST_CORPUS=full makes them at full size (``make corpus``): 200,000 entries in a directory, a million in a tree,
a sparse file of 10 GiB, and the format's own sizes of chunks.
"""

import json
import os
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
from fs.store.local import LocalStore
from tests.conftest import ROOT
from tests.integration.fs.conftest import REPOSITORY
from tests.support.corpus import FULL, SMALL, TREES, make
from tests.support.independent_checker import findings
from tests.support.mounts import mounted
from tests.support.processes import unmount_below
from tests.support.trees import describe, differences

pytestmark = pytest.mark.root

IS_FULL = os.environ.get("UNPACKD_TEST_CORPUS") == "full"
SCALE = FULL if IS_FULL else SMALL
WORKER_MIB = 256
"""What a worker may use while it reads files, however large they are; a tree in memory comes on top."""


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "work"
    unmount_below(tmp_path)
    if IS_FULL:
        subprocess.run(["rm", "-rf", tmp_path], check=True)  # which no depth is too much for


@pytest.mark.timeout(7200 if IS_FULL else 300)
@pytest.mark.parametrize("name", TREES)
def test_what_is_published_is_what_is_mounted(name: str, tmp_path: Path, made_keys: Path, work: Path) -> None:
    source, storage = tmp_path / "tree", tmp_path / "storage"
    make(name, source, SCALE)
    Repository.create(REPOSITORY, str(storage), made_keys)

    cost = publish(source, storage, made_keys)
    began = time.monotonic()
    public = made_keys / f"{REPOSITORY}.pub"
    options = CheckOptions(keys=load_public_keys(public.read_bytes()), now=datetime.now(UTC))
    verdict = check_repository(LocalStore(storage), options)
    assert [finding.message for finding in verdict.findings] == []
    assert findings(storage, public) == []
    checked = time.monotonic()
    with mounted(REPOSITORY, [storage.as_uri()], public, work) as mount:
        found = describe(mount.path / "tree")
        expected = describe(source)
        assert differences(expected, found)[:20] == []
    nested = cost["catalogs"] - 1
    assert len(expected) == cost["entries"] - cost["catalogs"] - nested, "each has a hidden marker; roots count twice"
    assert cost["ingest_peak_mib"] < WORKER_MIB + cost["entries"] // 1000
    cost |= {"check_s": round(checked - began, 1), "compare_s": round(time.monotonic() - checked, 1)}
    print(f"\n{name}: {json.dumps(cost)}")


def publish(source: Path, storage: Path, keys: Path) -> dict[str, int]:
    sizes = [str(size) for size in (SCALE.chunks.least, SCALE.chunks.average, SCALE.chunks.most)]
    command = [sys.executable, "-m", "tests.support.publish_tree", REPOSITORY, storage, keys, source, "/tree", *sizes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cost: dict[str, int] = json.loads(done.stdout)
    return cost
