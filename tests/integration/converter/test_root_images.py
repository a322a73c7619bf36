"""The metadata images of root file systems that conversions publish."""

import json
from pathlib import Path

import anyio
import pytest

from converter.conversion import ConversionRequest, ConversionResult
from converter.pipeline import convert_image
from converter.placement import chain_ids, root_image_path, rootfs_path
from converter.sources import parse_source
from fs.publish.repository import Repository
from tests.support.images import Layout, Member, directory, hardlink, make_layout, symlink

LIMIT_BYTES = 1 << 24
BASE = [directory("etc"), Member("etc/os-release", b"ID=test\n"), symlink("lib", "usr/lib"), directory("usr/lib")]
APP = [Member("app", b"#!/bin/sh\n", mode=0o4755), hardlink("etc/app", "app"), Member("empty")]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


def repository(storage: Path, keys: Path) -> Repository:
    return Repository.create("images.test", str(storage), keys, durable=False)


def convert(target: Repository, layout: Layout) -> ConversionResult:
    async def run() -> ConversionResult:
        return await convert_image(ConversionRequest(source=parse_source(layout.source)), target)

    return anyio.run(run)


def top_of(layout: Layout) -> str:
    return chain_ids(json.loads(layout.config)["rootfs"]["diff_ids"])[-1]


def image(target: Repository, layout: Layout) -> bytes:
    return target.view().read(root_image_path(top_of(layout)), LIMIT_BYTES)


def test_the_image_names_the_data_of_every_file_with_data(tmp_path: Path, keys: Path) -> None:
    target = repository(tmp_path / "storage", keys)
    layout = make_layout(tmp_path / "layout", [BASE, APP])

    rootfs = rootfs_path(convert(target, layout).config_digest)

    found = image(target, layout)
    assert found[1024:1028] == bytes.fromhex("e2e1f5e0")
    assert (found.count(rootfs + b"/app"), found.count(rootfs + b"/etc/os-release")) == (1, 1)
    assert rootfs + b"/empty" not in found
    assert rootfs + b"/etc/app" not in found, "a hard link is one inode"


def test_the_same_image_gives_the_same_bytes(tmp_path: Path, keys: Path) -> None:
    layout = make_layout(tmp_path / "layout", [BASE, APP])
    images = []
    for name in ("one", "two"):
        target = repository(tmp_path / name, keys)
        convert(target, layout)
        images.append(image(target, layout))

    assert images[0] == images[1]


def test_images_with_the_same_layers_share_it(tmp_path: Path, keys: Path) -> None:
    target = repository(tmp_path / "storage", keys)
    first = make_layout(tmp_path / "first", [BASE, APP])
    convert(target, first)
    before = image(target, first)
    second = make_layout(tmp_path / "second", [BASE, APP], settings={"Cmd": ["/app"]})

    result = convert(target, second)

    assert top_of(second) == top_of(first)
    assert second.config != first.config
    assert image(target, second) == before
    assert not result.warnings


def test_what_erofs_cannot_hold_is_published_without_it(tmp_path: Path, keys: Path) -> None:
    target = repository(tmp_path / "storage", keys)
    odd = Member("odd", b"x", pax={"SCHILY.xattr.system.strange": "1"})
    layout = make_layout(tmp_path / "layout", [[odd]])

    result = convert(target, layout)

    assert target.view().lookup(root_image_path(top_of(layout))) is None
    assert target.view().lookup(result.flat_path.encode() + b"/odd") is not None
    assert any("metadata image" in warning for warning in result.warnings)
