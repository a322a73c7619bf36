"""Kinds, names, codes, labels, filters: what containerd relies on, over the real socket."""

import threading
import time
from collections.abc import Callable

import grpc
import pytest

from snapshotter._proto import snapshots_pb2
from tests.support.snapshotter import SnapshotsClient

Code = grpc.StatusCode


def code_of(call: Callable[[], object]) -> grpc.StatusCode | None:
    try:
        call()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return None


def test_a_name_is_used_once_whatever_the_kind(client: SnapshotsClient, k: str) -> None:
    client.prepare(f"{k}a")
    client.view(f"{k}v")
    client.committed(f"{k}c")

    for name in ("a", "v", "c"):
        assert code_of(lambda name=name: client.prepare(k + name)) is Code.ALREADY_EXISTS
        assert code_of(lambda name=name: client.view(k + name)) is Code.ALREADY_EXISTS
        assert code_of(lambda name=name: client.commit(k + name, f"{k}a")) is Code.ALREADY_EXISTS
    assert client.stat(f"{k}a").kind == snapshots_pb2.ACTIVE


def test_what_is_unknown_is_not_found(client: SnapshotsClient, k: str) -> None:
    nothing = f"{k}nothing"
    calls: list[Callable[[], object]] = [
        lambda: client.stat(nothing),
        lambda: client.mounts(nothing),
        lambda: client.usage(nothing),
        lambda: client.remove(nothing),
        lambda: client.commit(f"{k}name", nothing),
        lambda: client.update(nothing, {}),
        lambda: client.prepare(f"{k}x", nothing),
        lambda: client.view(f"{k}x", nothing),
    ]
    assert [code_of(call) for call in calls] == [Code.NOT_FOUND] * len(calls)
    assert code_of(lambda: client.stat(f"{k}x")) is Code.NOT_FOUND


def test_what_a_kind_does_not_have_is_a_failed_precondition(client: SnapshotsClient, k: str) -> None:
    client.committed(f"{k}base")
    client.prepare(f"{k}child", f"{k}base")
    client.view(f"{k}view", f"{k}base")

    assert code_of(lambda: client.mounts(f"{k}base")) is Code.FAILED_PRECONDITION
    assert code_of(lambda: client.commit(f"{k}n", f"{k}view")) is Code.FAILED_PRECONDITION
    assert code_of(lambda: client.commit(f"{k}n", f"{k}base")) is Code.FAILED_PRECONDITION
    with pytest.raises(grpc.RpcError) as caught:
        client.remove(f"{k}base")
    assert caught.value.code() is Code.FAILED_PRECONDITION
    assert "remove" in caught.value.details()


def test_only_committed_snapshots_are_parents(client: SnapshotsClient, k: str) -> None:
    client.prepare(f"{k}a")
    client.view(f"{k}v")

    for parent in ("a", "v"):
        assert code_of(lambda parent=parent: client.prepare(f"{k}x", k + parent)) is Code.INVALID_ARGUMENT


def test_stat_tells_kind_parent_and_times(client: SnapshotsClient, k: str) -> None:
    before = time.time_ns()
    client.committed(f"{k}base")
    client.prepare(f"{k}a", f"{k}base", {"l": "1"})
    after = time.time_ns()

    info = client.stat(f"{k}a")

    assert (info.name, info.parent, info.kind) == (f"{k}a", f"{k}base", snapshots_pb2.ACTIVE)
    assert before <= info.created_at.ToNanoseconds() <= after
    assert info.updated_at == info.created_at
    assert dict(info.labels) == {"l": "1"}


