"""Containers with IDs of their own, through containerd 2: no copy of the image, and the owners are right."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fs.errors import MountingError
from fs.rootfs.idmapping import try_mapping
from tests.support.clients import require_client
from tests.support.mounts import mounted
from tests.support.node import PLUGIN, Node, Programs, running_node
from tests.support.processes import require_root, require_tool
from tests.support.registry import Registry
from tests.support.snapshotter import FakeRepository, service_folder
from tests.support.tool_image import TOOL, make_tool_images

pytestmark = pytest.mark.root

MAPPED = ("--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536", "--remap-labels")


@pytest.fixture
def mapping(request: pytest.FixtureRequest, tmp_path: Path, registry: Registry) -> Iterator[tuple[Node, str]]:
    """A node with the capability, over a mount by the front end of the parameter, and an image."""
    require_root()
    require_tool("gcc", "fusermount3")
    programs = Programs(require_client("containerd-2", "containerd").parent)
    images = make_tool_images(tmp_path, registry)
    url = images.published.storage.as_uri()
    with ExitStack() as stack:
        folder = stack.enter_context(service_folder())
        folder.chmod(0o755)  # the mapped root has to get at what is its own
        made = mounted(
            images.published.name, [url], images.published.public_key, folder / "m", "--frontend", request.param
        )
        mount = stack.enter_context(made)
        (folder / "n").mkdir()
        node = stack.enter_context(running_node(folder / "n", FakeRepository(mount.path), programs=programs))
        kind = 'type = "snapshot"'
        text = (node.folder / "config.toml").read_text()
        assert kind in text
        (node.folder / "config.toml").write_text(text.replace(kind, f'{kind}\n  capabilities = ["remap-ids"]'))
        node.kill_and_restart_containerd()
        node.unpackd("pull", images.app)
        yield node, images.app


@pytest.mark.parametrize("mapping", ["wire"], indirect=True)
def test_a_mapped_container_reads_and_writes(mapping: tuple[Node, str]) -> None:
    node, image = mapping
    try:
        try_mapping(node.repository.root)
    except MountingError as error:
        pytest.skip(f"owners of FUSE mounts cannot be mapped here (Linux 6.12): {error}")
    mapped = node.start(image, "mapped", TOOL, "pause", options=MAPPED)

    def tool(*arguments: str) -> str:
        return node.execute(mapped, TOOL, *arguments)

    assert tool("cat", "/etc/base", "/dir/file") == "base\nfile\n"
    tool("append", "/etc/base", "more\n")
    tool("append", "/new", "new\n")
    assert tool("cat", "/etc/base", "/new") == "base\nmore\nnew\n"
    (info,) = [info for info in node.client.list("kind==active") if info.name.endswith(f"/{mapped}")]
    (mounted_at,) = node.client.mounts(info.name)
    upper = next(option for option in mounted_at.options if option.startswith("upperdir="))
    layer = Path(upper.removeprefix("upperdir="))
    written = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in layer.rglob("*") if path.is_file()}
    assert written == {"base": (100_000, 200_000), "new": (100_000, 200_000)}
    node.remove(mapped)
    assert node.run(image, "plain", TOOL, "cat", "/etc/base") == "base\n"


@pytest.mark.parametrize("mapping", ["pyfuse3"], indirect=True)
def test_where_owners_cannot_be_mapped_it_is_said(mapping: tuple[Node, str]) -> None:
    node, image = mapping

    refused = node.ctr("run", "--rm", "--snapshotter", PLUGIN, *MAPPED, image, "mapped", TOOL, "pause", check=False)

    assert refused.returncode != 0
    assert "--frontend wire" in refused.stderr
    assert node.run(image, "plain", TOOL, "cat", "/etc/base") == "base\n"
