"""The process: start, socket, locks, crashes."""

import signal
import stat
import subprocess
from pathlib import Path

import grpc
import pytest

from tests.support.snapshotter import FakeRepository, Service, SnapshotsClient


def refused(service: Service) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in service.command], check=False, capture_output=True, text=True, timeout=30
    )


def test_the_socket_is_for_its_owner_only(own_service: tuple[Service, FakeRepository]) -> None:
    service, _ = own_service
    with service.started():
        assert stat.S_IMODE(service.address.stat().st_mode) == 0o600
        assert stat.S_IMODE(service.address.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(service.root.stat().st_mode) == 0o700


def test_a_stale_socket_is_replaced_and_a_living_one_is_not(own_service: tuple[Service, FakeRepository]) -> None:
    service, repository = own_service
    with service.started():
        service.kill()
    assert service.address.exists()
    with service.started() as client:
        client.prepare("a")
        second = refused(service)
        assert second.returncode == 11, second.stderr
        other = Service(service.folder / "other", repository.root)
        other.folder.mkdir()
        command = [str(part) for part in other.command]
        command[command.index("--address") + 1] = str(service.address)
        third = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
        assert third.returncode == 11, third.stderr
        assert client.stat("a").name == "a"


def test_it_ends_cleanly_on_sigterm_and_sigint(own_service: tuple[Service, FakeRepository]) -> None:
    service, _ = own_service
    for number in (signal.SIGTERM, signal.SIGINT):
        with service.started():
            assert service.process is not None
            service.process.send_signal(number)
            assert service.process.wait(10) == 0
            assert not service.address.exists()


def test_it_does_not_begin_anew_over_snapshots(own_service: tuple[Service, FakeRepository]) -> None:
    service, _ = own_service
    with service.started() as client:
        client.prepare("a")
    for file in service.root.glob("metadata.db*"):
        file.unlink()

    done = refused(service)

    assert done.returncode == 1
    assert "metadata.db is gone" in done.stderr
    assert list((service.root / "s").iterdir())


def test_a_broken_database_is_named(own_service: tuple[Service, FakeRepository]) -> None:
    service, _ = own_service
    service.root.mkdir(mode=0o700)
    (service.root / "metadata.db").write_bytes(b"no database" * 1000)

    done = refused(service)

    assert done.returncode == 1
    assert "metadata.db" in done.stderr


def test_unknown_keys_are_refused_with_their_line(own_service: tuple[Service, FakeRepository], tmp_path: Path) -> None:
    service, _ = own_service
    config = tmp_path / "c.toml"
    config.write_text("[other]\nx = 1\n\n[snapshotter]\nlayer_timeout_s = 2\nspeling = 1\n")
    service.options = ("--config", str(config))

    done = refused(service)

    assert done.returncode == 2
    assert f"{config}:6: unknown key 'speling'" in done.stderr


def test_leftovers_of_a_crash_go_with_cleanup_and_a_retry_works(own_service: tuple[Service, FakeRepository]) -> None:
    service, _ = own_service
    with service.started() as client:
        client.prepare("kept")
        service.kill()
    # what a crash leaves between making the directory and the end of the transaction: the next number is taken
    (service.root / "s/2/fs").mkdir(parents=True)
    (service.root / "s/2/fs/stale").write_text("x")
    (service.root / "t/new-0123/fs").mkdir(parents=True)
    (service.root / "l/77").symlink_to("nowhere")
    with service.started() as client:
        (mounted,) = client.prepare("next")
        assert mounted.source == str(service.root / "s/2/fs")
        assert list(Path(mounted.source).iterdir()) == []
        client.cleanup()
        assert sorted(path.name for path in (service.root / "s").iterdir()) == ["1", "2"]
        assert list((service.root / "t").iterdir()) == []
        assert list((service.root / "l").iterdir()) == []


def test_kills_at_any_moment_leave_no_row_without_directory(own_service: tuple[Service, FakeRepository]) -> None:
    service, _ = own_service
    for round_ in range(4):
        with service.started() as client:
            futures = []
            for number in range(30):
                request = {"key": f"{round_}-{number}"}
                futures.append(client.stub.Prepare.future(_prepare(**request)))
            futures[3 * round_].result(timeout=10)
            service.kill()
    with service.started() as client:
        active = client.list()
        assert active
        for info in active:
            (mounted,) = client.mounts(info.name)
            assert Path(mounted.source).is_dir()
            with pytest.raises(grpc.RpcError):
                client.prepare(info.name)
        client.cleanup()
        assert len(list((service.root / "s").iterdir())) == len(active)


def _prepare(key: str) -> object:
    from snapshotter._proto import snapshots_pb2

    return snapshots_pb2.PrepareSnapshotRequest(key=key)


def test_a_directory_with_other_files_is_not_taken(own_service: tuple[Service, FakeRepository]) -> None:
    service, _ = own_service
    service.root.mkdir(mode=0o755)
    (service.root / "precious").touch()

    done = refused(service)

    assert done.returncode == 1
    assert "'precious', which is not ours" in done.stderr
    assert stat.S_IMODE(service.root.stat().st_mode) == 0o755


def test_the_repository_may_move(own_service: tuple[Service, FakeRepository]) -> None:
    service, repository = own_service
    (chain,) = repository.add_chain(["sha256:" + "a" * 64], [{"a": "1"}])
    with service.started() as client:
        with pytest.raises(grpc.RpcError):
            client.prepare("1", labels={"containerd.io/snapshot.ref": chain})
        client.view("v", chain)
    repository.root.rename(repository.root.with_name("moved"))
    service.mountpoint = repository.root.with_name("moved")
    with service.started() as client:
        (mounted,) = client.mounts("v")
        assert [path.name for path in Path(mounted.source).iterdir()] == ["a"]


def prepare_many(client: SnapshotsClient, count: int) -> None:
    for number in range(count):
        client.prepare(f"more-{number}")


@pytest.mark.root
def test_a_full_disk_is_named_and_nothing_is_left(own_service: tuple[Service, FakeRepository]) -> None:
    service, _ = own_service
    service.root.mkdir(mode=0o700)
    options = "size=2m,nr_inodes=60,mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", service.root], check=True, timeout=30)
    with service.started() as client:
        client.prepare("first")
        with pytest.raises(grpc.RpcError) as caught:
            prepare_many(client, 60)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "no space left" in caught.value.details()
        failed = f"more-{len(client.list()) - 1}"
        client.remove("first")
        client.remove("more-0")
        client.cleanup()
        client.prepare(failed)
        assert client.stat(failed).name == failed
