"""The CSI plugin as a process, over a real mount, by the calls that a kubelet makes."""

import errno
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from snapshotter._proto import csi_pb2
from tests.support.clients import require_client
from tests.support.csi import Plugin, running_plugin
from tests.support.mounts import mounted
from tests.support.processes import mounts_below, require_root, require_tool, unmount_below
from tests.support.published import Published, publish
from tests.support.snapshotter import service_folder

pytestmark = pytest.mark.root

TREE = {"repository": "test.example.org", "path": "/images/tool"}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    made = publish(tmp_path_factory.mktemp("csi"))
    made.nest("/images")
    made.nest("/flat")
    made.commit(made.file("/flat/who", b"tool\n", mode=0o4755), made.file("/images/plain", b""))
    made.link("/images/tool", b"../flat")
    made.link("/images/out", b"/etc")
    return made


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    require_root()
    require_tool("fusermount3")
    with service_folder() as place:
        yield place


@pytest.fixture(scope="module")
def repositories(place: Path, published: Published) -> Iterator[Path]:
    """A directory with one mounted repository, and one that is not mounted."""
    with ExitStack() as stack:
        made = mount(stack, place, published, "one")
        (made / "away.example.org").mkdir()
        yield made


@pytest.fixture
def folder(place: Path) -> Iterator[Path]:
    """For what one test mounts."""
    folder = Path(tempfile.mkdtemp(dir=place))
    yield folder
    unmount_below(folder)


def mount(stack: ExitStack, folder: Path, published: Published, name: str) -> Path:
    """Mount the repository once more, and put it where repositories are."""
    url = published.storage.as_uri()
    mount = stack.enter_context(mounted(published.name, [url], published.public_key, folder / name))
    place = folder / "cvmfs" / published.name
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", mount.path, place], check=True, timeout=30)
    stack.callback(unmount_below, folder / "cvmfs")
    return place.parent


@pytest.fixture(scope="module")
def plugin(place: Path, repositories: Path) -> Iterator[Plugin]:
    with running_plugin(place, repositories) as plugin:
        yield plugin


