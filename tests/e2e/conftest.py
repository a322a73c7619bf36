"""The whole line, once for all tests of this folder: registry, ``unpackd up``, mount."""

import hashlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import (
    free_port,
    listens,
    require_root,
    require_tool,
    running,
    unmount_below,
    wait_until,
)
from tests.support.registry import Registry, run_registry

ROOT = Path(__file__).parents[2]
REPOSITORY = "unpacked.test.local"
UNPACKD = Path(sys.executable).with_name("unpackd")
IMAGE_TIMEOUT_S = 280.0


def unpackd(*arguments: str | Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would."""
    command = [str(UNPACKD), *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout_s)


@dataclass(frozen=True, slots=True)
class Line:
    """The running line through the house."""

    folder: Path
    registry: Registry
    origin: str
    mountpoint: Path

    @property
    def repository_options(self) -> list[str]:
        """What ``unpackd convert`` needs to publish into this repository itself."""
        up = self.folder / "up"
        return ["--repo", REPOSITORY, "--storage", str(up / "storage"), "--keys", str(up / "keys")]

    def images(self) -> dict[str, dict[str, object]]:
        """What the farm says of its images, by reference without scheme."""
        with urllib.request.urlopen(f"{self.origin}/api/v1/images", timeout=10) as reply:
            listed = json.load(reply)["images"]
        return {str(image["reference"]).partition("://")[2] or str(image["reference"]): image for image in listed}

    def wait_for(self, reference: str, timeout_s: float = IMAGE_TIMEOUT_S) -> Path:
        """Wait until the farm has converted *reference* and the mount shows it; gives its path there."""

        def converted() -> bool:
            image = self.images().get(reference, {"state": "unknown"})
            assert image["state"] != "failed", image
            return image["state"] == "done"

        wait_until(converted, f"the conversion of {reference}", timeout_s)
        path = self.mountpoint / str(self.images()[reference]["public_path"]).lstrip("/")
        wait_until(lambda: os.path.lexists(path), f"{path} on the mounted client")
        return path

    def revision(self) -> int:
        """The newest revision at the origin."""
        with urllib.request.urlopen(f"{self.origin}/cvmfs/{REPOSITORY}/.cvmfspublished", timeout=10) as reply:
            lines = reply.read().split(b"\n")
        return next(int(line[1:]) for line in lines if line.startswith(b"S"))


@pytest.fixture(scope="session")
def demo_layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's image as an OCI layout, tag 1; made from Debian packages once a recipe and kept."""
    require_root()
    require_tool("debootstrap", "umoci")
    recipe = ROOT / "demo" / "make-image.sh"
    name = hashlib.sha256(recipe.read_bytes()).hexdigest()[:12]
    folder = Path(os.environ.get("DEMO_CACHE", "/var/cache/unpackd-demo")) / name
    if not (folder / "layout" / "index.json").exists():
        made = subprocess.run([recipe, folder], check=False, capture_output=True, text=True, timeout=280)
        if made.returncode != 0 and "E:" in made.stderr:
            pytest.skip(f"the demo's image could not be made from Debian packages: {made.stderr[-300:]}")
        assert made.returncode == 0, made.stderr
    return folder / "layout"


@pytest.fixture(scope="session")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """Registry, farm, origin and mount; the wishlist asks for every tag of ``e2e/science`` and ``e2e/small``."""
    require_root()
    require_tool("docker-registry", "skopeo", "fusermount3")
    folder = tmp_path_factory.mktemp("line")
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    with ExitStack() as blocks:
        registry = blocks.enter_context(run_registry(folder, notify_url=f"{origin}/hooks/distribution"))
        wishlist = folder / "wishlist.yaml"
        wishes = "".join(f"  - '{registry.url}/e2e/{name}:*'\n" for name in ("science", "small"))
        wishlist.write_text(f"version: 1\nuser: test\ncvmfs_repo: {REPOSITORY}\ninput:\n{wishes}")
        log = folder / "up.log"
        command = [UNPACKD, "up", "--dir", folder / "up", "--name", REPOSITORY, "--wishlist", wishlist]
        up = blocks.enter_context(running([*command, "--listen", f"127.0.0.1:{port}"], log))
        wait_until(lambda: listens(port) or up.poll() is not None, "the start of unpackd up", 60)
        assert up.poll() is None, log.read_text()
        mountpoint = folder / "mnt"
        mountpoint.mkdir()
        blocks.callback(unmount_below, mountpoint)
        key = folder / "up" / "keys" / f"{REPOSITORY}.pub"
        where = ["--url", f"{origin}/cvmfs/{REPOSITORY}", "--pubkey", key, "--cache", folder / "cache"]
        mounted = unpackd("mount", REPOSITORY, mountpoint, *where)
        assert mounted.returncode == 0, mounted.stderr
        blocks.callback(unpackd, "umount", mountpoint)
        yield Line(folder, registry, origin, mountpoint)
