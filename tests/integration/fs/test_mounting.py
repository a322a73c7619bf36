"""Mounting metadata images by both ways, and what is left of a try."""

import errno
import os
from pathlib import Path

import pytest

from fs.errors import MountingError
from fs.format.tree import Node
from fs.rootfs import mounting
from fs.rootfs.erofs import build_metadata_image
from tests.support.processes import mounts_below

pytestmark = pytest.mark.root


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "image"
    file.write_bytes(build_metadata_image(Node(mode=0o40755, children={b"d": Node(mode=0o40700)}), lambda _p, _n: None))
    return file


@pytest.mark.parametrize("backing", mounting.Backing)
def test_both_ways(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backing: mounting.Backing) -> None:
    def old_kernel(*_arguments: object) -> None:
        raise OSError(errno.ENOTBLK, "Block device required")

    if backing is mounting.Backing.LOOP:
        monkeypatch.setattr(mounting, "mount", old_kernel)
    point = tmp_path / "point"
    point.mkdir()
    try:
        found = mounting.mount_image(image, point)
    except MountingError as error:
        pytest.skip(f"not on this machine: {error}")
    try:
        assert found is backing or found is mounting.Backing.LOOP
        assert os.listdir(point) == ["d"]
    finally:
        mounting.unmount(point)
    assert mounts_below(point) == []
    mounting.unmount(point)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(8192))
    (tmp_path / "point").mkdir()

    with pytest.raises(MountingError, match="EROFS"):
        mounting.mount_image(tmp_path / "file", tmp_path / "point")


def test_a_try_leaves_nothing_behind(image: Path, tmp_path: Path) -> None:
    point = tmp_path / "point"
    point.mkdir()
    names = set(os.listdir(tmp_path))

    def attempt() -> list[str]:
        mounting.mount_image(image, point)
        return os.listdir(point)

    assert mounting.in_own_namespace(attempt) == ["d"]
    assert mounts_below(tmp_path) == []
    assert os.listdir(point) == []
    assert set(os.listdir(tmp_path)) == names
