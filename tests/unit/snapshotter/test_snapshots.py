import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import (
    HasChildrenError,
    InvalidRequestError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    WrongKindError,
)
from snapshotter.snapshots import (
    Info,
    Kind,
    LayerSource,
    Snapshot,
    SourceKind,
    chain_ids,
    check_active,
    check_free,
    check_mountable,
    check_name,
    check_parent,
    check_rebase,
    check_removable,
    sha256_digits,
    stands_on,
)

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def snapshot(name: str = "n", kind: Kind = Kind.COMMITTED, parent: str = "", source: str | None = None) -> Snapshot:
    info = Info(name=name, parent=parent, kind=kind, created_ns=1, updated_ns=1, labels={})
    return Snapshot(number=1, info=info, source=None if source is None else LayerSource.parse(source))


def test_chain_ids_are_those_of_the_image_specification() -> None:
    # printf '%s %s' sha256:aaa… sha256:bbb… | sha256sum
    second = "sha256:ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c"

    chain = chain_ids([A, B])

    assert chain == (A, second)
    assert chain_ids([A, B, A])[:2] == chain
    assert chain_ids([]) == ()


@given(st.sampled_from(SourceKind), st.binary(min_size=32, max_size=32))
def test_parse_inverts_str_of_a_source(kind: SourceKind, digest: bytes) -> None:
    source = LayerSource(kind, digest.hex())

    assert LayerSource.parse(str(source)) == source


@pytest.mark.parametrize("text", ["", "layer", "layer:", "layer:../x", "other:" + "a" * 64, "layer:" + "A" * 64])
def test_what_is_no_source_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        LayerSource.parse(text)


@given(st.text(max_size=80))
def test_only_lower_case_sha256_has_digits(text: str) -> None:
    digits = sha256_digits(text)

    assert digits is None or text == f"sha256:{digits}"


def test_parents_are_committed() -> None:
    check_parent(snapshot(), "n")
    with pytest.raises(SnapshotNotFoundError):
        check_parent(None, "n")
    for kind in (Kind.ACTIVE, Kind.VIEW):
        with pytest.raises(InvalidRequestError):
            check_parent(snapshot(kind=kind), "n")


def test_transitions() -> None:
    active = snapshot(kind=Kind.ACTIVE)

    assert check_active(active, "n") is active
    assert check_mountable(active, "n") is active
    assert check_removable(active, "n", has_children=False) is active
    with pytest.raises(WrongKindError):
        check_active(snapshot(kind=Kind.VIEW), "n")
    with pytest.raises(WrongKindError):
        check_mountable(snapshot(), "n")
    with pytest.raises(HasChildrenError, match="remove"):
        check_removable(snapshot(), "n", has_children=True)
    with pytest.raises(SnapshotExistsError):
        check_free(active)
    with pytest.raises(SnapshotNotFoundError):
        check_removable(None, "n", has_children=False)


def test_the_parent_at_commit() -> None:
    check_rebase(snapshot(kind=Kind.ACTIVE, parent="p"), snapshot("p"), "p")
    check_rebase(snapshot(kind=Kind.ACTIVE), snapshot("p"), "p")
    with pytest.raises(InvalidRequestError):
        check_rebase(snapshot(kind=Kind.ACTIVE, parent="p"), snapshot("q"), "q")
    with pytest.raises(SnapshotNotFoundError):
        check_rebase(snapshot(kind=Kind.ACTIVE), None, "p")
    with pytest.raises(WrongKindError):
        check_rebase(snapshot(kind=Kind.ACTIVE), snapshot("p", Kind.VIEW), "p")


@pytest.mark.parametrize("name", ["", "x" * 4097])
def test_names_have_bounds(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        check_name(name, role="key")


def test_what_a_layer_stands_on() -> None:
    remote = snapshot(A, source="chain-layer:" + "a" * 64)

    assert stands_on(None, None, reference_label=None)
    assert stands_on(remote, A, reference_label=None)
    assert stands_on(snapshot(f"default/4/{A}"), A, reference_label=None)
    assert stands_on(snapshot("default/4/x"), A, reference_label=A)
    assert not stands_on(None, A, reference_label=None)
    assert not stands_on(remote, None, reference_label=None)
    assert not stands_on(remote, B, reference_label=B)
    assert not stands_on(snapshot("default/4/x"), A, reference_label=None)
