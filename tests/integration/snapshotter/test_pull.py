"""From a registry to a running process, layers from a directory laid out like a repository."""

import io
import json
import re
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from snapshotter.snapshots import chain_ids
from tests.support.images import MANIFEST, Layout, Member, digest, directory, make_layout, symlink, tar
from tests.support.node import ARCHITECTURE, PLUGIN, Node
from tests.support.processes import require_tool
from tests.support.registry import Registry

pytestmark = pytest.mark.root

INDEX = "application/vnd.oci.image.index.v1+json"
PROGRAM = b"""
#include <stdio.h>
int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "r");
        int c;
        if (!f) { printf("no %s\\n", argv[i]); continue; }
        while ((c = fgetc(f)) != EOF) putchar(c);
        fclose(f);
    }
    return 0;
}
"""


@dataclass(frozen=True, slots=True)
class Image:
    """A small image with a program that prints files."""

    reference: str
    layout: Layout
    layers: Sequence[Sequence[Member]]

    @property
    def diff_ids(self) -> list[str]:
        return [digest(tar(members)) for members in self.layers]

    @property
    def chains(self) -> tuple[str, ...]:
        return chain_ids(self.diff_ids)

    def publish(self, node: Node, numbers: Sequence[int]) -> None:
        """Lay the layers *numbers* into the repository, as a converter would."""
        for number in numbers:
            hexdigits = digest(self.layout.layers[number]).removeprefix("sha256:")
            content = node.repository.layer(hexdigits, {})
            with tarfile.open(fileobj=io.BytesIO(tar(self.layers[number]))) as archive:
                archive.extractall(content, numeric_owner=True)
            entry = node.repository.chain(self.chains[number])
            entry.mkdir(parents=True)
            (entry / "layer").symlink_to(f"../../../../{content.relative_to(node.repository.root)}")
            if number:
                parent = self.chains[number - 1].removeprefix("sha256:")
                (entry / "parent").symlink_to(f"../../{parent[:2]}/{parent}")


