"""containerd's own snapshotter test suite (Go), against the running service.

Its modules are not fetched by a test: ``go mod download`` in the folder ``containerd_suite`` does that once.
"""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import require_tool, unmount_below
from tests.support.snapshotter import FakeRepository, Service

pytestmark = pytest.mark.root

SOURCE = Path(__file__).parent / "containerd_suite"
CASES = 21


def test_all_cases_pass(own_service: tuple[Service, FakeRepository], tmp_path: Path) -> None:
    require_tool("go")
    program = tmp_path / "suite"
    built = subprocess.run(
        ["go", "test", "-c", "-o", program, "."],
        check=False,
        capture_output=True,
        text=True,
        timeout=280,
        cwd=SOURCE,
        env={**os.environ, "GOPROXY": "off", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local"},
    )
    if built.returncode != 0:
        pytest.skip(f"containerd's suite cannot be built here, see this file's first lines: {built.stderr[-200:]}")
    service, _ = own_service
    scratch = tmp_path / "t"
    scratch.mkdir()
    try:
        with service.started():
            done = subprocess.run(
                [program, "-test.v", "-test.root"],
                check=False,
                capture_output=True,
                text=True,
                timeout=120,
                env={**os.environ, "SNAPSHOTTER_SOCKET": str(service.address), "TMPDIR": str(scratch)},
            )
    finally:
        unmount_below(scratch)

    failed = [line for line in done.stdout.splitlines() if "--- FAIL" in line]
    assert done.returncode == 0, "\n".join(failed) or done.stderr
    assert done.stdout.count("    --- PASS: TestSnapshotter/") == CASES
