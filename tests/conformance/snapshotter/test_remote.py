"""The remote-snapshot protocol over a directory that is laid out like a repository."""

import hashlib
import json
import os
import urllib.request
from pathlib import Path

import grpc
import pytest

from snapshotter._proto import snapshots_pb2
from snapshotter.snapshots import chain_ids
from tests.support.processes import free_port
from tests.support.snapshotter import REF, FakeRepository, Service, SnapshotsClient

Code = grpc.StatusCode
LAYER = "containerd.io/snapshot/cri.layer-digest"


def digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def ask(client: SnapshotsClient, chain: str, parent: str, key: str, **labels: str) -> bool:
    """Prepare a layer as a puller does: True if it is served, False if it has to be unpacked."""
    try:
        client.prepare(key, parent, {REF: chain, **labels})
    except grpc.RpcError as error:
        if error.code() is not Code.ALREADY_EXISTS:
            raise
        return True
    return False


def target(client: SnapshotsClient, chain: str, parent: str) -> str:
    """The name of the snapshot that containerd finds after a served layer."""
    found = client.list(f'labels."{REF}"=={chain},parent=="{parent}"')
    (info,) = [info for info in found if info.kind == snapshots_pb2.COMMITTED]
    assert info == client.stat(info.name)
    name: str = info.name
    return name


def test_a_chain_is_served_and_stacked(client: SnapshotsClient, repository: FakeRepository, k: str) -> None:
    chains = repository.add_chain([digest(f"{k}{n}") for n in range(3)], [{"a": "1"}, {"b": "2"}, {"c": "3"}])
    parent = ""
    for number, chain in enumerate(chains):
        assert ask(client, chain, parent, f"{k}extract-{number}")
        with pytest.raises(grpc.RpcError) as caught:
            client.stat(f"{k}extract-{number}")
        assert caught.value.code() is Code.NOT_FOUND
        parent = target(client, chain, parent)
        assert parent == chain

    (mounted,) = client.prepare(f"{k}container", parent)

    (lower,) = [option for option in mounted.options if option.startswith("lowerdir=")]
    layers = [Path(path) for path in lower.removeprefix("lowerdir=").split(":")]
    assert [sorted(os.listdir(path)) for path in layers] == [["c"], ["b"], ["a"]]
    assert client.mounts(f"{k}container") == [mounted]
    usage = client.usage(parent)
    assert (usage.size, usage.inodes) == (0, 0)


def test_a_flat_tree_is_the_only_lower_layer(client: SnapshotsClient, repository: FakeRepository, k: str) -> None:
    chains = repository.add_chain([digest(f"{k}{n}") for n in range(3)], [{"a": "1"}, {"b": "2"}, {"c": "3"}])
    repository.add_flat(chains[-1], {"whole": "x"})
    parent = ""
    for number, chain in enumerate(chains):
        assert ask(client, chain, parent, f"{k}extract-{number}")
        parent = chain

    (active,) = client.prepare(f"{k}container", parent)
    (view,) = client.view(f"{k}view", parent)

    (lower,) = [option for option in active.options if option.startswith("lowerdir=")]
    assert os.listdir(lower.removeprefix("lowerdir=")) == ["whole"]
    assert view.type == "bind"
    assert os.listdir(view.source) == ["whole"]


def test_namespaces_share(client: SnapshotsClient, repository: FakeRepository, k: str) -> None:
    (chain,) = repository.add_chain([digest(k)], [{"a": "1"}])

    assert ask(client, chain, "", "default/1/extract")
    assert ask(client, chain, "", "k8s.io/2/extract")
    assert target(client, chain, "") == chain


def test_the_same_chain_on_an_unpacked_parent(client: SnapshotsClient, repository: FakeRepository, k: str) -> None:
    lower, upper = repository.add_chain([digest(f"{k}{n}") for n in range(2)], [{"a": "1"}, {"b": "2"}])
    client.committed(f"default/6/{lower}")

    assert ask(client, lower, "", f"{k}1")
    assert ask(client, upper, lower, f"{k}2")
    assert ask(client, upper, f"default/6/{lower}", f"{k}3")

    assert target(client, upper, lower) == upper
    other = target(client, upper, f"default/6/{lower}")
    assert other != upper
    assert ask(client, upper, f"default/6/{lower}", f"{k}4")
    client.remove(other)
    client.remove(upper)
    client.remove(lower)


def test_a_layer_on_a_parent_that_is_not_its_own_is_unpacked(
    client: SnapshotsClient, repository: FakeRepository, k: str
) -> None:
    _, upper = repository.add_chain([digest(f"{k}{n}") for n in range(2)], [{"a": "1"}, {"b": "2"}])
    client.committed(f"{k}stranger")

    assert not ask(client, upper, "", f"{k}1")
    assert not ask(client, upper, f"{k}stranger", f"{k}2")
    assert client.list(f'labels."{REF}"=={upper},kind==committed') == []


