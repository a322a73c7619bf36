import pytest

from snapshotter.errors import InvalidRequestError
from snapshotter.labels import (
    CRI_LAYER_DIGEST,
    GID_MAPPING,
    SNAPSHOT_REF,
    UID_MAPPING,
    RootOwner,
    mapped_root,
    stored_labels,
    updated_labels,
    wanted_layer,
)

CURRENT = {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("given", "paths", "expected"),
    [
        ({"c": "3"}, [], {"c": "3"}),
        ({"c": "3", "d": ""}, ["labels"], {"c": "3"}),
        ({"a": "9", "b": "9"}, ["labels.a"], {"a": "9", "b": "2"}),
        ({}, ["labels.a"], {"b": "2"}),
        ({"a": ""}, ["labels.a"], {"b": "2"}),
        ({"x.y/z": "1"}, ["labels.x.y/z"], {"a": "1", "b": "2", "x.y/z": "1"}),
        ({"c": "3"}, ["labels", "labels.d"], {"c": "3"}),
    ],
)
def test_update_masks(given: dict[str, str], paths: list[str], expected: dict[str, str]) -> None:
    assert updated_labels(CURRENT, given, paths) == expected


@pytest.mark.parametrize("path", ["parent", "kind", "labels.", "label", ""])
def test_other_paths_are_refused(path: str) -> None:
    with pytest.raises(InvalidRequestError):
        updated_labels(CURRENT, {}, ["labels.a", path])


def test_large_labels_are_refused() -> None:
    assert stored_labels({"k": "v" * 4095}) == {"k": "v" * 4095}
    with pytest.raises(InvalidRequestError):
        stored_labels({"k": "v" * 4096})
    with pytest.raises(InvalidRequestError):
        stored_labels({str(number): "" for number in range(1025)})


def test_only_digests_are_wanted() -> None:
    digits = "ab" * 32
    good = wanted_layer({SNAPSHOT_REF: f"sha256:{digits}", CRI_LAYER_DIGEST: "sha256:../x"})

    assert good is not None
    assert (good.chain_digits, good.layer_digits) == (digits, None)
    for reference in ("", digits, f"sha256:{digits}/", f"sha256:{digits.upper()}", f" sha256:{digits}"):
        assert wanted_layer({SNAPSHOT_REF: reference}) is None


def test_mapped_root() -> None:
    mapping = {UID_MAPPING: "0:1000:10,10:5000:5", GID_MAPPING: "5:1:1,0:2000:10"}

    assert mapped_root(mapping) == RootOwner(uid=1000, gid=2000)
    assert mapped_root({}) is None


@pytest.mark.parametrize("value", ["", "0:1", "0:1:0", "1:1:1", "0:-1:1", "0:4294967295:2", "a:b:c", "0:1:1,"])
def test_bad_mappings_are_refused(value: str) -> None:
    with pytest.raises(InvalidRequestError):
        mapped_root({UID_MAPPING: value, GID_MAPPING: "0:0:1"})