def name_of(request: pytest.FixtureRequest) -> str:
    """A name for the test's own image."""
    return re.sub("[^a-z0-9]+", "-", request.node.name.lower()).strip("-")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A static program."""
    require_tool("gcc")
    folder = tmp_path_factory.mktemp("program")
    (folder / "cat.c").write_bytes(PROGRAM)
    subprocess.run(["gcc", "-static", "-Os", "-o", folder / "cat", folder / "cat.c"], check=True, timeout=60)
    return (folder / "cat").read_bytes()


@pytest.fixture
def image(request: pytest.FixtureRequest, tmp_path: Path, registry: Registry, program: bytes) -> Image:
    """An image of three layers, different in each test, in the registry."""
    name = name_of(request)
    layers = [
        [directory("bin"), Member("bin/cat", program, mode=0o755), directory("etc"), Member("etc/own", name.encode())],
        [Member("etc/who", name.encode() + b"\n"), symlink("etc/link", "who")],
        [Member("etc/top", b"top\n"), Member("etc/own-top", name.encode())],
    ]
    layout = make_layout(tmp_path / "layout", layers, settings={"Cmd": ["/bin/cat", "/etc/link", "/etc/top"]})
    return Image(registry.push(layout.source, f"t/{name}:1"), layout, layers)


def pulled(node: Node, image: Image, *options: str) -> dict[str, object]:
    document: dict[str, object] = json.loads(node.unpackd("pull", image.reference, "--json", *options).stdout)
    return document


def expected(request: pytest.FixtureRequest) -> str:
    return name_of(request) + "\ntop\n"


def test_the_plugin_is_ok(node: Node) -> None:
    (line,) = [line for line in node.ctr("plugins", "ls").stdout.splitlines() if PLUGIN in line]
    assert line.split()[-1] == "ok"
    checks = json.loads(node.unpackd("doctor", "--json").stdout)["checks"]
    assert {"name": f"plugin {PLUGIN}", "verdict": "ok", "found": "known to containerd", "advice": ""} in checks


def test_a_published_image_runs_and_no_layer_is_fetched(
    node: Node, image: Image, registry: Registry, request: pytest.FixtureRequest
) -> None:
    image.publish(node, (0, 1, 2))
    before = len(registry.requests())

    started = time.monotonic()
    result = pulled(node, image)
    pulled_s = time.monotonic() - started
    started = time.monotonic()
    printed = node.run(image.reference, "lazy", "/bin/cat", "/etc/link", "/etc/top")
    run_s = time.monotonic() - started

    print(f"pull {pulled_s:.3f} s (inside: {result['seconds']} s), run {run_s:.3f} s")
    assert printed == expected(request)
    assert (result["layers_served"], result["layers_unpacked"]) == (3, 0)
    records = [record for record in registry.requests()[before:] if record["http.request.method"] == "GET"]
    fetched = {str(record["http.request.uri"]).rpartition("/")[2] for record in records}
    config = digest(image.layout.config)
    assert fetched <= {"", "1", digest(image.layout.manifest), config}
    sent = sum(int(str(record["http.response.written"])) for record in records)
    assert sent <= len(image.layout.manifest) + len(image.layout.config) + 1000


def test_pulling_again_asks_for_nothing_more(node: Node, image: Image) -> None:
    image.publish(node, (0, 1, 2))
    pulled(node, image)

    again = pulled(node, image)

    assert (again["layers_present"], again["layers_served"]) == (3, 0)


def test_what_is_not_published_is_unpacked(node: Node, image: Image, request: pytest.FixtureRequest) -> None:
    result = pulled(node, image)

    assert (result["layers_served"], result["layers_unpacked"]) == (0, 3)
    assert node.run(image.reference, "full", "/bin/cat", "/etc/link", "/etc/top") == expected(request)


@pytest.mark.parametrize("published", [(0,), (0, 1), (1, 2), (0, 2)])
def test_partly_published(node: Node, image: Image, request: pytest.FixtureRequest, published: tuple[int, ...]) -> None:
    image.publish(node, published)
    result = pulled(node, image)

    name = f"part{published[0]}{published[-1]}"
    assert node.run(image.reference, name, "/bin/cat", "/etc/link", "/etc/top") == expected(request)
    assert (result["layers_served"], result["layers_unpacked"]) == (len(published), 3 - len(published))


def test_images_of_another_snapshotter(node: Node, image: Image, request: pytest.FixtureRequest) -> None:
    """One image in both: unpacked by overlayfs, then unpacked here from what was fetched, and at last served."""
    command = ("/bin/cat", "/etc/link", "/etc/top")
    node.ctr("images", "pull", "--plain-http", "--snapshotter", "overlayfs", image.reference)

    assert node.run(image.reference, "theirs", *command, snapshotter="overlayfs") == expected(request)
    assert node.run(image.reference, "ours", *command) == expected(request)
    unpacked = {info.name for info in node.client.list("kind==committed") if info.name.endswith(image.chains)}
    assert len(unpacked) == 3

    image.publish(node, (0, 1, 2))
    node.ctr("images", "rm", "--sync", image.reference)
    assert pulled(node, image)["layers_served"] == 3
    assert node.run(image.reference, "served", *command) == expected(request)
    refused = node.ctr("run", "--rm", "--snapshotter", "overlayfs", image.reference, "n", *command, check=False)
    assert refused.returncode != 0, "overlayfs has the layers no more, and what is served was never fetched"


def test_a_second_namespace_shares(node: Node, image: Image) -> None:
    image.publish(node, (0, 1, 2))
    pulled(node, image)

    other = pulled(node, image, "--namespace", "other")

    assert (other["layers_served"], other["layers_unpacked"]) == (3, 0)


def test_removal_and_pulling_again_stays_lazy(node: Node, image: Image) -> None:
    image.publish(node, (0, 1, 2))
    pulled(node, image)
    node.ctr("images", "rm", "--sync", image.reference)
    names = {info.name for info in node.client.list()}
    assert image.chains[2] not in names

    again = pulled(node, image)

    assert (again["layers_unpacked"], again["layers_total"]) == (0, 3)


def test_an_index_by_digest(node: Node, image: Image, registry: Registry, request: pytest.FixtureRequest) -> None:
    image.publish(node, (0, 1, 2))
    described = {"mediaType": MANIFEST, "digest": digest(image.layout.manifest), "size": len(image.layout.manifest)}
    machine = {"os": "linux", "architecture": ARCHITECTURE}
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [{**described, "platform": machine}]}
    body = json.dumps(index).encode()
    repository = image.reference.partition("/")[2].rpartition(":")[0]
    where = f"{registry.url}/v2/{repository}/manifests/multi"
    put = urllib.request.Request(where, body, {"Content-Type": INDEX}, method="PUT")
    urllib.request.urlopen(put, timeout=10).close()
    name = f"{registry.host}/{repository}@{digest(body)}"

    result = json.loads(node.unpackd("pull", name, "--json").stdout)
    absent = node.unpackd("pull", name, "--platform", "linux/s390x", check=False)

    assert (result["image"], result["digest"], result["layers_served"]) == (name, digest(body), 3)
    assert node.run(name, "index", "/bin/cat", "/etc/link", "/etc/top") == expected(request)
    assert absent.returncode == 10
    assert f"linux/{ARCHITECTURE}" in absent.stderr


def test_containers_survive_a_restart_of_the_snapshotter(node: Node, image: Image) -> None:
    image.publish(node, (0, 1, 2))
    pulled(node, image)
    node.ctr("containers", "create", "--snapshotter", PLUGIN, image.reference, "kept", "/bin/cat", "/etc/top")
    keys = [info.name for info in node.client.list() if info.name.endswith("/kept")]
    before = node.client.mounts(keys[0])

    client = node.kill_and_restart_snapshotter()

    assert client.mounts(keys[0]) == before
    assert node.printed(("tasks", "start"), "kept") == "top\n"
    node.ctr("tasks", "rm", "kept", check=False)
    node.ctr("containers", "rm", "kept")


def test_containerds_own_pull_is_lazy_from_2_0_on(
    node: Node, image: Image, registry: Registry, request: pytest.FixtureRequest
) -> None:
    if node.version < (2, 0):
        pytest.skip("containerd is older than 2.0: its own client fetches every layer")
    image.publish(node, (0, 1, 2))
    before = registry.bytes_sent()

    node.ctr("images", "pull", "--plain-http", "--snapshotter", PLUGIN, image.reference)

    layers = sum(len(layer) for layer in image.layout.layers)
    assert registry.bytes_sent() - before < layers
    assert node.run(image.reference, "own", "/bin/cat", "/etc/link", "/etc/top") == expected(request)


def test_absent_things_have_their_exit_codes(node: Node, image: Image, registry: Registry) -> None:
    absent = node.unpackd("pull", f"{registry.host}/t/nothing:1", "--json", check=False)
    unknown = node.unpackd("pull", image.reference, "--snapshotter", "nobody", check=False)
    other = node.unpackd("pull", image.reference, "--platform", "linux/s390x", check=False)

    assert (absent.returncode, json.loads(absent.stderr)["exit"]) == (10, 10)
    assert unknown.returncode == 1
    assert "nobody" in unknown.stderr
    assert other.returncode == 0, "an image that is no index has one platform"
