"""The ways to start a container: each gives a node without anything of the image."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.start.prepare import ARCHIVE, CONTAINERD, NAME, STARGZ, Sources
from tests.support.delaying_relay import Link, delaying_relay
from tests.support.mounts import TestMount, mounted
from tests.support.node import ARCHITECTURE, PLUGIN, Node, running_node
from tests.support.processes import running, wait_until
from tests.support.snapshotter import FakeRepository, service_folder

_PEER = """
[proxy_plugins.stargz]
  type = "snapshot"
  address = "{address}"
  [proxy_plugins.stargz.exports]
    root = "{root}"
    enable_remote_snapshot_annotations = "true"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/{architecture}"
  snapshotter = "stargz"
"""


class Way(StrEnum):
    """How the image comes to the node."""

    FULL = "overlayfs"
    """Everything is pulled and unpacked."""
    PEER = "stargz"
    """stargz-snapshotter, of the image in its own form, which was made beforehand."""
    FUSE = "fuse"
    """Ours, the tree through FUSE."""
    EROFS = "erofs"
    """Ours, names and attributes from the kernel."""
    PROFILE = "profile"
    """The same, and what an earlier start read is fetched at once."""


@dataclass(frozen=True, slots=True)
class Distance:
    """How far away registry and origin are."""

    round_trip_ms: float
    bits_per_s: float = 1e9


@dataclass(frozen=True, slots=True)
class Start:
    """A node that knows no image, and how to pull and run one there."""

    node: Node
    snapshotter: str
    image: str
    link: Link
    mount: TestMount | None

    def pull(self) -> None:
        """As a user does."""
        self.node.ctr("images", "pull", "--plain-http", "--snapshotter", self.snapshotter, self.image)

    def begin(self, name: str, *command: str) -> "subprocess.Popen[str]":
        """A container that has been started; its output is a pipe."""
        where = [self.node.programs.path("ctr"), "--address", str(self.node.socket)]
        run = ["run", "--rm", "--snapshotter", self.snapshotter, self.image, name, *command]
        return subprocess.Popen([*where, *run], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def run(self, name: str, *command: str) -> str:
        """What a container prints."""
        return self.node.run(self.image, name, *command, snapshotter=self.snapshotter)

    def profile(self) -> dict[str, object]:
        """What was read so far. Of our ways only."""
        assert self.mount is not None
        document: dict[str, object] = self.mount.control("profile")
        return document


@contextmanager
def started(way: Way, sources: Sources, image: str, distance: Distance) -> Iterator[Start]:
    """Everything that a node has running before it hears of the image; its caches are empty."""
    link = Link(distance.bits_per_s / 8)
    with ExitStack() as stack:

        def far(address: str) -> str:
            host, _, port = address.partition(":")
            relay = stack.enter_context(delaying_relay((host, int(port)), distance.round_trip_ms / 1000, link))
            return f"127.0.0.1:{relay.port}"

        folder = stack.enter_context(service_folder())
        registry = far(sources.registry.host)
        make = _MAKERS[way]
        node, snapshotter, mount = make(stack, folder, sources, far)
        tag = ARCHIVE if way is Way.PEER else "1"
        yield Start(node, snapshotter, f"{registry}/bench/{image}:{tag}", link, mount)


Made = tuple[Node, str, TestMount | None]
Far = Callable[[str], str]


def _full(stack: ExitStack, folder: Path, _sources: Sources, _far: Far) -> Made:
    (folder / "nothing").mkdir()
    node = stack.enter_context(running_node(folder, FakeRepository(folder / "nothing"), programs=CONTAINERD))
    return node, "overlayfs", None


def _peer(stack: ExitStack, folder: Path, _sources: Sources, _far: Far) -> Made:
    (folder / "nothing").mkdir()
    address, root = folder / "p.sock", folder / "peer"
    root.mkdir()
    stack.enter_context(running([STARGZ, "--address", address, "--root", root], folder / "peer.log"))
    wait_until(address.exists, "the start of stargz-snapshotter")
    settings = _PEER.format(address=address, root=root, architecture=ARCHITECTURE)
    node = running_node(folder, FakeRepository(folder / "nothing"), programs=CONTAINERD, settings=settings)
    return stack.enter_context(node), "stargz", None


def _ours(form: str, *, has_profile: bool = False) -> Callable[[ExitStack, Path, Sources, Far], Made]:
    def make(stack: ExitStack, folder: Path, sources: Sources, far: Far) -> Made:
        place = urlsplit(sources.origin)
        url = f"http://{far(place.netloc)}{place.path}"
        options = ("--frontend", "wire")
        mount = stack.enter_context(mounted(NAME, [url], sources.public_key, folder / "client", *options))
        settings = folder / "ours.toml"
        settings.write_text(f'[snapshotter]\nrootfs = "{form}"\nstart_profiles = {str(has_profile).lower()}\n')
        repository = FakeRepository(mount.path)
        node = running_node(folder, repository, "--config", str(settings), programs=CONTAINERD)
        return stack.enter_context(node), PLUGIN, mount

    return make


_MAKERS: dict[Way, Callable[[ExitStack, Path, Sources, Far], Made]] = {
    Way.FULL: _full,
    Way.PEER: _peer,
    Way.FUSE: _ours("fuse"),
    Way.EROFS: _ours("erofs"),
    Way.PROFILE: _ours("erofs", has_profile=True),
}


def transferred(start: Start) -> dict[str, int]:
    """What our mount has fetched; nothing for other ways."""
    if start.mount is None:
        return {}
    status = json.loads(json.dumps(start.mount.control("status")))
    return {"objects": status["fetched_objects"], "object_bytes": status["fetched_bytes"]}
