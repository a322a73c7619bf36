"""What starts read is put into the metadata image, and taken out again."""

import json
from pathlib import Path

import anyio
import pytest

from converter import inventory
from converter.conversion import ConversionRequest, ConversionResult
from converter.image_records import LayerRecord
from converter.image_trees import root_image, stored_tree
from converter.pipeline import convert_image
from converter.placement import (
    chain_ids,
    image_start_profile_path,
    root_image_path,
    rootfs_path,
    start_profile_path,
)
from converter.sources import parse_source
from converter.start_profiles import publish_profile, published_profile, remove_profile
from fs.client.profile import Read, parse_profile, profile_document
from fs.publish.repository import Repository
from fs.rootfs.erofs import LARGEST_HELD_BYTES
from tests.support.images import Layout, Member, directory, hardlink, make_layout

LIMIT_BYTES = 1 << 24
BASE = [directory("etc"), Member("etc/os-release", b"ID=replaced\n"), Member("etc/unread", b"nobody reads this")]
APP = [
    Member("app", b"#!/bin/sh\n", mode=0o4755),
    hardlink("etc/app", "app"),
    Member("etc/os-release", b"ID=test\n"),
    Member("large", bytes(range(256)) * 1024),
    Member("empty"),
]


class Converted:
    """An image in a repository of its own."""

    def __init__(self, work: Path, layers: list[list[Member]]) -> None:
        keys = work / "keys"
        keys.mkdir()
        self.repository = Repository.create("images.test", str(work / "storage"), keys, durable=False)
        self.layout = make_layout(work / "layout", layers)
        self.result = self.convert(self.layout)
        self.rootfs = rootfs_path(self.result.config_digest)
        self.layers = self._layers()
        self.chain = chain_ids([layer.diff_id for layer in self.layers])[-1]

    def convert(self, layout: Layout) -> ConversionResult:
        async def run() -> ConversionResult:
            return await convert_image(ConversionRequest(source=parse_source(layout.source)), self.repository)

        return anyio.run(run)

    def _layers(self) -> tuple[LayerRecord, ...]:
        known = inventory.provenance(self.repository.view(), self.result.manifest_digest)
        assert known is not None
        return known.layers

    def image(self) -> bytes:
        return self.repository.view().read(root_image_path(self.chain), LIMIT_BYTES)

    def publish(self, *names: bytes) -> tuple[int, int]:
        reads = [Read(root_image_path(self.chain)), *(Read(self.rootfs + name) for name in names)]
        document = profile_document("images.test", 1, reads)
        return publish_profile(self.repository, self.layers, json.dumps(document).encode())

    def profile(self) -> list[bytes]:
        reads = published_profile(self.repository.view(), self.chain)
        assert reads is not None
        return [read.path.removeprefix(self.rootfs) for read in reads]

    def left(self) -> list[bytes]:
        text = self.repository.view().read(image_start_profile_path(self.chain), LIMIT_BYTES)
        return [read.path.removeprefix(self.rootfs) for read in parse_profile(text)]


@pytest.fixture
def converted(tmp_path: Path) -> Converted:
    return Converted(tmp_path, [BASE, APP])


def test_small_files_of_a_profile_are_in_the_image_and_the_others_in_the_shorter_profile(converted: Converted) -> None:
    own, before = root_image_path(converted.chain), converted.image()
    count, _ = converted.publish(b"/etc/app", b"/etc/os-release", b"/large", b"/empty", b"/gone")

    image = converted.image()
    assert (image.count(b"#!/bin/sh\n"), image.count(b"ID=test\n"), image.count(b"nobody reads this")) == (1, 1, 0)
    assert b"ID=replaced" not in image
    assert converted.rootfs + b"/app" not in image, "its content is in the image"
    assert converted.rootfs + b"/large" in image
    assert converted.rootfs + b"/etc/unread" in image
    assert len(image) < len(before) + LARGEST_HELD_BYTES
    assert converted.left() == [own, b"/large", b"/empty", b"/gone"]
    assert converted.profile() == [own, b"/etc/app", b"/etc/os-release", b"/large", b"/empty", b"/gone"]
    assert count == len(converted.profile())


def test_what_is_held_stays_when_a_start_that_could_not_see_it_is_recorded(converted: Converted) -> None:
    converted.publish(b"/app")
    converted.publish(b"/large", b"/etc/os-release")

    assert sorted(converted.profile()) == sorted(
        [root_image_path(converted.chain), b"/app", b"/large", b"/etc/os-release"]
    )
    assert converted.image().count(b"#!/bin/sh\n") == 1


def test_without_its_profile_an_image_is_what_it_was(converted: Converted) -> None:
    before = converted.image()
    converted.publish(b"/app", b"/large")
    assert converted.image() != before

    remove_profile(converted.repository, converted.layers)

    view = converted.repository.view()
    assert converted.image() == before
    assert published_profile(view, converted.chain) is None
    assert view.lookup(image_start_profile_path(converted.chain)) is None


def test_a_profile_of_large_files_leaves_the_image_alone(converted: Converted) -> None:
    before = converted.image()
    converted.publish(b"/large")
    assert converted.image() == before
    assert converted.repository.view().lookup(image_start_profile_path(converted.chain)) is None
    remove_profile(converted.repository, converted.layers)
    assert converted.repository.view().lookup(start_profile_path(converted.chain)) is None


def test_the_tree_that_change_sets_make_is_the_one_that_was_converted(converted: Converted) -> None:
    tree = stored_tree(converted.repository.view(), [layer.digest for layer in converted.layers])
    assert root_image(tree, converted.rootfs) == converted.image()


def test_an_image_without_metadata_image_has_a_profile_all_the_same(tmp_path: Path) -> None:
    odd = Member("odd", b"x", pax={"SCHILY.xattr.system.strange": "1"})
    converted = Converted(tmp_path, [[odd]])
    assert converted.publish(b"/odd")[0] == len(converted.profile())
    assert converted.repository.view().lookup(root_image_path(converted.chain)) is None


def test_converting_again_keeps_what_is_held(converted: Converted, tmp_path: Path) -> None:
    converted.publish(b"/app")
    held = converted.image()
    converted.convert(make_layout(tmp_path / "other", [BASE, APP], settings={"Cmd": ["/app"]}))
    assert converted.image() == held
