"""The store for podman: what is in it, how it follows its names, and podman itself over a mount."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import unpackd
from converter import placement
from converter.podman_store import data_file, link_name
from fs.publish.operations import PutFile
from fs.publish.repository import Repository
from tests.support.flaky_origin import flaky_origin
from tests.support.images import Layout, Member, digest, directory, make_layout
from tests.support.mounts import TestMount, mounted
from tests.support.processes import unmount_below

REPOSITORY = "images.test"
APP = "localhost/app:1"
PROGRAM = r"""
#include <stdio.h>
int main(int count, char **words) {
    for (int i = 1; i < count; i++) {
        FILE *file = fopen(words[i], "r");
        if (!file) { printf("%s: none\n", words[i]); continue; }
        for (int c; (c = getc(file)) != EOF;) putchar(c);
    }
    return 0;
}
"""
BASE = [directory("etc"), Member("etc/removed", b"old\n"), Member("etc/kept", b"kept\n"), directory("opaque"),
        Member("opaque/lower", b"lower\n")]  # fmt: skip
TOP = [
    Member("etc/.wh.removed"),
    directory("opaque"),
    Member("opaque/.wh..wh..opq"),
    Member("opaque/upper", b"upper\n"),
]


@dataclass(frozen=True, slots=True)
class House:
    """A repository, and the commands pointed at it."""

    folder: Path
    repository: Repository

    def run(self, *arguments: str) -> Result:
        options = ["--storage", str(self.folder / "storage"), "--keys", str(self.folder / "keys")]
        return CliRunner().invoke(unpackd.app, [*arguments, *options, "--json"])

    def do(self, *arguments: str) -> Any:  # noqa: ANN401  # JSON
        ended = self.run(*arguments)
        assert ended.exit_code == 0, ended.output
        return json.loads(ended.stdout)

    def convert(self, layout: Layout, name: str) -> None:
        self.do("convert", layout.source, "--name", name, "--repo", REPOSITORY)

    def stored(self, file: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.repository.view().read(f"/podmanStore/{file}".encode(), 1 << 20))
        return found

    def has(self, path: str) -> bool:
        return self.repository.view().lookup(path.encode()) is not None


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path, Repository.create(REPOSITORY, str(tmp_path / "storage"), tmp_path / "keys", durable=False))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_layout(tmp_path / "layout", [BASE, TOP])


def chains(layout: Layout) -> list[str]:
    found = placement.chain_ids(json.loads(layout.config)["rootfs"]["diff_ids"])
    return [chain.removeprefix("sha256:") for chain in found]


def test_store_has_names_and_links_and_no_contents(house: House, layout: Layout) -> None:
    house.convert(layout, APP)
    house.do("images", "podman", APP)

    [image] = house.stored("overlay-images/images.json")
    lower, upper = chains(layout)
    config = digest(layout.config)
    assert (image["id"], image["names"], image["layer"]) == (config.removeprefix("sha256:"), [APP], upper)
    assert image["digest"] == digest(layout.manifest)
    records = {record["id"]: record for record in house.stored("overlay-layers/layers.json")}
    assert records.keys() == {lower, upper}
    assert records[upper]["parent"] == lower
    assert records[upper]["diff-digest"] == json.loads(layout.config)["rootfs"]["diff_ids"][1]
    view, top = house.repository.view(), f"/podmanStore/overlay/{upper}"
    assert view.read(f"{top}/link".encode(), 100).decode() == link_name(upper)
    assert view.read(f"{top}/lower".encode(), 100).decode() == f"l/{link_name(lower)}"
    assert view.readlink(f"{top}/diff".encode()) == f"../../../.unpackd/chains/{upper[:2]}/{upper}/layer".encode()
    assert view.readlink(f"/podmanStore/overlay/l/{link_name(upper)}".encode()) == f"../{upper}/diff".encode()
    blob = f"/podmanStore/overlay-images/{image['id']}/{data_file(config)}"
    assert view.read(blob.encode(), 1 << 20) == layout.config
    assert len(link_name(upper)) == 26


def test_names_are_followed_and_what_is_not_needed_goes(house: House, layout: Layout, tmp_path: Path) -> None:
    other = make_layout(tmp_path / "other", [BASE, [Member("other", b"x")]])
    house.convert(layout, APP)
    house.convert(layout, "localhost/same:1")
    house.do("images", "podman", APP, "localhost/same:1")
    revision = house.do("images", "podman", APP)["revision"]

    house.convert(other, APP)
    house.convert(other, "localhost/not-chosen:1")

    assert house.repository.revision == revision + 2
    assert {tuple(image["names"]) for image in house.stored("overlay-images/images.json")} == {
        (APP,), ("localhost/same:1",),
    }  # fmt: skip
    assert {record["id"] for record in house.stored("overlay-layers/layers.json")} == {*chains(layout), *chains(other)}
    house.do("images", "rm", "localhost/same:1")
    assert {record["id"] for record in house.stored("overlay-layers/layers.json")} == set(chains(other))
    assert not house.has(f"/podmanStore/overlay/{chains(layout)[1]}")
    assert not house.has(f"/podmanStore/overlay/l/{link_name(chains(layout)[1])}")
    assert house.do("images", "podman", APP, "--remove")["names"] == []
    assert house.stored("overlay-layers/layers.json") == []


def test_collection_keeps_what_podman_sees_and_stops_at_a_store_it_cannot_read(house: House, layout: Layout) -> None:
    house.convert(layout, APP)
    house.do("images", "podman", APP)
    content = house.repository.ingester().add_bytes
    stored = house.repository.view().read(b"/podmanStore/overlay-images/images.json", 1 << 20)
    house.do("images", "rm", APP)
    house.repository.commit([PutFile(b"/podmanStore/overlay-images/images.json", content(stored))])

    assert house.do("images", "gc", "--grace-days", "0")["removed"] == 0
    house.repository.commit([PutFile(b"/podmanStore/overlay-images/images.json", content(b'[{"id": "../.."}]'))])
    ended = house.run("images", "gc", "--grace-days", "0")

    assert ended.exit_code == 12
    assert house.has(placement.flat_path(digest(layout.config)).decode())


# --- podman itself


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("program")
    (folder / "cat.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-static", "-Os", "-o", folder / "cat", folder / "cat.c"], check=True, timeout=60)
    return (folder / "cat").read_bytes()


@dataclass(frozen=True, slots=True)
class Podman:
    """Podman with a store of its own; its settings are those that a machine without systemd needs."""

    folder: Path

    def __call__(self, *arguments: str) -> str:
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.folder),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
        }
        done = subprocess.run(
            ["podman", *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[Podman]:
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed; apt-get install podman brings it")
    folder = tmp_path / "podman"
    folder.mkdir()
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
        f'[storage.options]\nadditionalimagestores = ["{tmp_path}/mnt/podmanStore"]\n'
    )
    (folder / "containers.conf").write_text(
        '[containers]\ndefault_ulimits = ["nofile=1024:20000", "nproc=4096:4096"]\nnetns = "host"\n'
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        f'tmp_dir = "{folder}/tmp"\n'
    )
    try:
        yield Podman(folder)
    finally:
        unmount_below(folder)


@pytest.fixture
def mount(house: House, tmp_path: Path, program: bytes) -> Iterator[TestMount]:
    base = [*BASE, Member("cat", program, mode=0o755)]
    settings: dict[str, object] = {"Entrypoint": ["/cat"], "Env": ["PATH=/"]}
    house.convert(make_layout(tmp_path / "runs", [base, TOP], settings=settings), APP)
    house.do("images", "podman", APP)
    with flaky_origin(tmp_path / "storage") as origin:
        key = tmp_path / "keys" / f"{REPOSITORY}.pub"
        with mounted(REPOSITORY, [origin.url], key, tmp_path) as mount:
            yield mount


READ = ["/etc/kept", "/etc/removed", "/opaque/upper", "/opaque/lower"]
SEEN = "kept\n/etc/removed: none\nupper\n/opaque/lower: none\n"


@pytest.mark.root
def test_podman_runs_an_image_of_the_store_without_pulling(podman: Podman, mount: TestMount) -> None:
    [image] = json.loads(podman("images", "--format", "json"))

    assert (image["Names"], image["ReadOnly"]) == ([APP], True)
    assert podman("run", "--rm", "--pull=never", APP, *READ) == SEEN
    assert json.loads(podman("image", "inspect", APP))[0]["Config"]["Entrypoint"] == ["/cat"]


@pytest.mark.root
def test_podman_runs_the_flat_tree_of_any_image(podman: Podman, mount: TestMount) -> None:
    assert podman("run", "--rm", "--rootfs", f"{mount.path}/{APP}:O", "/cat", *READ) == SEEN