def test_a_missing_middle_layer_is_unpacked(client: SnapshotsClient, repository: FakeRepository, k: str) -> None:
    diff_ids = [digest(f"{k}{n}") for n in range(3)]
    chains = repository.add_chain(diff_ids, [{"a": "1"}, {"b": "2"}, {"c": "3"}])
    entry = repository.chain(chains[1])
    (entry / "layer").unlink()

    assert ask(client, chains[0], "", f"{k}0")
    assert not ask(client, chains[1], chains[0], f"{k}1")
    client.commit(f"default/9/{chains[1]}", f"{k}1", labels={REF: chains[1]})
    assert ask(client, chains[2], f"default/9/{chains[1]}", f"{k}2")
    client.prepare(f"{k}container", target(client, chains[2], f"default/9/{chains[1]}"))


@pytest.mark.parametrize(
    "reference",
    [
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 63,
        "sha256:../../../../../../../../etc",
        "sha256:" + "../" * 21 + "a",
        "sha256:" + "a" * 64 + "\n",
        "sha512:" + "a" * 128,
        "x" * 4000,
        "sha256:" + "٣" * 64,
    ],
)
def test_hostile_digests_are_unpacked(client: SnapshotsClient, k: str, reference: str) -> None:
    assert not ask(client, reference, "", f"{k}1")
    assert not ask(client, digest("absent"), "", f"{k}2", **{LAYER: reference})
    assert client.stat(f"{k}1").kind == snapshots_pb2.ACTIVE


def test_layers_that_lead_elsewhere_are_unpacked(
    client: SnapshotsClient, repository: FakeRepository, k: str, tmp_path: Path
) -> None:
    outside, file, dangling, loop = (digest(f"{k}{name}") for name in ("outside", "file", "dangling", "loop"))
    for chain, link in ((outside, str(tmp_path)), (dangling, "nowhere"), (loop, "layer")):
        repository.chain(chain).mkdir(parents=True)
        (repository.chain(chain) / "layer").symlink_to(link)
    repository.chain(file).mkdir(parents=True)
    (repository.chain(file) / "layer").write_text("no directory")

    assert [ask(client, chain, "", k + chain) for chain in (outside, file, dangling, loop)] == [False] * 4


def test_removal_by_the_last_user(client: SnapshotsClient, repository: FakeRepository, k: str) -> None:
    (chain,) = repository.add_chain([digest(k)], [{"a": "1"}])
    assert ask(client, chain, "", f"{k}1")
    client.remove(chain)

    assert ask(client, chain, "", f"{k}2")
    client.remove(chain)
    client.cleanup()
    assert (repository.chain(chain) / "layer/a").read_text() == "1"


def test_layers_by_digest_where_the_repository_has_no_chains(own_service: tuple[Service, FakeRepository]) -> None:
    service, repository = own_service
    blob, other, diff_id = digest("blob"), digest("other"), digest("diff")
    repository.layer(blob.removeprefix("sha256:"), {"a": "1"})
    repository.layer(other.removeprefix("sha256:"), {"b": "2"})
    with service.started() as client:
        assert not ask(client, diff_id, "", "default", **{LAYER: blob}), "who sets the label is not known"
    config = service.folder / "c.toml"
    config.write_text("[snapshotter]\nby_layer_digest = true\n")
    service.options = ("--config", str(config))
    with service.started() as client:
        assert not ask(client, diff_id, "", "0")
        assert ask(client, diff_id, "", "1", **{LAYER: blob})
        assert target(client, diff_id, "") == diff_id
        assert ask(client, diff_id, "", "2", **{LAYER: blob})
        assert not ask(client, diff_id, "", "3", **{LAYER: other})
        (mounted,) = client.view("v", diff_id)
        assert os.listdir(mounted.source) == ["a"]
        (repository.root / ".unpackd/chains").mkdir(parents=True)
        assert not ask(client, digest("diff2"), "", "4", **{LAYER: other})


def test_several_repositories(own_service: tuple[Service, FakeRepository]) -> None:
    service, first = own_service
    second = FakeRepository(service.folder / "second")
    lab = FakeRepository(service.folder / "lab")
    config = service.folder / "c.toml"
    config.write_text(
        f"""[[snapshotter.repositories]]
mountpoint = "{second.root}"
[[snapshotter.repositories]]
name = "lab"
mountpoint = "{lab.root}"
prefixes = ["registry.lab.org/"]
"""
    )
    service.options = ("--config", str(config))
    one, two, three = digest("1"), digest("2"), digest("3")
    (everywhere,) = first.add_chain([one], [{"first": ""}])
    second.add_chain([one, two], [{"second": ""}, {"upper": ""}])
    upper = chain_ids([one, two])[1]
    lab.add_chain([one], [{"lab": ""}])
    lab.add_chain([three], [{"alone": ""}])

    def shown(client: SnapshotsClient, name: str) -> list[str]:
        key = f"look {name} {os.urandom(4).hex()}"
        (mounted,) = client.view(key, name)
        lowers = [option for option in mounted.options if option.startswith("lowerdir=")]
        places = lowers[0].removeprefix("lowerdir=").split(":") if lowers else [mounted.source]
        client.remove(key)
        return [entry for place in places for entry in os.listdir(place)]

    with service.started() as client:
        assert ask(client, everywhere, "", "a")
        assert shown(client, everywhere) == ["first"], "the one that was there before there were several"
        assert ask(client, upper, everywhere, "b")
        assert shown(client, upper) == ["upper", "first"], "a stack over two repositories"
        assert ask(client, three, "", "c")
        client.remove(upper)
        client.remove(everywhere)
        assert ask(client, everywhere, "", "d", **{"containerd.io/snapshot/cri.image-ref": "registry.lab.org/a:1"})
        assert shown(client, everywhere) == ["lab"]
        service.kill()
    with service.started() as client:
        assert shown(client, everywhere) == ["lab"], "it is remembered whose it is"
        service.kill()
    config.write_text("")
    with service.started() as client:
        with pytest.raises(grpc.RpcError) as caught:
            client.view("v", everywhere)
        assert caught.value.code() is Code.UNAVAILABLE
        assert "no repository 'lab' is configured" in str(caught.value.details())
        client.remove(everywhere)


