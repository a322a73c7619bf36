"""Paths of the layout, records, and the order of operations."""

import json
from datetime import UTC, datetime

import pytest

from converter import placement
from converter.image_records import SourceRecord
from converter.placement import LayerDescription, Naming, NewChain, Placement
from converter.tree_digest import digest_of, items_of_tree
from fs.format.tree import Content, Node
from fs.publish.operations import MakeDirectory, PutFile, PutSymlink, Remove, Require
from registry_proxy.oci.manifest import Platform

CONFIG = "sha256:" + "c0" * 32
MANIFEST = "sha256:" + "3a" * 32
LAYER = "sha256:" + "1a" * 32
CHAIN = "sha256:" + "9c" * 32
RECORD = SourceRecord(platform="linux/amd64", resolved=MANIFEST, manifest=MANIFEST, config=CONFIG)
SOME = Content(0, None)


def test_paths() -> None:
    assert placement.layerfs_path(LAYER) == b"/.layers/1a/" + b"1a" * 32 + b"/layerfs"
    assert placement.flat_path(CONFIG) == b"/.flat/c0/" + b"c0" * 32
    assert placement.change_set_path(LAYER) == b"/.unpackd/layers/1a/" + b"1a" * 32 + b"/changeset"


def test_chain_ids_are_those_of_the_specification() -> None:
    diff_ids = ["sha256:" + digit * 64 for digit in "ab"]

    first, second = placement.chain_ids(diff_ids)

    assert first == diff_ids[0]
    assert second == "sha256:ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c"


@pytest.mark.parametrize(
    ("link", "target", "text"),
    [
        (b"/a/b/link", b"/a/c/x", b"../c/x"),
        (b"/link", b"/x", b"x"),
        (b"/a/link", b"/a/x", b"x"),
        (b"/a/b/link", b"/a/b", b"../b"),
        (b"/a/b/c/link", b"/x/y", b"../../../x/y"),
    ],
)
def test_relative_targets(link: bytes, target: bytes, text: bytes) -> None:
    assert placement.relative_target(link, target) == text


def test_public_symlink_is_as_ducc_writes_it() -> None:
    tree = b".flat/c0/" + b"c0" * 32
    assert placement.public_target(b"/registry.example/lib/x:1", CONFIG) == b"../../" + tree
    assert placement.public_target(b"/registry.example/x:1", CONFIG) == b"../" + tree


def test_source_record_is_read_back() -> None:
    assert SourceRecord.parse(RECORD.encode()) == RECORD


@pytest.mark.parametrize("stored", [b"", b"[]", b'{"version":2}', b'{"version":1}', b"\xff"])
def test_unknown_source_records_are_none(stored: bytes) -> None:
    assert SourceRecord.parse(stored) is None


def test_origins_are_unique() -> None:
    first = placement.origin_record(None, [CONFIG])
    assert first is not None
    assert json.loads(first) == {"origin": [CONFIG]}
    assert placement.origin_record(first, [CONFIG]) is None
    second = placement.origin_record(first, [CONFIG, MANIFEST])
    assert second is not None
    assert json.loads(second) == {"origin": [CONFIG, MANIFEST]}


def test_layer_record_has_duccs_keys() -> None:
    layer = LayerDescription(LAYER, "type", 10, CHAIN)

    [record] = json.loads(placement.layer_record(layer, 99, datetime(2024, 5, 6, tzinfo=UTC)))

    assert record == {
        "id": "9c" * 32,
        "created": "2024-05-06T00:00:00+00:00",
        "compressed-diff-digest": LAYER,
        "diff-digest": CHAIN,
        "diff-size": 99,
    }


def test_tree_digest_sees_every_attribute_and_links() -> None:
    def tree(uid: int = 0, gid: int = 0, mtime_ns: int = 0) -> Node:
        root = Node(mode=0o40755)
        root.children[b"a"] = Node(mode=0o100644, uid=uid, gid=gid, mtime_ns=mtime_ns)
        return root

    linked, copied = tree(), tree()
    linked.children[b"b"] = linked.children[b"a"]
    copied.children[b"b"] = Node(mode=0o100644)

    digests = {
        digest_of(items_of_tree(root)) for root in (tree(), tree(uid=1), tree(gid=1), tree(mtime_ns=1), linked, copied)
    }

    assert len(digests) == 6
    assert digest_of(items_of_tree(tree())) == digest_of(items_of_tree(tree()))


