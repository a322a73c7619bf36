"""A start profile from its recording to the next cold start: recorded, published, fetched before anybody reads."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.images import digest
from tests.support.mounts import TestMount, mounted, unpackd
from tests.support.node import Node, running_node
from tests.support.processes import require_tool, wait_until
from tests.support.registry import Registry
from tests.support.snapshotter import FakeRepository, service_folder
from tests.support.tool_image import TOOL, make_tool_images

pytestmark = pytest.mark.root


def test_what_a_start_read_is_there_at_the_next_one(tmp_path: Path, registry: Registry) -> None:
    require_tool("gcc")
    images = make_tool_images(tmp_path, registry)
    published = images.published
    where = ("--storage", published.storage, "--keys", published.keys)

    @contextmanager
    def cold(folder: str) -> Iterator[tuple[Node, TestMount]]:
        with ExitStack() as inner:
            url, client = published.storage.as_uri(), tmp_path / folder
            wire = ("--frontend", "wire")
            mount = inner.enter_context(mounted(published.name, [url], published.public_key, client, *wire))
            place = inner.enter_context(service_folder())
            yield inner.enter_context(running_node(place, FakeRepository(mount.path))), mount

    with cold("first") as (node, mount):
        node.unpackd("pull", images.app)
        assert node.run(images.app, "first", TOOL, "cat", "/etc/soft") == "top\n"
        recorded = tmp_path / "start.json"
        recorded.write_text(json.dumps(mount.control("profile")))
    manifest = digest(images.layout.manifest)
    done = unpackd("images", "profile", manifest, "--set", recorded, *where, "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(unpackd("images", "profile", manifest, *where, "--json").stdout)["reads"]
    paths = [row["path"] for row in shown]
    assert len(paths) == json.loads(done.stdout)["reads"]
    assert any(path.endswith("/bin/tool") for path in paths)
    assert not any(path.endswith("/etc/gone") for path in paths), "it was not read"

    with cold("second") as (node, mount):
        node.unpackd("pull", images.app)
        wait_until(lambda: mount.control("cache")["stored"] > 0, "the fetching of the profile")
        wait_until(lambda: "prefetched" in mount.log_text(), "the end of it")
        before = mount.control("status")["fetched_objects"]
        assert node.run(images.app, "second", TOOL, "cat", "/etc/soft") == "top\n"
        assert mount.control("status")["fetched_objects"] == before, "the start fetched nothing more"
