"""From a converted image in a mounted repository to containers that run, die and go on: nothing is imitated."""

import json
import os
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.cri import Kubelet
from tests.support.images import digest
from tests.support.mounts import TestMount, mounted
from tests.support.node import Node, running_node
from tests.support.processes import free_port, mounts_below, require_root, require_tool, wait_until
from tests.support.registry import Registry
from tests.support.snapshotter import FakeRepository, service_folder
from tests.support.tool_image import TOOL, make_tool_images

pytestmark = pytest.mark.root


@dataclass(frozen=True, slots=True)
class Machine:
    """A node over a real mount, and the reference of an image that is converted."""

    node: Node
    mount: TestMount
    metrics: str
    image: str
    other: str  # the same layers with another command
    config: str  # digest

    def forms(self) -> set[bool]:
        """For each container's overlay that is mounted now, whether it stands on a metadata image."""
        with Path("/proc/self/mounts").open() as table:
            lines = [line for line in table if str(self.node.folder) in line and line.startswith("overlay")]
        return {f"lowerdir={self.node.service.root}/m/" in line for line in lines if "upperdir=" in line}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[Machine]:
    require_root()
    require_tool("gcc", "containerd", "fusermount3")
    work = tmp_path_factory.mktemp("work")
    images = make_tool_images(work, registry)
    published = images.published
    with ExitStack() as stack:
        url = published.storage.as_uri()
        options = ("--frontend", "wire")
        mount = stack.enter_context(mounted(published.name, [url], published.public_key, work / "client", *options))
        folder = stack.enter_context(service_folder())
        metrics = f"127.0.0.1:{free_port()}"
        repository = FakeRepository(mount.path)
        node = stack.enter_context(running_node(folder, repository, "--metrics", metrics, sandbox=images.pause))
        yield Machine(node, mount, metrics, images.app, images.pause, digest(images.layout.config))


def pull(machine: Machine, *options: str) -> dict[str, object]:
    document: dict[str, object] = json.loads(machine.node.unpackd("pull", machine.image, "--json", *options).stdout)
    return document


def test_a_container_runs_from_the_metadata_image(machine: Machine) -> None:
    node = machine.node
    assert pull(machine)["layers_unpacked"] == 0
    allowed = json.loads((node.service.root / "rootfs.json").read_text())["form"] == "erofs"
    inside = node.start(machine.image, "inside", TOOL, "pause")

    def tool(*arguments: str) -> str:
        return node.execute(inside, TOOL, *arguments)

    assert machine.forms() == {allowed}
    assert tool("cat", "/etc/soft", "/etc/hard", "/dir/file", "/etc/empty") == "top\nbase\nfile\n"
    tool("append", "/etc/base", "more\n")
    tool("append", "/etc/empty", "filled\n")
    tool("remove", "/etc/gone")
    tool("move", "/dir/file", "/moved")
    tool("chmod", "/etc/top", "0600")
    shown = tool("cat", "/etc/base", "/etc/empty", "/etc/gone", "/moved", "/etc/top", "/dir/file")
    assert shown == "base\nmore\nfilled\nno /etc/gone\nfile\ntop\nno /dir/file\n"
    assert node.run(machine.image, "fresh", TOOL, "cat", "/etc/base", "/etc/gone") == "base\ngone\n"
    node.remove(inside)