def test_the_key_is_gone_after_commit_and_labels_are_replaced(client: SnapshotsClient, k: str) -> None:
    client.prepare(f"{k}a", labels={"old": "1"})
    prepared = client.stat(f"{k}a")

    client.commit(f"{k}c", f"{k}a", labels={"new": "2"})

    info = client.stat(f"{k}c")
    assert dict(info.labels) == {"new": "2"}
    assert info.kind == snapshots_pb2.COMMITTED
    assert info.parent == ""
    assert info.created_at.ToNanoseconds() > prepared.created_at.ToNanoseconds()
    assert code_of(lambda: client.stat(f"{k}a")) is Code.NOT_FOUND
    client.prepare(f"{k}child", f"{k}c")
    assert dict(client.stat(f"{k}child").labels) == {}


def test_the_parent_given_at_commit(client: SnapshotsClient, k: str) -> None:
    for name in ("base", "other"):
        client.committed(k + name)
    for name, parent in (("same", f"{k}base"), ("wrong", f"{k}base"), ("none", ""), ("lost", ""), ("bad", "")):
        client.prepare(k + name, parent)

    client.commit(f"{k}1", f"{k}same", parent=f"{k}base")
    client.commit(f"{k}2", f"{k}none", parent=f"{k}base")

    assert client.stat(f"{k}2").parent == f"{k}base"
    assert code_of(lambda: client.commit(f"{k}3", f"{k}wrong", parent=f"{k}other")) is Code.INVALID_ARGUMENT
    assert code_of(lambda: client.commit(f"{k}3", f"{k}lost", parent=f"{k}absent")) is Code.NOT_FOUND
    assert code_of(lambda: client.commit(f"{k}3", f"{k}bad", parent=f"{k}lost")) is Code.FAILED_PRECONDITION
    assert client.stat(f"{k}bad").kind == snapshots_pb2.ACTIVE


def test_names_are_free_at_once_after_remove(client: SnapshotsClient, k: str) -> None:
    client.committed(f"{k}c")
    client.prepare(f"{k}reuse", f"{k}c")
    client.remove(f"{k}reuse")
    client.view(f"{k}reuse", f"{k}c")
    client.remove(f"{k}reuse")
    client.prepare(f"{k}reuse")
    client.remove(f"{k}c")
    client.commit(f"{k}c", f"{k}reuse")

    assert client.stat(f"{k}c").parent == ""


def test_the_middle_of_a_chain_stays(client: SnapshotsClient, k: str) -> None:
    client.committed(f"{k}1")
    client.committed(f"{k}2", f"{k}1")
    client.committed(f"{k}3", f"{k}2")

    assert code_of(lambda: client.remove(f"{k}2")) is Code.FAILED_PRECONDITION
    for name in ("3", "2", "1"):
        client.remove(k + name)


def test_update_changes_labels_only(client: SnapshotsClient, k: str) -> None:
    client.prepare(f"{k}a", labels={"l1": "v1", "l2": "v2", "l3": "v3"})
    first = client.stat(f"{k}a")

    replaced = client.update(f"{k}a", {"l1": "w1", "l2": "w2"}, parent="ignored")
    masked = client.update(f"{k}a", {"l1": "x1", "a.b/c": "y"}, "labels.l1", "labels.l2", "labels.a.b/c")
    whole = client.update(f"{k}a", {"only": "1", "empty": ""}, "labels")

    assert dict(replaced.labels) == {"l1": "w1", "l2": "w2"}
    assert dict(masked.labels) == {"l1": "x1", "a.b/c": "y"}
    assert dict(whole.labels) == {"only": "1"}
    assert (whole.created_at, whole.kind, whole.parent) == (first.created_at, first.kind, first.parent)
    assert whole.updated_at.ToNanoseconds() > first.updated_at.ToNanoseconds()
    assert whole == client.stat(f"{k}a")


@pytest.mark.parametrize("path", ["parent", "kind", "name", "created_at", "labels.", "labelsx", ""])
def test_other_fields_cannot_be_updated(client: SnapshotsClient, k: str, path: str) -> None:
    client.prepare(f"{k}a", labels={"l": "1"})
    before = client.stat(f"{k}a")

    assert code_of(lambda: client.update(f"{k}a", {"l": "2"}, "labels.l", path)) is Code.INVALID_ARGUMENT
    assert client.stat(f"{k}a") == before


