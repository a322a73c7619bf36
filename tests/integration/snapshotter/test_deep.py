"""An image of 128 layers through a real containerd, under paths so long that the options do not fit into a page."""

import json
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from snapshotter.snapshots import chain_ids
from tests.support.images import Member, digest, directory, make_layout, tar
from tests.support.node import PLUGIN, running_node
from tests.support.processes import require_root, require_tool
from tests.support.registry import Registry
from tests.support.snapshotter import FakeRepository, service_folder
from tests.support.tool_image import PROGRAM

pytestmark = pytest.mark.root

LAYERS = 128
PAGE_BYTES = 4096


def test_a_container_on_128_layers(tmp_path: Path, registry: Registry) -> None:
    """The lowest layer is not in the repository, so the snapshots' own directory and the repository are mixed."""
    require_root()
    require_tool("gcc", "containerd")
    (tmp_path / "tool.c").write_text(PROGRAM)
    command = ["gcc", "-static", "-Os", "-w", "-o", tmp_path / "tool", tmp_path / "tool.c"]
    subprocess.run(command, check=True, timeout=60)
    tool = Member("bin/tool", (tmp_path / "tool").read_bytes(), mode=0o755)
    layers = [[directory("bin"), tool, directory("d")]]
    layers += [
        [Member(f"d/f{number}", b"%d\n" % number), Member("last", b"%d\n" % number)] for number in range(1, LAYERS)
    ]
    layout = make_layout(tmp_path / "layout", layers)
    reference = registry.push(layout.source, "t/deep:1")
    diff_ids = [digest(tar(members)) for members in layers]
    with service_folder() as folder:
        deep = folder / ("long" * 6)
        deep.mkdir()
        repository = FakeRepository(folder / "repository")
        repository.add_chain(diff_ids, [{}] * LAYERS)
        for chain, members in zip(chain_ids(diff_ids), layers, strict=True):
            with tarfile.open(fileobj=BytesIO(tar(members))) as archive:
                archive.extractall((repository.chain(chain) / "layer").resolve(), numeric_owner=True)
        (repository.chain(chain_ids(diff_ids)[0]) / "layer").unlink()
        with running_node(deep, repository) as node:
            pulled = json.loads(node.unpackd("pull", reference, "--json").stdout)
            assert (pulled["layers_served"], pulled["layers_unpacked"]) == (LAYERS - 1, 1)
            printed = node.run(reference, "deep", "/bin/tool", "cat", "/d/f1", f"/d/f{LAYERS - 1}", "/last")
            assert printed == f"1\n{LAYERS - 1}\n{LAYERS - 1}\n"
            node.ctr("snapshots", "--snapshotter", PLUGIN, "prepare", "look", chain_ids(diff_ids)[-1])
            (key,) = (info.name for info in node.client.list() if info.name.endswith("/look"))
            (mounted,) = node.client.mounts(key)
            assert len(",".join(mounted.options)) > PAGE_BYTES
