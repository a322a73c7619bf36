"""The snapshotter as a process of its own, a directory laid out like a repository, and a client."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from fs.rootfs.erofs import build_metadata_image
from snapshotter._proto import snapshots_pb2, snapshots_pb2_grpc
from snapshotter.snapshots import chain_ids
from tests.support.processes import running, stop, unmount_below, wait_until
from tests.support.trees import load

UNPACKD = Path(sys.executable).with_name("unpackd")
REF = "containerd.io/snapshot.ref"
CALL_TIMEOUT_S = 30.0


@dataclass(slots=True)
class FakeRepository:
    """A plain directory with the layout of ``docs/format/layout.md``; nothing in it needs FUSE."""

    root: Path

    def add_chain(self, diff_ids: Sequence[str], contents: Sequence[Mapping[str, str]]) -> list[str]:
        """Publish a chain, lowest layer first, each layer a mapping of names to texts; gives the ChainIDs."""
        chains = chain_ids(diff_ids)
        for number, (chain, files) in enumerate(zip(chains, contents, strict=True)):
            layer = self.layer(chain.removeprefix("sha256:"), files)
            entry = self.chain(chain)
            entry.mkdir(parents=True)
            (entry / "layer").symlink_to(f"../../../../{layer.relative_to(self.root)}")
            if number:
                parent = chains[number - 1].removeprefix("sha256:")
                (entry / "parent").symlink_to(f"../../{parent[:2]}/{parent}")
        return list(chains)

    def chain(self, chain_id: str) -> Path:
        """Directory of a ChainID's entry."""
        digits = chain_id.removeprefix("sha256:")
        return self.root / ".unpackd" / "chains" / digits[:2] / digits

    def layer(self, digits: str, files: Mapping[str, str]) -> Path:
        """Publish one layer under the digest of its blob; gives its content's directory."""
        content = self.root / ".layers" / digits[:2] / digits / "layerfs"
        content.mkdir(parents=True)
        for name, text in files.items():
            (content / name).write_text(text)
        return content

    def add_flat(self, chain_id: str, files: Mapping[str, str]) -> Path:
        """Publish the whole root file system of a chain."""
        digits = chain_id.removeprefix("sha256:")
        content = self.root / ".flat" / digits[:2] / digits
        content.mkdir(parents=True)
        for name, text in files.items():
            (content / name).write_text(text)
        (self.chain(chain_id) / "flat").symlink_to(f"../../../../{content.relative_to(self.root)}")
        return content

    def add_root_image(self, chain_id: str) -> Path:
        """Publish the metadata image of a chain's flat tree, as a converter would; gives its path."""
        flat = (self.chain(chain_id) / "flat").resolve()
        place = b"/" + os.fsencode(flat.relative_to(self.root.resolve()))
        image = build_metadata_image(
            load(flat), lambda path, node: place + path if node.content and node.content.size else None
        )
        file = self.chain(chain_id) / "rootfs.erofs"
        file.write_bytes(image)
        return file


class SnapshotsClient:
    """What containerd does on the socket, one short method a call."""

    def __init__(self, address: Path) -> None:
        limit = 16 << 20
        options = [
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", limit),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
        ]
        self._channel = grpc.insecure_channel(f"unix:{address}", options=options)
        self.stub = snapshots_pb2_grpc.SnapshotsStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Any]:
        request = snapshots_pb2.PrepareSnapshotRequest(snapshotter="x", key=key, parent=parent, labels=labels)
        return list(self.stub.Prepare(request, timeout=CALL_TIMEOUT_S).mounts)

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Any]:
        request = snapshots_pb2.ViewSnapshotRequest(snapshotter="x", key=key, parent=parent, labels=labels)
        return list(self.stub.View(request, timeout=CALL_TIMEOUT_S).mounts)

    def mounts(self, key: str) -> list[Any]:
        return list(self.stub.Mounts(snapshots_pb2.MountsRequest(key=key), timeout=CALL_TIMEOUT_S).mounts)

    def commit(self, name: str, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> None:
        request = snapshots_pb2.CommitSnapshotRequest(name=name, key=key, parent=parent, labels=labels)
        self.stub.Commit(request, timeout=CALL_TIMEOUT_S)

    def committed(self, name: str, parent: str = "", labels: Mapping[str, str] | None = None) -> None:
        self.prepare(f"{name}-active", parent)
        self.commit(name, f"{name}-active", labels=labels)

    def remove(self, key: str) -> None:
        self.stub.Remove(snapshots_pb2.RemoveSnapshotRequest(key=key), timeout=CALL_TIMEOUT_S)

    def stat(self, key: str) -> Any:  # noqa: ANN401
        return self.stub.Stat(snapshots_pb2.StatSnapshotRequest(key=key), timeout=CALL_TIMEOUT_S).info

    def update(self, name: str, labels: Mapping[str, str], *paths: str, parent: str = "") -> Any:  # noqa: ANN401
        request = snapshots_pb2.UpdateSnapshotRequest(info={"name": name, "labels": labels, "parent": parent})
        request.update_mask.paths.extend(paths)
        return self.stub.Update(request, timeout=CALL_TIMEOUT_S).info

    def list(self, *filters: str) -> list[Any]:
        request = snapshots_pb2.ListSnapshotsRequest(filters=filters)
        return [info for block in self.stub.List(request, timeout=CALL_TIMEOUT_S) for info in block.info]

    def usage(self, key: str) -> Any:  # noqa: ANN401
        return self.stub.Usage(snapshots_pb2.UsageRequest(key=key), timeout=CALL_TIMEOUT_S)

    def cleanup(self) -> None:
        self.stub.Cleanup(snapshots_pb2.CleanupRequest(), timeout=CALL_TIMEOUT_S)


@dataclass(slots=True)
class Service:
    """A snapshotter over one state directory, which outlives the process."""

    folder: Path
    mountpoint: Path
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def address(self) -> Path:
        return self.folder / "run" / "s.sock"

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def command(self) -> list[str | Path]:
        where = ["--address", self.address, "--root", self.root, "--mountpoint", self.mountpoint]
        return [UNPACKD, "snapshotter", *where, *self.options]

    @contextmanager
    def started(self) -> Iterator[SnapshotsClient]:
        """Run until the block ends."""
        with running(self.command, self.log) as self.process:
            client = SnapshotsClient(self.address)
            try:
                wait_until(lambda: self._answers(client), "the start of the snapshotter")
                yield client
            finally:
                client.close()

    def kill(self) -> None:
        """End it the hard way."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        """End it cleanly; gives its exit status."""
        assert self.process is not None
        stop(self.process)
        return self.process.returncode

    def _answers(self, client: SnapshotsClient) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            client.list("name==nothing")
        except grpc.RpcError:
            return False
        return True


@contextmanager
def service_folder() -> Iterator[Path]:
    """A folder with a short path, for sockets; what is mounted below is unmounted before it goes."""
    folder = Path(tempfile.mkdtemp(prefix="snap"))
    try:
        yield folder
    finally:
        unmount_below(folder)
        shutil.rmtree(folder)