def code_of(caught: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    code = caught.value.code()  # type: ignore[attr-defined]  # a call's error has it
    assert isinstance(code, grpc.StatusCode)
    return code


def test_it_says_who_it_is(plugin: Plugin) -> None:
    info = plugin.identity.GetPluginInfo(csi_pb2.GetPluginInfoRequest())
    node = plugin.node.NodeGetInfo(csi_pb2.NodeGetInfoRequest())
    told = plugin.node.NodeGetCapabilities(csi_pb2.NodeGetCapabilitiesRequest()).capabilities

    assert info.name == "csi.unpackd.org"
    assert info.vendor_version
    assert node.node_id == "n1"
    assert sorted(one.rpc.type for one in told) == [1, 2, 4]
    assert plugin.identity.Probe(csi_pb2.ProbeRequest()).ready.value
    assert not plugin.identity.GetPluginCapabilities(csi_pb2.GetPluginCapabilitiesRequest()).capabilities


def test_a_path_becomes_a_volume_that_cannot_be_written(plugin: Plugin, folder: Path) -> None:
    target = folder / "pod" / "v"
    target.parent.mkdir()

    plugin.publish(target, TREE)
    plugin.publish(target, TREE)

    assert (target / "who").read_bytes() == b"tool\n"
    with pytest.raises(OSError, match="Read-only") as caught:
        (target / "new").write_bytes(b"")
    assert caught.value.errno == errno.EROFS
    flags = os.statvfs(target).f_flag
    assert flags & (os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV) == os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV
    assert mounts_below(target) == [str(target)], "asked for twice, mounted once"

    usage = plugin.stats(target)
    assert [one.unit for one in usage.usage] == [1, 2]
    assert not usage.volume_condition.abnormal
    plugin.unpublish(target)
    plugin.unpublish(target)
    assert not target.exists()


def test_pods_of_one_machine_see_what_was_staged(plugin: Plugin, folder: Path, published: Published) -> None:
    staging, targets = folder / "staging", [folder / "pod1", folder / "pod2"]
    plugin.stage(staging, TREE)
    plugin.stage(staging, TREE)
    for target in targets:
        plugin.publish(target, TREE, staging=staging)

    assert [(target / "who").read_bytes() for target in targets] == [b"tool\n"] * 2
    plugin.unpublish(targets[0])
    assert (targets[1] / "who").exists()
    plugin.unpublish(targets[1])
    plugin.unstage(staging)
    plugin.unstage(staging)
    assert not any(path.exists() for path in (staging, *targets))


def test_a_restarted_plugin_knows_its_volumes(folder: Path, repositories: Path) -> None:
    target = folder / "v"
    with running_plugin(folder, repositories) as plugin:
        plugin.publish(target, TREE)
    assert (target / "who").exists(), "the end of the plugin takes nothing away"

    with running_plugin(folder, repositories) as plugin:
        plugin.publish(target, TREE)
        assert mounts_below(target) == [str(target)]
        plugin.unpublish(target)
    assert not target.exists()


def test_a_volume_is_made_again_when_the_repository_was(folder: Path, published: Published) -> None:
    target, control = folder / "v", folder / "control"
    control.mkdir()
    subprocess.run(["mount", "-t", "fusectl", "fusectl", control], check=True, timeout=30)
    with ExitStack() as stack:
        plugin = stack.enter_context(running_plugin(folder, mount(stack, folder, published, "one")))
        plugin.publish(target, TREE)
        (control / str(os.minor(target.stat().st_dev)) / "abort").write_text("1")
        with pytest.raises(OSError, match="not connected"):
            os.listdir(target)
        assert plugin.stats(target).volume_condition.abnormal
        with pytest.raises(grpc.RpcError) as caught:
            plugin.publish(target, TREE)
        assert code_of(caught) is grpc.StatusCode.UNAVAILABLE

        mount(stack, folder, published, "two")
        plugin.publish(target, TREE)

        assert (target / "who").read_bytes() == b"tool\n"
        assert mounts_below(target) == [str(target)]
        plugin.unpublish(target)


@pytest.mark.parametrize(
    ("context", "code"),
    [
        ({}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"repository": "test.example.org", "path": "../.."}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"repository": "nowhere.example.org"}, grpc.StatusCode.NOT_FOUND),
        ({"repository": "test.example.org", "path": "/absent"}, grpc.StatusCode.NOT_FOUND),
        ({"repository": "test.example.org", "path": "/flat/who"}, grpc.StatusCode.NOT_FOUND),
        ({"repository": "test.example.org", "path": "/images/out"}, grpc.StatusCode.NOT_FOUND),
        ({"repository": "away.example.org"}, grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_what_cannot_be_had(plugin: Plugin, folder: Path, context: dict[str, str], code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        plugin.publish(folder / "v", context)

    assert code_of(caught) is code
    assert not (folder / "v").exists()


def test_what_others_have_mounted_is_left_alone(plugin: Plugin, folder: Path) -> None:
    other, target = folder / "other", folder / "v"
    other.mkdir()
    (other / "file").touch()
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", target], check=True, timeout=30)

    with pytest.raises(grpc.RpcError) as caught:
        plugin.publish(target, TREE)
    with pytest.raises(grpc.RpcError) as refused:
        plugin.unpublish(other)
    with pytest.raises(grpc.RpcError) as absent:
        plugin.stats(other)

    assert code_of(caught) is grpc.StatusCode.ALREADY_EXISTS
    assert code_of(refused) is grpc.StatusCode.INVALID_ARGUMENT
    assert code_of(absent) is grpc.StatusCode.NOT_FOUND
    assert (other / "file").exists()


def test_the_socket_is_for_root_alone(plugin: Plugin) -> None:
    assert stat.S_IMODE(plugin.socket.stat().st_mode) == 0o600


def test_the_interfaces_own_checks_pass(plugin: Plugin, folder: Path) -> None:
    """All of the two services, but for the cases that have a controller make a volume first: there is none."""
    made_first = ["should work", "should be idempotent", "volume lifecycle", "should remove target path"]
    made_first += ["NodeStageVolume should fail when no volume capability", "does not exist on the specified path"]
    sanity = require_client("csi-sanity", "csi-sanity")
    done = subprocess.run(
        [sanity, "--csi.endpoint", f"unix://{plugin.socket}", "--csi.mountdir", folder / "m", "--csi.stagingdir",
         folder / "st", "--ginkgo.no-color", "--ginkgo.focus", "Identity Service|Node Service",
         "--ginkgo.skip", "|".join(["Controller", *made_first])],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) Passed \| 0 Failed", done.stdout)
    assert passed is not None, done.stdout[-3000:]
    print(passed[0])
    assert int(passed[1]) >= 10
