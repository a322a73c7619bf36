"""The table of clients: real programs, a real repository, and what each of them fetches from the registry.

The configuration of containerd is that of ``deploy/containerd``. What Debian does not have comes by ``make clients``.
"""

import io
import json
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.client_commands import NERDCTL_NAMESPACE, Nerdctl, running_docker
from tests.support.clients import CLIENTS, find_client, require_client
from tests.support.cri import Kubelet
from tests.support.mounts import mounted
from tests.support.node import PLUGIN, Node, Programs, running_node
from tests.support.processes import require_tool
from tests.support.registry import Registry
from tests.support.snapshotter import REF, FakeRepository, service_folder
from tests.support.tool_image import TOOL, make_tool_images
from tests.support.trees import Described, describe

pytestmark = pytest.mark.root

DOCUMENTS_BYTES = 10_000  # more than manifest and config have, less than a layer
ANNOTATION = "containerd.io/snapshot/cri.layer-digest"


@dataclass(frozen=True, slots=True)
class Images:
    """References of the images, and where the repository that has them is mounted."""

    app: str
    pause: str
    repository: FakeRepository  # really a mounted one


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[Images]:
    require_tool("gcc", "fusermount3")
    work = tmp_path_factory.mktemp("images")
    made = make_tool_images(work, registry)
    published = made.published
    with mounted(published.name, [published.storage.as_uri()], published.public_key, work / "client") as mount:
        yield Images(made.app, made.pause, FakeRepository(mount.path))


def programs_of(release: str) -> Programs:
    """The containerd of a release; the test is skipped if it is not there."""
    if release == "1.6":
        require_tool("containerd", "ctr")
        return Programs()
    if release == "1.7":
        return Programs(require_client("docker", "usr/bin/containerd").parent)
    return Programs(require_client("containerd-2", "containerd").parent)


@pytest.fixture(scope="module", params=["1.6", "1.7", "2"])
def node(request: pytest.FixtureRequest, images: Images) -> Iterator[Node]:
    programs = programs_of(request.param)
    with (
        service_folder() as folder,
        running_node(folder, images.repository, sandbox=images.pause, programs=programs) as node,
    ):
        yield node


@pytest.fixture
def nerdctl(node: Node) -> Nerdctl:
    folder = node.folder / "nerdctl"
    folder.mkdir(exist_ok=True)
    return Nerdctl(require_client("nerdctl", "nerdctl"), node, folder)


def fetched(registry: Registry, action: Callable[[], object]) -> int:
    """Bytes that the registry sends while *action* runs."""
    before = registry.bytes_sent()
    action()
    return registry.bytes_sent() - before


def test_unpackd_pull(node: Node, images: Images, registry: Registry) -> None:
    result: dict[str, int] = {}
    count = fetched(registry, lambda: result.update(json.loads(node.unpackd("pull", images.app, "--json").stdout)))

    assert (result["layers_served"], result["layers_unpacked"]) == (2, 0)
    assert count < DOCUMENTS_BYTES
    assert node.run(images.app, "pulled", TOOL, "cat", "/etc/soft") == "top\n"


def test_ctr_pull(node: Node, images: Images, registry: Registry) -> None:
    arguments = ("--namespace", "ctr", "images", "pull", "--plain-http", "--snapshotter", PLUGIN, images.app)
    is_new = node.version >= (2, 0)
    count = fetched(registry, lambda: node.ctr(*arguments, check=is_new))

    assert (count < DOCUMENTS_BYTES) == is_new, "older clients fetch every layer themselves"
    if not is_new:
        return  # and unpack them, which their overlays cannot do with a hard link into a lower layer
    run = ("--rm", "--snapshotter", PLUGIN, images.app, "c1", TOOL, "cat", "/etc/soft")
    assert node.printed(("--namespace", "ctr", "run"), *run) == "top\n"


def test_cri(node: Node, images: Images, registry: Registry, tmp_path: Path) -> None:
    kubelet = Kubelet(node.socket, tmp_path)
    try:
        count = fetched(registry, lambda: kubelet.pull(images.app))
        pod = kubelet.sandbox("pod", tmp_path)
        container = pod.start("main", images.app, TOOL, "pause")
        printed = pod.output(container, TOOL, "cat", "/etc/soft", "/etc/hard")
        pod.remove()
    finally:
        kubelet.close()

    assert printed == "top\nbase\n"
    assert count < DOCUMENTS_BYTES


def test_nerdctl_run(node: Node, nerdctl: Nerdctl, images: Images, registry: Registry) -> None:
    printed: list[str] = []
    run = ("run", "--rm", "--quiet", "--network", "none", images.app, "cat", "/etc/soft")
    count = fetched(registry, lambda: printed.append(nerdctl(*run) or nerdctl(*run)))  # it loses some: nerdctl#4392

    assert printed == ["top\n"]
    assert count < DOCUMENTS_BYTES


