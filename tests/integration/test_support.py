"""The servers and images that tests rely on do what they say."""

import json
import subprocess
from pathlib import Path

from tests.support.images import Member, directory, make_layout
from tests.support.registry import Registry


def test_a_layout_made_by_hand_reaches_the_registry(registry: Registry, tmp_path: Path) -> None:
    layout = make_layout(tmp_path / "layout", [[directory("etc"), Member("etc/hello", b"hi\n")]])

    reference = registry.push(layout.source, "t/hello:1")

    inspected = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert inspected.stdout == layout.manifest
    assert json.loads(layout.config)["rootfs"]["diff_ids"]
    assert registry.bytes_sent() >= len(layout.manifest)
