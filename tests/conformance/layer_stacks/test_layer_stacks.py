"""Random stacks of layers come out of a mounted repository as ``umoci unpack`` and containerd's overlayfs show them.

``LAYER_STACKS`` says how many stacks are compared (``make layer-stacks``: thousands). What fails names its seed;
``random_stack(seed)`` is that stack.
"""

import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import grpc
import pytest

from converter import placement
from converter.conversion import ConversionRequest
from converter.pipeline import convert_image
from converter.sources import parse_source
from fs.publish.repository import Repository
from fs.runtime.errors import UnpackdError
from tests.support.engine import Engine, running_engine
from tests.support.flaky_origin import flaky_origin
from tests.support.images import Layout, make_layout, tar
from tests.support.mounts import mounted
from tests.support.processes import require_root, require_tool
from tests.support.snapshotter import service_folder
from tests.support.stacks import random_stack
from tests.support.trees import Described, describe, differences

COUNT = int(os.environ.get("LAYER_STACKS", "512"))
MOST_LINES = 200
AT_ONCE = 128  # stacks that are on the disk at the same time
CONVERSIONS_AT_ONCE = 8
NAME = "stacks.test"
_TICK_NS = 10_000_000  # files are stamped by a coarser clock
Tree = dict[bytes, Described]

pytestmark = [pytest.mark.root, pytest.mark.timeout(240 + 4 * COUNT)]


@dataclass(slots=True)
class Stack:
    """One stack, and what became of it everywhere."""

    name: str
    layout: Layout
    tars: list[bytes]
    rootfs_path: str = ""
    public_path: str = ""
    refusal: str = ""
    umoci: Tree | None = None
    containerd: Tree | None = None
    clock_ns: tuple[int, int] = (0, 0)  # when the others unpacked it


class House:
    """A repository, a containerd, and a folder of their own for each batch of stacks."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        self.folder = folder
        self._engine = engine
        self._repository = Repository.create(NAME, str(folder / "storage"), folder / "keys", durable=False)

    def unpack(self, stacks: list[Stack]) -> None:
        """Let everybody unpack *stacks*."""
        before = time.time_ns() - _TICK_NS
        with ThreadPoolExecutor(2) as others:
            waiting = [others.submit(self._by_umoci, stack) for stack in stacks]
            waiting += [others.submit(self._by_containerd, stack) for stack in stacks]
            anyio.run(self._all_by_us, stacks)
            for one in waiting:
                one.result()
        for stack in stacks:
            stack.clock_ns = (before, time.time_ns())

    def compare(self, stacks: list[Stack], compare: Callable[[Stack, Tree], list[str]]) -> list[str]:
        """What *compare* has to say of each tree that a mount shows."""
        key = self.folder / "keys" / f"{NAME}.pub"
        found = []
        with (
            flaky_origin(self.folder / "storage") as origin,
            mounted(NAME, [origin.url], key, self.folder / "client") as mount,
        ):
            for stack in stacks:
                for path in {stack.rootfs_path, stack.public_path} - {""}:
                    lines = compare(stack, describe((mount.path / path.lstrip("/")).resolve()))
                    found += [f"{stack.name}, {path}: {line}" for line in lines]
        return found

    async def _all_by_us(self, stacks: list[Stack]) -> None:
        limiter = anyio.CapacityLimiter(CONVERSIONS_AT_ONCE)  # several share a commit
        async with anyio.create_task_group() as tasks:
            for stack in stacks:
                tasks.start_soon(self._by_us, stack, limiter)

    async def _by_us(self, stack: Stack, limiter: anyio.CapacityLimiter) -> None:
        request = ConversionRequest(source=parse_source(stack.layout.source), name=f"r.test/stacks:{stack.name}")
        try:
            async with limiter:
                result = await convert_image(request, self._repository)
        except UnpackdError as error:
            stack.refusal = str(error)
            return
        stack.public_path = result.public_path
        stack.rootfs_path = placement.rootfs_path(result.config_digest).decode()

    def _by_umoci(self, stack: Stack) -> None:
        bundle = self.folder / "bundles" / stack.name
        command = ["umoci", "unpack", "--image", f"{stack.layout.path}:{stack.layout.tag}", bundle]
        if subprocess.run(command, check=False, capture_output=True, timeout=60).returncode == 0:
            stack.umoci = describe(bundle / "rootfs")
        shutil.rmtree(bundle)

    def _by_containerd(self, stack: Stack) -> None:
        try:
            with self._engine.mounted(stack.name, stack.tars) as root:
                stack.containerd = describe(root)
        except grpc.RpcError as error:
            stack.refusal = f"containerd: {error}"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    require_root()
    require_tool("umoci", "containerd", "fusermount3")
    with service_folder() as folder, ExitStack() as blocks:
        # in memory, where containerd's syncs cost nothing; attributes of users need Linux 6.6 there
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True, timeout=30)
        try:
            (folder / "probe").touch()
            os.setxattr(folder / "probe", "user.probe", b"x")
        except OSError:
            subprocess.run(["umount", folder], check=True, timeout=30)
        for name in ("keys", "bundles", "engine", "layouts"):
            (folder / name).mkdir()
        yield House(folder, blocks.enter_context(running_engine(folder / "engine")))


def batches(house: House, count: int) -> Iterator[list[Stack]]:
    """Stacks in groups that fit on the disk."""
    seeds = range(count)
    for start in seeds[::AT_ONCE]:
        stacks = []
        for seed in seeds[start : start + AT_ONCE]:
            name = f"stack-{seed}"
            layers = random_stack(seed)
            layout = make_layout(house.folder / "layouts" / name, layers)
            stacks.append(Stack(name, layout, [tar(members) for members in layers]))
        house.unpack(stacks)
        yield stacks
        shutil.rmtree(house.folder / "layouts")


def as_umoci(stack: Stack, found: Tree) -> list[str]:
    """How *found* differs from umoci's tree."""
    expected = without_the_clock(stack.umoci or {}, found, stack)
    return [f"umoci: {line}" for line in differences(expected, found)]