def test_list_takes_filters_and_gives_what_stat_gives(client: SnapshotsClient, k: str) -> None:
    label = f"containerd.io/{k.replace('/', '-')}"
    client.committed(f"{k}c", labels={label: "1"})
    client.prepare(f"{k}a", f"{k}c", {label: "1", "l": "2"})
    client.view(f"{k}v", f"{k}c", {label: "1"})
    client.prepare(f"{k}other")
    mine = f'labels."{label}"==1'

    def names(*filters: str) -> list[str]:
        return sorted(info.name.removeprefix(k) for info in client.list(*filters))

    assert names(mine) == ["a", "c", "v"]
    assert names(f"kind==active,{mine}") == ["a"]
    assert names(f"kind==view,{mine}") == ["v"]
    assert names(f"kind==committed,{mine}") == ["c"]
    assert names(f'name=="{k}a"', f'name=="{k}v"') == ["a", "v"]
    assert names(f'parent=="{k}c"') == ["a", "v"]
    assert names(f'parent!="",{mine}') == ["a", "v"]
    assert names(f"{mine},labels.l") == ["a"]
    assert names(f"{mine},labels.l==2") == ["a"]
    assert names(f"{mine},name~=/a$/") == ["a"]
    for info in client.list(mine):
        assert info == client.stat(info.name)


@pytest.mark.parametrize("text", ["name==", "==x", "name==a,,", 'name=="a', "name~=/(/", "name ~ x", "name=a"])
def test_a_filter_that_is_none_is_an_invalid_argument(client: SnapshotsClient, text: str) -> None:
    assert code_of(lambda: client.list(text)) is Code.INVALID_ARGUMENT


def test_many_entries_are_listed_completely_and_stat_works_meanwhile(client: SnapshotsClient, k: str) -> None:
    names = {f"{k}{number}" for number in range(257)}
    for name in names:
        client.prepare(name, labels={"many": "1"})

    listed = set()
    for block in client.stub.List(snapshots_pb2.ListSnapshotsRequest(filters=["labels.many==1"])):
        assert len(block.info) <= 100
        for info in block.info:
            assert client.stat(info.name) == info
            listed.add(info.name)

    assert listed == names


def test_of_racing_prepares_one_wins(client: SnapshotsClient, k: str) -> None:
    codes: list[grpc.StatusCode | None] = []
    threads = [
        threading.Thread(target=lambda: codes.append(code_of(lambda: client.prepare(f"{k}race")))) for _ in range(32)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert codes.count(None) == 1
    assert codes.count(Code.ALREADY_EXISTS) == 31


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("x" * 100, "y" * 4000),
        ("containerd.io/snapshot/uidmapping", "0:nonsense"),
        ("containerd.io/snapshot/gidmapping", "1:1:1"),
    ],
)
def test_bad_labels_are_refused_and_nothing_remains(client: SnapshotsClient, k: str, label: str, value: str) -> None:
    assert code_of(lambda: client.prepare(f"{k}a", labels={label: value})) is Code.INVALID_ARGUMENT
    assert code_of(lambda: client.stat(f"{k}a")) is Code.NOT_FOUND
    client.prepare(f"{k}a")


def test_an_empty_key_is_refused(client: SnapshotsClient) -> None:
    assert code_of(lambda: client.prepare("")) is Code.INVALID_ARGUMENT


def test_odd_keys_are_only_names(client: SnapshotsClient, k: str) -> None:
    for name in ("../../../../etc/x", "/absolute", "with blank", "ünïcode", "new\nline", "x" * 3000):
        client.prepare(k + name)
        assert client.stat(k + name).name == k + name


def test_cleanup_answers(client: SnapshotsClient) -> None:
    client.cleanup()
