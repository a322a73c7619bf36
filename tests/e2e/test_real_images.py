"""Real images of several kinds, by the whole line: what is mounted is what ``umoci unpack`` makes, for every entry.

``REAL_IMAGES`` is a folder that ``benchmarks/make-images.sh`` has filled (``make real-images`` does both); without it,
one small image of sixty layers is made.
"""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Line, unpackd
from tests.support.apptainer import find_apptainer
from tests.support.images import Member, directory, hardlink, make_layout
from tests.support.trees import describe, differences

pytestmark = [pytest.mark.root, pytest.mark.timeout(1200)]

FOLDER = os.environ.get("REAL_IMAGES")
PLATFORMS = {"base": "amd64", "arm64": "arm64:v8"}
KINDS = ("base", "sci", "science", "sixty")
NAMES = [name for name in KINDS if (Path(FOLDER) / name).is_dir()] if FOLDER else ["sixty"]
needs_images = pytest.mark.skipif(FOLDER is None, reason="needs the images of make real-images")


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of OCI layouts, each with the tag 1."""
    if FOLDER:
        return Path(FOLDER)
    folder = tmp_path_factory.mktemp("layouts")
    layers = [
        [directory("etc"), directory("opt"), Member("etc/release", b"1\n"), hardlink("opt/release", "etc/release")]
    ]
    for number in range(1, 60):
        layer = [directory(f"opt/{number}", 0o750), Member(f"opt/{number}/data", b"x" * number, mtime=number)]
        if number % 7 == 0:
            layer.append(Member(f"opt/.wh.{number - 3}"))
        layers.append(layer)
    make_layout(folder / "sixty", layers)
    return folder


@pytest.fixture
def bundle() -> Iterator[Path]:
    """Where umoci unpacks to; removed at once, because real images are large."""
    with tempfile.TemporaryDirectory(prefix="unpackd-bundle-") as folder:
        yield Path(folder) / "bundle"


def config_of(layout: Path) -> dict[str, Any]:
    """What the image in *layout* says of its processes."""

    def blob(digest: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((layout / "blobs" / digest.replace(":", "/")).read_text())
        return document

    (described,) = json.loads((layout / "index.json").read_text())["manifests"]
    config: dict[str, Any] = blob(blob(described["digest"])["config"]["digest"])["config"]
    return config


def compare(layout: Path, found: Path, bundle: Path) -> int:
    """Compare a mounted tree with what umoci unpacks; gives the number of entries."""
    command = ["umoci", "unpack", "--image", f"{layout}:1", bundle]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    expected = describe(bundle / "rootfs")
    assert differences(expected, describe(found.resolve())) == []
    return len(expected)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_mounted_is_what_umoci_unpacks(line: Line, layouts: Path, bundle: Path, name: str) -> None:
    reference = line.registry.push(f"oci:{layouts / name}:1", f"e2e/science:{name}")
    public = line.wait_for(reference, 600)

    entries = compare(layouts / name, public, bundle)
    flat = line.mountpoint / str(line.images()[reference]["flat_path"]).lstrip("/")
    assert differences(describe(bundle / "rootfs"), describe(flat)) == []
    print(f"{name}: {entries} entries compared, under the public name and in the flat tree")


@needs_images
def test_each_platform_of_an_index_is_what_umoci_unpacks(line: Line, layouts: Path, bundle: Path) -> None:
    reference = line.registry.push(f"oci:{layouts / 'multiarch'}:1", "e2e/other:multiarch", "--all")
    done = unpackd("convert", f"http://{reference}", "--platform", "all", *line.repository_options, timeout_s=600)
    assert done.returncode == 0, done.stderr

    for name, platform in PLATFORMS.items():
        path = line.mountpoint / ".multiarch" / platform / reference
        entries = compare(layouts / name, path, bundle.with_name(name))
        print(f"{platform}: {entries} entries compared")


@needs_images
def test_apptainer_acts_as_the_config_of_a_real_image_says(line: Line, layouts: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="unpackd-apptainer-") as folder:
        program = find_apptainer(Path(folder))
        image = line.wait_for(line.registry.push(f"oci:{layouts / 'science'}:1", "e2e/science:science"), 600)

        def told(action: str, *words: str) -> str:
            command = [program, action, *(("--no-privs",) if action != "inspect" else ()), image, *words]
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, cwd="/")
            return done.stdout

        assert re.fullmatch(r"Python 3\.\d+\.\d+\n", told("run"))
        assert told("run", "-c", "import numpy, sys; print(numpy.arange(3).sum(), sys.argv)") == "3 ['-c']\n"
        config = config_of(layouts / "science")
        assert {one for one in config["Env"] if not one.startswith("PATH=")} <= set(told("exec", "env").splitlines())
        assert {f"{name}: {value}" for name, value in config["Labels"].items()} <= set(told("inspect").splitlines())