def as_containerd(stack: Stack, found: Tree) -> list[str]:
    """How *found* differs from the tree that overlayfs shows, as far as that can be the image.

    It shows link counts that include names which upper layers removed, and none of directories; containerd takes no
    notice of entries for the root, and cuts times before 1970 of everything but directories.
    """
    expected = without_the_clock(stack.containerd or {}, found, stack)
    theirs, ours = (
        {path: replace(one, nlink=0, mtime_ns=max(one.mtime_ns, 0)) for path, one in tree.items() if path}
        for tree in (expected, found)
    )
    return [f"containerd: {line}" for line in differences(theirs, ours)]


def without_the_clock(expected: Tree, found: Tree, stack: Stack) -> Tree:
    """*expected*, with the times of *found* where the clock's was taken for a directory."""
    first, last = stack.clock_ns
    return {
        path: replace(one, mtime_ns=found[path].mtime_ns)
        if first <= one.mtime_ns <= last and stat.S_ISDIR(one.mode) and path in found
        else one
        for path, one in expected.items()
    }


def test_stacks_as_builds_write_them_are_what_umoci_and_containerd_make_of_them(house: House) -> None:
    compared = entries = 0
    lines: list[str] = []
    for stacks in batches(house, COUNT):
        lines += [f"{stack.name}: {stack.refusal}" for stack in stacks if stack.refusal]
        lines += [f"{stack.name}: umoci refuses it" for stack in stacks if stack.umoci is None]
        lines += house.compare(stacks, lambda stack, found: [*as_umoci(stack, found), *as_containerd(stack, found)])
        compared += len(stacks)
        entries += sum(len(stack.umoci or {}) for stack in stacks)
        assert not lines, "\n".join(lines[:MOST_LINES])
    print(f"{compared} stacks with {entries} entries in the end compared with umoci and containerd")
    assert compared == COUNT
