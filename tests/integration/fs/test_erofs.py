"""The kernel reads our EROFS images, and with the data below them shows the tree they were made from."""

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fs.format.tree import Node, walk
from fs.rootfs.erofs import build_metadata_image
from tests.support.processes import require_tool
from tests.support.trees import describe, differences, load

pytestmark = pytest.mark.root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    for name in ("empty", "wide", "deep/" + "/".join("d" * 40 for _ in range(30))):
        (root / name).mkdir(parents=True)
    for number in range(3000):
        (root / "wide" / f"file-{number:05}").write_text(str(number))
    (root / "first").write_text("linked")
    os.link(root / "first", root / "deep" / "second")
    (root / "link").symlink_to("deep/second")
    (root / "long").symlink_to("x" * 4000)
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(10, 70_000))
    noted = root / "noted"
    noted.write_bytes(b"n" * 100_000)
    os.setxattr(noted, "user.note", b"v" * 200)
    os.chown(noted, 70_000, 80_000)
    noted.chmod(0o4751)
    os.utime(noted, ns=(0, -1_500_000_001))
    os.setxattr(root / "wide", "trusted.mark", b"m")
    with open(os.fsencode(root) + b"/not-utf8-\xff\n", "wb"):
        pass
    (root / ("n" * 255)).touch()
    with open(root / "sparse", "wb") as stream:
        stream.truncate(1 << 36)
    return root


def loaded_with_contents(tree: Path) -> tuple[Node, dict[int, bytes]]:
    """The tree as nodes, and the contents of all files up to 64 KiB by the identity of their nodes."""
    root = load(tree)
    held = {}
    for path, node in walk(root):
        if stat.S_ISREG(node.mode) and (node.content is None or node.content.size <= 1 << 16):
            held[id(node)] = Path(os.fsdecode(os.fsencode(tree) + path)).read_bytes()
    return root, held


@contextmanager
def mounted(kind: str, source: str | Path, point: Path, options: str) -> Iterator[Path]:
    point.mkdir()
    subprocess.run(["mount", "-t", kind, "-o", options, source, point], check=True, timeout=30)
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=True, timeout=30)


def test_metadata_image_over_its_data_is_the_tree(tree: Path, tmp_path: Path) -> None:
    require_tool("mount")
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 5):
        pytest.skip("data-only lower layers need Linux 6.5")
    os.truncate(tree / "sparse", 1 << 24)  # the content is compared, too
    image = build_metadata_image(load(tree), lambda path, _: path)
    file = tmp_path / "meta.erofs"
    file.write_bytes(image)
    expected = describe(tree)
    layers = f"ro,metacopy=on,redirect_dir=on,lowerdir={tmp_path / 'meta'}::{tree}"

    with (
        mounted("erofs", file, tmp_path / "meta", "ro"),
        mounted("overlay", "overlay", tmp_path / "merged", layers) as merged,
    ):
        assert differences(expected, describe(merged)) == []


def test_an_image_that_holds_small_files_is_the_tree_without_them_below(tree: Path, tmp_path: Path) -> None:
    require_tool("mount")
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 5):
        pytest.skip("data-only lower layers need Linux 6.5")
    os.truncate(tree / "sparse", 1 << 24)
    for size in (1, 4095, 4096, 4097, 8192, 3 * 4096 + 4000, 1 << 16):  # 4000 more do not fit behind an inode
        (tree / f"size-{size}").write_bytes(os.urandom(size))
    os.setxattr(tree / "size-4095", "user.note", b"v" * 200)
    root, held = loaded_with_contents(tree)
    assert len(held) > 3000
    asked: list[bytes] = []

    def data_path(path: bytes, _: Node) -> bytes:
        asked.append(path)
        return path

    file = tmp_path / "meta.erofs"
    file.write_bytes(build_metadata_image(root, data_path, lambda node: held.get(id(node))))
    layers = f"ro,metacopy=on,redirect_dir=on,lowerdir={tmp_path / 'meta'}::{tree}"

    assert sorted(asked) == [b"/noted", b"/sparse"]
    with (
        mounted("erofs", file, tmp_path / "meta", "ro"),
        mounted("overlay", "overlay", tmp_path / "merged", layers) as merged,
    ):
        assert differences(describe(tree), describe(merged)) == []


@pytest.mark.parametrize("holds", [False, True])
def test_fsck_accepts_the_image(tree: Path, tmp_path: Path, holds: bool) -> None:
    require_tool("fsck.erofs")
    file = tmp_path / "meta.erofs"
    root, held = loaded_with_contents(tree)
    file.write_bytes(
        build_metadata_image(root, lambda path, _: path, lambda node: held.get(id(node)) if holds else None)
    )

    done = subprocess.run(["fsck.erofs", file], check=False, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stdout + done.stderr


def test_equal_trees_give_equal_images(tree: Path) -> None:
    first, second = (build_metadata_image(load(tree), lambda path, _: path) for _ in range(2))

    assert first == second