def test_a_tree_in_use_that_will_be_collected_is_named(own_service: tuple[Service, FakeRepository]) -> None:
    service, repository = own_service
    port = free_port()
    service.options = ("--metrics", f"127.0.0.1:{port}")
    (chain,) = repository.add_chain([digest("1")], [{"a": "1"}])
    tree = repository.add_flat(chain, {"a": "1"})
    path = f"/{tree.relative_to(repository.root)}"
    unneeded = {"version": 1, "since": {path: 1_700_000_000, "/.flat/aa/other": 1_700_000_000}}
    (repository.root / ".unpackd/unneeded.json").write_text(json.dumps(unneeded))

    def doomed() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        return next(line for line in lines if line.startswith("unpackd_snapshotter_doomed_trees"))

    with service.started() as client:
        assert ask(client, chain, "", "1")
        assert doomed().endswith(" 0"), "nobody uses it"
        client.prepare("container", chain)
        assert doomed().endswith(" 1")
        client.remove("container")
        client.cleanup()
        assert doomed().endswith(" 0")
    warnings = [json.loads(line) for line in service.log.read_text().splitlines() if '"tree_in_use_will' in line]
    assert [warning["path"] for warning in warnings] == [path]


def test_restart_without_the_repository(own_service: tuple[Service, FakeRepository]) -> None:
    service, repository = own_service
    diff_ids = [digest("1"), digest("2")]
    chains = repository.add_chain(diff_ids, [{"a": "1"}, {"b": "2"}])
    away = repository.root.with_name("away")
    with service.started() as client:
        assert ask(client, chains[0], "", "1")
        assert ask(client, chains[1], chains[0], "2")
        served = client.prepare("container", chains[1])
        client.committed("plain")
        ordinary = client.prepare("ordinary", "plain")
        Path(
            next(o for o in ordinary[0].options if o.startswith("upperdir=")).removeprefix("upperdir="), "f"
        ).write_text("x")
        assert service.stop() == 0
        assert not service.address.exists()
    repository.root.rename(away)
    with service.started() as client:
        for call in (lambda: client.mounts("container"), lambda: client.prepare("new", chains[1])):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is Code.UNAVAILABLE
        with pytest.raises(grpc.RpcError) as caught:
            client.stat("new")
        assert caught.value.code() is Code.NOT_FOUND
        assert client.mounts("ordinary") == ordinary
        assert not ask(client, chain_ids(diff_ids)[0].replace("a", "b"), "", "declined")
        assert client.stat(chains[1]).parent == chains[0]
        client.remove("container")
        client.remove(chains[1])
        client.cleanup()
        upper = next(o for o in ordinary[0].options if o.startswith("upperdir=")).removeprefix("upperdir=")
        assert Path(upper, "f").read_text() == "x"
        service.kill()
    away.rename(repository.root)
    with service.started() as client:
        assert client.mounts("ordinary") == ordinary
        assert ask(client, chains[1], chains[0], "3")
        again = client.prepare("container", chains[1])
        assert [option.split("=")[0] for option in again[0].options] == [o.split("=")[0] for o in served[0].options]


def test_mounts_are_the_same_after_a_restart_with_the_links_gone(
    own_service: tuple[Service, FakeRepository],
) -> None:
    service, repository = own_service
    chains = repository.add_chain([digest("1"), digest("2")], [{"a": "1"}, {"b": "2"}])
    with service.started() as client:
        ask(client, chains[0], "", "1")
        ask(client, chains[1], chains[0], "2")
        given = client.prepare("container", chains[1])
    for link in (service.root / "l").iterdir():
        link.unlink()
    with service.started() as client:
        assert client.mounts("container") == given
        (lower,) = [option for option in given[0].options if option.startswith("lowerdir=")]
        layers = lower.removeprefix("lowerdir=").split(":")
        assert [os.listdir(path) for path in layers] == [["b"], ["a"]]
