"""A repository whose FUSE server does not answer."""

import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.conformance.snapshotter.test_remote import ask, digest
from tests.support.processes import unmount_below
from tests.support.snapshotter import FakeRepository, Service

pytestmark = pytest.mark.root

LIMIT_S = 0.15


@pytest.fixture
def hang(own_service: tuple[Service, FakeRepository]) -> Iterator[int]:
    """A FUSE file system over the mountpoint, mounted on request, with nobody behind it: every access waits."""
    _, repository = own_service
    device = os.open("/dev/fuse", os.O_RDWR)
    yield device
    unmount_below(repository.root)
    os.close(device)


def impatient(service: Service) -> None:
    config = service.folder / "c.toml"
    config.write_text(f"[snapshotter]\nlayer_timeout_s = {LIMIT_S}\n")
    service.options = ("--config", str(config))


def mount_over(path: Path, device: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    assert libc.mount(b"nobody", str(path).encode(), b"fuse", 0, options) == 0, os.strerror(ctypes.get_errno())


def test_nothing_else_hangs(own_service: tuple[Service, FakeRepository], hang: int) -> None:
    service, repository = own_service
    impatient(service)
    (chain,) = repository.add_chain([digest("1")], [{"a": "1"}])
    with service.started() as client:
        assert ask(client, chain, "", "1")
        client.prepare("container", chain)
        mount_over(repository.root, hang)

        started = time.monotonic()
        assert not ask(client, digest("other"), "", "2")
        assert time.monotonic() - started < 10 * LIMIT_S
        with pytest.raises(grpc.RpcError) as caught:
            client.mounts("container")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        for number in range(3, 24):
            assert not ask(client, digest("other"), "", str(number))
        started = time.monotonic()
        assert not ask(client, digest("other"), "", "fast")
        assert client.stat("container").parent == chain
        client.prepare("ordinary")
        assert time.monotonic() - started < LIMIT_S, "with all threads stuck, answers come at once"

        unmount_below(repository.root)
        os.dup2(os.open("/dev/null", os.O_RDWR), hang)  # ends the connection, and with it the calls that hang
        deadline = time.monotonic() + 10
        while not ask(client, chain, "", "again") or not _mounts(client):
            assert time.monotonic() < deadline
        assert service.stop() == 0


def test_it_ends_while_calls_hang(own_service: tuple[Service, FakeRepository], hang: int) -> None:
    service, repository = own_service
    impatient(service)
    with service.started() as client:
        mount_over(repository.root, hang)
        future = client.stub.Prepare.future(_request())
        time.sleep(0.2)

        started = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - started < 8
        future.cancel()


def _mounts(client: object) -> bool:
    try:
        client.mounts("container")  # type: ignore[attr-defined]
    except grpc.RpcError:
        return False
    return True


def _request() -> object:
    from snapshotter._proto import snapshots_pb2

    return snapshots_pb2.PrepareSnapshotRequest(key="x", labels={"containerd.io/snapshot.ref": digest("x")})