def test_what_runs_is_pinned_measured_and_counted(machine: Machine) -> None:
    node = machine.node
    pull(machine)
    Path("/proc/sys/vm/drop_caches").write_text("1")  # what an earlier container read is not asked for again
    pinned = node.start(machine.image, "pinned", TOOL, "pause")
    node.execute(pinned, TOOL, "cat", "/etc/base", "/dir/file")

    (pin,) = machine.mount.control("pins")
    assert pin["owner"] == f"snapshotter {node.service.root}"
    assert pin["path"].startswith("/.unpackd/rootfs/")
    tool = os.stat(next((machine.mount.path / pin["path"].lstrip("/")).glob("bin/tool")))
    assert pin["bytes_read"] >= tool.st_size
    assert pin["files_read"] >= 1
    served = node.client.list("kind==committed")
    sizes = {node.client.usage(info.name).size for info in served}
    assert {tool.st_size + len("base\n") + len("gone\n"), len("top\n") + len("file\n") + len("base\n")} >= sizes
    assert 0 not in sizes
    assert all(node.client.usage(info.name).inodes > 3 for info in served)
    with urllib.request.urlopen(f"http://{machine.metrics}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    assert 'unpackd_snapshotter_call_seconds_count{method="Prepare"}' in text
    assert 'unpackd_snapshotter_layers_total{outcome="served"} ' in text
    (read,) = [line for line in text.splitlines() if line.startswith("unpackd_snapshotter_image_bytes_read_total")]
    assert f'tree="{pin["path"]}"' in read
    assert int(read.rpartition(" ")[2]) >= tool.st_size

    told = json.loads(node.unpackd("doctor", "--mountpoint", str(machine.mount.path), "--json").stdout)["checks"]
    verdicts = {check["name"]: check["verdict"] for check in told}
    assert verdicts[f"page cache of {machine.mount.path}"] == "ok"
    assert f"mapped owners of {machine.mount.path}" in verdicts

    node.kill_and_restart_snapshotter()
    wait_until(lambda: len(machine.mount.control("pins")) == 1, "the same pin after a restart")
    node.remove(pinned)
    wait_until(lambda: machine.mount.control("pins") == [], "the end of the pin")


def test_cri_pulls_and_runs_a_pod(machine: Machine, registry: Registry, tmp_path: Path) -> None:
    node = machine.node
    if node.version >= (2, 0):
        pytest.skip("the configuration of the test is that of containerd 1.6 and 1.7")
    kubelet = Kubelet(node.socket, tmp_path)
    try:
        before = len(registry.requests())
        kubelet.pull(machine.image)
        asked = {str(record["http.request.uri"]).rpartition("/")[2] for record in registry.requests()[before:]}
        pod = kubelet.sandbox("pod", tmp_path)
        container = pod.start("main", machine.image, TOOL, "pause")
        printed = pod.output(container, TOOL, "cat", "/etc/soft", "/moved/file")
        pod.output(container, TOOL, "append", "/etc/base", "x")
        pod.remove()
        kubelet.remove_image(machine.image)
    finally:
        kubelet.close()

    assert printed == "top\nno /moved/file\n"
    assert len(asked) <= 4, "manifest and config, no layers"


def test_kills_under_a_running_container(machine: Machine) -> None:
    node = machine.node
    pull(machine)
    survivor = node.start(machine.image, "survivor", TOOL, "pause")

    def tool(*arguments: str) -> str:
        return node.execute(survivor, TOOL, *arguments)

    tool("append", "/etc/base", "kept\n")
    node.service.kill()
    assert tool("cat", "/etc/base", "/dir/file") == "base\nkept\nfile\n", "without a snapshotter"
    node.client = node.stack.enter_context(node.service.started())
    node.kill_and_restart_containerd()
    assert tool("cat", "/etc/base", "/etc/soft") == "base\nkept\ntop\n", "another containerd"
    node.kill_and_restart_snapshotter()
    assert node.run(machine.image, "later", TOOL, "cat", "/etc/base") == "base\n"
    node.remove(survivor)


def test_nothing_is_left_when_the_last_image_goes(machine: Machine) -> None:
    node = machine.node
    pull(machine)
    node.run(machine.image, "last", TOOL, "cat", "/etc/base")

    for namespace in ("default", "k8s.io"):
        for name in node.ctr("--namespace", namespace, "images", "ls", "-q").stdout.split():
            node.ctr("--namespace", namespace, "images", "rm", "--sync", name)
    wait_until(lambda: not node.client.list(), "the removal of all snapshots")
    node.client.cleanup()

    assert mounts_below(node.folder) == []
    assert [os.listdir(node.service.root / folder) for folder in ("s", "l", "e", "m", "t")] == [[]] * 5
