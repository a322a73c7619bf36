"""What users see of the whole line, on the demo's image."""

import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import REPOSITORY, Line, unpackd
from tests.support.images import Member, directory, make_layout
from tests.support.independent_checker import Checker
from tests.support.trees import describe, differences

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

MANY_ENTRIES = 10_000


@pytest.fixture(scope="module")
def science(line: Line, demo_layout: Path) -> tuple[str, Path]:
    """The demo's image in the registry, converted and visible: its reference and its path in the mount."""
    reference = line.registry.push(f"oci:{demo_layout}:1", "e2e/science:1")
    return reference, line.wait_for(reference)


def test_the_mounted_tree_is_what_umoci_unpacks(science: tuple[str, Path], demo_layout: Path, tmp_path: Path) -> None:
    _, path = science
    command = ["umoci", "unpack", "--image", f"{demo_layout}:1", tmp_path / "bundle"]
    subprocess.run(command, check=True, capture_output=True, timeout=280)

    expected = describe(tmp_path / "bundle" / "rootfs")
    found = describe(path.resolve())

    assert differences(expected, found) == []
    print(f"{len(found)} entries compared")
    assert len(found) > MANY_ENTRIES


def test_a_program_runs_from_the_mount(science: tuple[str, Path]) -> None:
    _, path = science

    done = subprocess.run(
        ["chroot", path, "/usr/bin/python3", "/opt/app/hello.py"], check=True, capture_output=True, timeout=60
    )

    assert b"the determinant is 5" in done.stdout


def test_converting_again_does_nothing_and_says_so(line: Line, science: tuple[str, Path]) -> None:
    reference, _ = science
    revision = line.revision()
    seconds = []
    for _ in range(3):
        before = time.monotonic()
        done = unpackd("convert", reference, *line.repository_options)
        seconds.append(time.monotonic() - before)
        assert done.returncode == 0, done.stderr
        assert "nothing to do" in done.stderr

    print(f"second conversion: {sorted(seconds)[1]:.2f} s")
    assert line.revision() == revision


def test_a_push_becomes_visible_without_any_command(line: Line, tmp_path: Path) -> None:
    layout = make_layout(tmp_path / "layout", [[directory("etc"), Member("etc/hello", b"pushed\n")]])
    before = time.monotonic()

    reference = line.registry.push(layout.source, "e2e/small:pushed")
    path = line.wait_for(reference)

    print(f"push to visible: {time.monotonic() - before:.2f} s")
    assert (path / "etc/hello").read_bytes() == b"pushed\n"


def test_a_tag_that_moves_shows_the_new_image(line: Line, tmp_path: Path) -> None:
    for content in (b"old\n", b"new\n"):
        layout = make_layout(tmp_path / content.decode().strip(), [[Member("which", content)]])
        reference = line.registry.push(layout.source, "e2e/small:moving")
        path = line.wait_for(reference)
        deadline = time.monotonic() + 30
        while (path / "which").read_bytes() != content:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_the_repository_passes_rules_written_a_second_time(line: Line, science: tuple[str, Path]) -> None:
    up = line.folder / "up"

    checker = Checker(up / "storage", (up / "keys" / f"{REPOSITORY}.pub").read_bytes()).run()

    print(f"{checker.entries} entries in {checker.catalogs} catalogs checked")
    assert checker.findings == []
    assert checker.entries > MANY_ENTRIES