def test_images_are_complete_before_their_name() -> None:
    made = placement.image_operations(
        Placement(
            config=CONFIG,
            manifest=MANIFEST,
            layers=[LAYER],
            chains=[CHAIN],
            new_layers={},
            new_chains={CHAIN: NewChain(layer=LAYER, parent=None, own_layer=None)},
            rootfs=None,
            flat=None,
            flat_chain=CHAIN,
            root_images={CHAIN: SOME},
            image_files={b"manifest.json": SOME},
        )
    )

    nested = [operation.path for operation in made if isinstance(operation, MakeDirectory) and operation.nested]
    assert {b"/.layers", b"/.flat", b"/.flat/c0", b"/.unpackd/chains/9c", b"/.unpackd/images/3a"} <= set(nested)
    links = {operation.path: operation.target for operation in made if isinstance(operation, PutSymlink)}
    chain = b"/.unpackd/chains/9c/" + b"9c" * 32
    assert links[chain + b"/layer"] == b"../../../../.layers/1a/" + b"1a" * 32 + b"/layerfs"
    assert links[chain + b"/flat"] == b"../../../rootfs/c0/" + b"c0" * 32
    assert PutFile(chain + b"/rootfs.erofs", SOME) in made
    required = {operation.path for operation in made if isinstance(operation, Require)}
    trees = {b"/.flat/c0/" + b"c0" * 32, b"/.unpackd/rootfs/c0/" + b"c0" * 32}
    assert trees | {chain + b"/layer", chain + b"/flat"} <= required


def naming(**fields: object) -> Naming:
    given: dict[str, object] = {"name": "r.example/x:1", "config": CONFIG, **fields}
    return Naming(ducc_manifest=SOME, record=SOME, history=SOME, history_before=None, **given)  # type: ignore[arg-type]


def test_public_symlink_comes_last() -> None:
    made = placement.naming_operations(naming())

    assert made[-1] == PutSymlink(b"/r.example/x:1", b"../.flat/c0/" + b"c0" * 32)
    assert PutFile(b"/.metadata/r.example/x:1/source.json", SOME) in made


def test_several_platforms_have_links_of_their_own_and_the_name_varies() -> None:
    made = placement.naming_operations(
        naming(
            platforms={"amd64": CONFIG, "arm64:v8": MANIFEST}, default="amd64", stale=[b"/.multiarch/386/r.example/x:1"]
        )
    )

    links = {operation.path: operation.target for operation in made if isinstance(operation, PutSymlink)}
    assert links[b"/.multiarch/amd64/r.example/x:1"] == b"../../../.flat/c0/" + b"c0" * 32
    assert links[b"/.multiarch/arm64:v8/r.example/x:1"] == b"../../../.flat/3a/" + b"3a" * 32
    assert (links[b"/.multiarch/aarch64"], links[b"/.multiarch/x86_64"]) == (b"arm64:v8", b"amd64")
    target = b"../.multiarch/$(CVMFS_ARCH:-amd64)/r.example/x:1"
    assert made[-1] == PutSymlink(b"/r.example/x:1", target, expands=True)
    assert Remove(b"/.multiarch/386/r.example/x:1") in made


@pytest.mark.parametrize(
    ("platform", "directory"),
    [
        ("linux/amd64", "amd64"),
        ("linux/amd64/v3", "amd64:v3"),
        ("linux/arm64", "arm64:v8"),
        ("linux/arm64/v8", "arm64:v8"),
        ("linux/arm/v6", "arm:v6"),
        ("linux/s390x", "s390x"),
    ],
)
def test_directories_of_platforms(platform: str, directory: str) -> None:
    assert placement.platform_directory(Platform.parse(platform)) == directory
