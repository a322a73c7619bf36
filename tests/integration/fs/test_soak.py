"""A short version of the soak (``make soak``): everything that goes wrong, in half a minute."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fs.client.holder import kernel_can_resume

OPTIONS = {
    "--seconds": "12",
    "--readers": "24",
    "--data-mib": "16",
    "--revision-every": "2",
    "--origin-restart-every": "5",
    "--kill-every": "4",
    "--look-every": "2",
    "--pause": "0.1",
}


@pytest.mark.root
@pytest.mark.skipif(not kernel_can_resume(platform.release()), reason="needs Linux 6.9 or later")
@pytest.mark.parametrize("frontend", ["wire", "pyfuse3"])
def test_nothing_is_found_in_a_short_soak(tmp_path: Path, frontend: str) -> None:
    options = [text for pair in OPTIONS.items() for text in pair]
    command = [sys.executable, "-m", "benchmarks.soak", *options, "--frontend", frontend]
    done = subprocess.run(
        [*command, "--work", tmp_path / "work", "--json"], capture_output=True, text=True, timeout=240, check=False
    )

    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    del report["looks"]
    assert report["is_good"], json.dumps(report)
    assert done.returncode == 0
    assert report["kills"] >= 2
    assert report["revisions"] >= 3
    assert report["origin_restarts"] >= 1
    assert all(report["operations"][kind] for kind in ("whole", "listing", "stat"))