def test_docker(node: Node, images: Images, registry: Registry) -> None:
    programs = find_client("docker", "usr/sbin/dockerd")
    if programs is None or node.version != (1, 7):
        pytest.skip("needs docker, and the containerd that Debian has beside it: make docker")
    printed: list[str] = []
    with running_docker(node.folder / "docker", CLIENTS / "docker", node, registry.host) as docker:
        info = json.loads(docker("info", "--format", "{{json .}}"))
        count = fetched(registry, lambda: docker("pull", "--quiet", images.app))
        printed.append(docker("run", "--rm", "--network", "host", images.app, "cat", "/etc/soft", "/dir/file"))

    assert (info["Driver"], int(info["ServerVersion"].split(".")[0]) >= 26) == (PLUGIN, True)
    assert printed == ["top\nfile\n"]
    assert count < DOCUMENTS_BYTES


@pytest.mark.parametrize("annotated", [False, True])
def test_ctr_2_with_and_without_annotations(images: Images, registry: Registry, annotated: bool) -> None:
    with service_folder() as folder, ExitStack() as stack:
        node = stack.enter_context(running_node(folder, images.repository, programs=programs_of("2")))
        exports = "[proxy_plugins.cvmfs-snapshotter.exports]"
        text = (folder / "config.toml").read_text()
        assert exports in text
        if annotated:
            more = f'{exports}\n    enable_remote_snapshot_annotations = "true"'
            (folder / "config.toml").write_text(text.replace(exports, more))
            node.kill_and_restart_containerd()
        pull = ("images", "pull", "--plain-http", "--snapshotter", PLUGIN, images.app)

        count = fetched(registry, lambda: node.ctr(*pull))

        assert count < DOCUMENTS_BYTES
        served = [info.labels for info in node.client.list() if REF in info.labels]
        assert [ANNOTATION in labels for labels in served] == [annotated] * 2
        assert node.run(images.app, "c", TOOL, "cat", "/etc/soft") == "top\n"


CHANGES = [
    ("append", "/etc/base", "more\n"),
    ("append", "/new", "new\n"),
    ("remove", "/etc/gone"),
    ("chmod", "/etc/top", "0600"),
]


def test_what_a_container_wrote_is_diffed(node: Node, images: Images) -> None:
    node.unpackd("pull", images.app)
    with running_container(node, images.app) as name:
        for change in CHANGES:
            node.execute(name, TOOL, *change)
        members = members_of(node, name)

    written = {name: member for name, member in members.items() if not member.isdir()}
    assert sorted(written) == ["etc/.wh.gone", "etc/base", "etc/top", "new"]
    assert stat.S_IMODE(written["etc/top"].mode) == 0o600


@contextmanager
def running_container(node: Node, image: str) -> Iterator[str]:
    """A container that waits for its end; its name."""
    name = node.start(image, "c", TOOL, "pause")
    try:
        yield name
    finally:
        node.remove(name)


def root_of(node: Node, namespace: str, name: str) -> Path:
    """Where a container's root file system is mounted."""
    return node.folder / "state/io.containerd.runtime.v2.task" / namespace / name / "rootfs"


def members_of(node: Node, snapshot: str) -> dict[str, tarfile.TarInfo]:
    """Entries of the layer that containerd makes of what a snapshot has beyond its parent."""
    command = [node.programs.path("ctr"), "--address", str(node.socket), "snapshots", "--snapshotter", PLUGIN]
    done = subprocess.run([*command, "diff", snapshot], check=True, capture_output=True, timeout=60)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        return {member.name.removeprefix("./"): member for member in archive}


def test_what_a_container_wrote_is_committed_and_pulled_elsewhere(
    node: Node, nerdctl: Nerdctl, images: Images, registry: Registry
) -> None:
    nerdctl("run", "--detach", "--quiet", "--network", "none", "--name", "work", images.app, "pause")
    for change in CHANGES:
        nerdctl("exec", "work", TOOL, *change)
    identity = nerdctl("inspect", "--format", "{{.ID}}", "work").strip()
    before = comparable(root_of(node, NERDCTL_NAMESPACE, identity))
    name = images.app.replace(":1", ":committed")

    nerdctl("commit", "work", name)
    nerdctl("push", "--quiet", name)
    nerdctl("rm", "--force", "work")

    with service_folder() as folder, ExitStack() as stack:
        other = stack.enter_context(running_node(folder, images.repository))
        result = json.loads(other.unpackd("pull", name, "--json").stdout)
        assert (result["layers_served"], result["layers_unpacked"]) == (2, 1)
        with running_container(other, name) as container:
            assert comparable(root_of(other, "default", container)) == before
        printed = other.run(name, "again", TOOL, "cat", "/etc/base", "/etc/gone", "/new", "/etc/soft")
    assert printed == "base\nmore\nno /etc/gone\nnew\ntop\n"


def comparable(root: Path) -> dict[bytes, Described]:
    """A tree but for what a layer does not keep (parts of seconds, links of directories) and where a runtime mounts.

    The root itself is changed by the runtime too, when it makes those directories.
    """
    return {
        path: replace(one, mtime_ns=one.mtime_ns // 10**9, nlink=0 if stat.S_ISDIR(one.mode) else one.nlink)
        for path, one in describe(root).items()
        if path and path.split(b"/")[1] not in (b"dev", b"proc", b"run", b"sys")
    }
