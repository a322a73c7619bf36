"""Root file systems from metadata images: what containers see, and what becomes of the mounts."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from fs.errors import MountingError
from fs.rootfs import mounting
from snapshotter.root_images import Decision
from tests.conformance.snapshotter.test_mounts import mount
from tests.conformance.snapshotter.test_remote import ask, digest
from tests.support.processes import mounts_below, unmount_below
from tests.support.snapshotter import UNPACKD, FakeRepository, Service, SnapshotsClient
from tests.support.trees import describe, differences

pytestmark = pytest.mark.root


@pytest.fixture(scope="module", autouse=True)
def _kernel(tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        mounting.probe(tmp_path_factory.mktemp("probe"))
    except MountingError as error:
        pytest.skip(f"this kernel cannot mount metadata images: {error}")


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    point = tmp_path / "point"
    point.mkdir()
    yield point
    unmount_below(point)


def publish(repository: FakeRepository, name: str) -> str:
    """A chain of one layer with a whole tree and its metadata image; gives the ChainID."""
    (chain,) = repository.add_chain([digest(name)], [{"layer": "x"}])
    flat = repository.add_flat(chain, {"kept": "kept", "changed": "old", "grown": "first\n", "gone": "x", "empty": ""})
    for folder in ("dir/inner", "other"):
        (flat / folder).mkdir(parents=True)
    (flat / "dir/inner/file").write_text("inner")
    (flat / "link").hardlink_to(flat / "kept")
    (flat / "symlink").symlink_to("kept")
    os.chown(flat / "changed", 7, 8)
    repository.add_root_image(chain)
    return chain


def flat_of(repository: FakeRepository, chain: str) -> Path:
    return (repository.chain(chain) / "flat").resolve()


def served(client: SnapshotsClient, chain: str, key: str) -> None:
    assert ask(client, chain, "", f"extract-{key}")


def lower_of(mounts: list[object]) -> str:
    (only,) = mounts
    return next((option[len("lowerdir=") :] for option in only.options if option.startswith("lowerdir=")), "")  # type: ignore[attr-defined]


def is_imaged(mounts: list[object]) -> bool:
    """True if the mounts stand on a metadata image, False if they stand on the tree of the repository."""
    (only,) = mounts
    lower = only.source if only.type == "bind" else lower_of(mounts).rpartition(":")[2]  # type: ignore[attr-defined]
    return Path(lower).parent.name == "m"


def images_mounted(service: Service) -> list[str]:
    return mounts_below(service.root / "m")


def configure(service: Service, text: str) -> None:
    config = service.folder / "c.toml"
    config.write_text(f"[snapshotter]\n{text}\n")
    service.options = ("--config", str(config))


def edit(root: Path) -> None:
    """All that a container does to files."""
    (root / "changed").write_text("new")
    with (root / "grown").open("a") as stream:
        stream.write("second\n")
    (root / "gone").unlink()
    (root / "kept").chmod(0o600)
    shutil.move(root / "dir", root / "moved")
    (root / "grown").rename(root / "other/renamed")
    (root / "empty").write_text("filled")
    os.chown(root / "moved/inner/file", 5, 6)
    (root / "link2").hardlink_to(root / "symlink")


def check_edited(root: Path) -> None:
    assert sorted(os.listdir(root)) == ["changed", "empty", "kept", "link", "link2", "moved", "other", "symlink"]
    assert (root / "changed").read_text() == "new"
    assert ((root / "changed").stat().st_uid, (root / "changed").stat().st_gid) == (7, 8)
    assert (root / "other/renamed").read_text() == "first\nsecond\n"
    assert (root / "empty").read_text() == "filled"
    assert ((root / "kept").read_text(), (root / "kept").stat().st_mode & 0o777) == ("kept", 0o600)
    assert (root / "moved/inner/file").read_text() == "inner"
    assert (root / "moved/inner/file").stat().st_uid == 5


def test_the_tree_is_the_same_and_shared(
    client: SnapshotsClient, service: Service, repository: FakeRepository, k: str, point: Path
) -> None:
    chain = publish(repository, k)
    served(client, chain, k)
    before = len(images_mounted(service))

    view = client.view(f"{k}view", chain)
    active = client.prepare(f"{k}active", chain)

    assert is_imaged(view)
    assert is_imaged(active)
    assert len(images_mounted(service)) == before + 1
    assert client.mounts(f"{k}active") == active
    mount(view, point)
    assert differences(describe(flat_of(repository, chain)), describe(point)) == []
    with pytest.raises(OSError, match="Read-only"):
        (point / "f").write_text("x")


def test_changes_survive_commit_and_the_other_form(own_service: tuple[Service, FakeRepository], point: Path) -> None:
    service, repository = own_service
    chain = publish(repository, "changes")
    with service.started() as client:
        served(client, chain, "1")
        mount(client.prepare("one", chain), point)
        edit(point)
        check_edited(point)
        unmount_below(point)
        mount(client.mounts("one"), point)
        check_edited(point)
        unmount_below(point)
        client.commit("committed", "one")
        mount(client.prepare("two", "committed"), point)
        check_edited(point)
        (point / "changed").chmod(0o640)
        unmount_below(point)
        with_image = client.mounts("two")
    configure(service, 'rootfs = "fuse"')
    with service.started() as client:
        assert images_mounted(service) == []
        without = client.mounts("two")
        assert is_imaged(with_image)
        assert not is_imaged(without)
        mount(without, point)
        check_edited(point)
        assert (point / "changed").stat().st_mode & 0o777 == 0o640


def test_images_go_with_the_last_snapshot_and_running_containers_keep_them(
    own_service: tuple[Service, FakeRepository], point: Path
) -> None:
    service, repository = own_service
    chain = publish(repository, "goes")
    with service.started() as client:
        served(client, chain, "1")
        mount(client.prepare("one", chain), point)
        client.prepare("two", chain)
        client.remove("two")
        client.cleanup()
        assert len(images_mounted(service)) == 1
        client.remove("one")
        client.cleanup()
        assert images_mounted(service) == []
        assert os.listdir(service.root / "m") == []
        assert len(os.listdir(service.root / "e")) == 1, "the layer is still there"
        assert (point / "kept").read_text() == "kept"

        client.prepare("again", chain)
        assert len(images_mounted(service)) == 1
        client.remove("again")
        client.remove(chain)
        client.cleanup()
        assert images_mounted(service) == []
        assert os.listdir(service.root / "e") == []


def test_a_killed_snapshotter_finds_its_mounts_and_a_rebooted_machine_makes_them(
    own_service: tuple[Service, FakeRepository], point: Path
) -> None:
    service, repository = own_service
    chain, other = publish(repository, "restart"), publish(repository, "unused")
    with service.started() as client:
        served(client, chain, "1")
        served(client, other, "2")
        given = client.prepare("one", chain)
        client.prepare("two", other)
        client.remove("two")
        assert len(images_mounted(service)) == 2
        service.kill()
    with service.started() as client:
        assert len(images_mounted(service)) == 1
        assert client.mounts("one") == given
        assert service.stop() == 0
    unmount_below(service.root)
    with service.started() as client:
        assert client.mounts("one") == given
        assert len(images_mounted(service)) == 1
        mount(given, point)
        assert (point / "kept").read_text() == "kept"


@pytest.mark.parametrize("fault", ["absent", "garbage", "short", "link", "other data"])
def test_a_bad_image_is_not_used(  # noqa: PLR0917  # fixtures
    client: SnapshotsClient, service: Service, repository: FakeRepository, k: str, point: Path, fault: str
) -> None:
    chain = publish(repository, k)
    file = repository.chain(chain) / "rootfs.erofs"
    image = file.read_bytes()
    if fault in ("absent", "link"):
        file.unlink()
    if fault == "link":
        file.symlink_to("/etc/passwd")
    if fault == "garbage":
        file.write_bytes(os.urandom(8192))
    if fault == "short":
        file.write_bytes(image[:2000])
    if fault == "other data":
        file.write_bytes(image.replace(b"/.flat/", b"/.flut/"))
    served(client, chain, k)
    before = images_mounted(service)

    given = client.prepare(f"{k}one", chain)

    assert not is_imaged(given)
    assert images_mounted(service) == before
    mount(given, point)
    assert (point / "kept").read_text() == "kept"


def test_a_replaced_image_is_read_again(
    client: SnapshotsClient, repository: FakeRepository, k: str, point: Path
) -> None:
    chain = publish(repository, k)
    served(client, chain, k)
    client.prepare(f"{k}one", chain)
    (flat_of(repository, chain) / "late").write_text("late")
    repository.add_root_image(chain)

    mount(client.mounts(f"{k}one"), point)

    assert (point / "late").read_text() == "late"


def test_a_repository_that_is_mounted_anew_is_what_new_containers_see(
    own_service: tuple[Service, FakeRepository], point: Path
) -> None:
    service, repository = own_service
    chain = publish(repository, "anew")
    with service.started() as client:
        served(client, chain, "1")
        mount(client.prepare("old", chain), point)
        again = service.folder / "again"
        again.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", again], check=True, timeout=30)
        shutil.copytree(repository.root, again, symlinks=True, dirs_exist_ok=True)
        (flat_of(FakeRepository(again), chain) / "kept").write_text("KEPT")
        subprocess.run(["mount", "--bind", again, repository.root], check=True, timeout=30)

        new = client.prepare("new", chain)

        assert is_imaged(new)
        assert len(images_mounted(service)) == 1
        assert (point / "kept").read_text() == "kept", "what runs keeps what it has"
        unmount_below(point)
        mount(new, point)
        assert (point / "kept").read_text() == "KEPT"


def test_mapped_ids_get_the_tree_itself(client: SnapshotsClient, repository: FakeRepository, k: str) -> None:
    chain = publish(repository, k)
    served(client, chain, k)
    mapping = {f"containerd.io/snapshot/{kind}mapping": "0:100000:65536" for kind in ("uid", "gid")}

    assert not is_imaged(client.prepare(f"{k}one", chain, mapping))


def test_the_doctor_says_which_form_is_used_and_why(own_service: tuple[Service, FakeRepository]) -> None:
    service, _ = own_service
    found = []
    for setting in ("auto", "fuse"):
        configure(service, f'rootfs = "{setting}"')
        with service.started():
            command: list[str | Path] = [
                UNPACKD,
                "doctor",
                "--root",
                service.root,
                "--containerd",
                service.folder / "none",
                "--json",
            ]
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
            found.append({check["name"]: check for check in json.loads(done.stdout)["checks"]}["root file systems"])

    assert [check["verdict"] for check in found] == ["ok", "limited"]
    assert "EROFS" in found[0]["found"]
    assert "the configuration says so" in found[1]["found"]


def test_what_the_machine_cannot_do_is_refused_if_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from snapshotter.config import RootForm
    from snapshotter.errors import ConfigurationError
    from snapshotter.mounts import OverlayTraits
    from snapshotter.root_images import decide

    def refuse(_folder: Path) -> mounting.Backing:
        raise MountingError("no EROFS here")

    monkeypatch.setattr("snapshotter.root_images.probe", refuse)
    traits = OverlayTraits()
    assert decide(RootForm.AUTO, tmp_path, traits) == Decision(
        setting=RootForm.AUTO, form=RootForm.FUSE, reason="no EROFS here"
    )
    with pytest.raises(ConfigurationError, match="no EROFS here"):
        decide(RootForm.EROFS, tmp_path, traits)
    assert "user namespace" in decide(RootForm.AUTO, tmp_path, OverlayTraits(userxattr=True)).reason
    assert list(tmp_path.iterdir()) == []


def test_the_repository_is_away(own_service: tuple[Service, FakeRepository]) -> None:
    service, repository = own_service
    chain = publish(repository, "away")
    with service.started() as client:
        served(client, chain, "1")
        given = client.prepare("one", chain)
        away = repository.root.with_name("away")
        repository.root.rename(away)
        with pytest.raises(grpc.RpcError) as caught:
            client.mounts("one")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        away.rename(repository.root)
        assert client.mounts("one") == given
