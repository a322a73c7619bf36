"""containerd alone, with its own overlayfs snapshotter: layers go in through its API, the mounted tree comes out."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from snapshotter._proto import content_pb2, content_pb2_grpc, diff_pb2, diff_pb2_grpc, snapshots_pb2, snapshots_pb2_grpc
from tests.support.images import digest
from tests.support.processes import require_root, require_tool, running, unmount_below

SNAPSHOTTER = "overlayfs"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_KEPT = {"containerd.io/gc.root": "kept"}
_METADATA = (("containerd-namespace", "tests"),)
_CALL_TIMEOUT_S = 60.0
_START_TIMEOUT_S = 20.0
_CONFIG = """version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{folder}/c.sock"
"""


class Engine:
    """What makes snapshots of stacks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        channel = grpc.insecure_channel(f"unix:{folder}/c.sock")
        grpc.channel_ready_future(channel).result(_START_TIMEOUT_S)
        self._content = content_pb2_grpc.ContentStub(channel)
        self._diff = diff_pb2_grpc.DiffStub(channel)
        self._snapshots = snapshots_pb2_grpc.SnapshotsStub(channel)

    @contextmanager
    def mounted(self, name: str, layers: Sequence[bytes]) -> Iterator[Path]:
        """Unpack the tars *layers*, lowest first, and mount the stack to read. Raises RpcError if it is refused."""
        parent = ""
        for number, layer in enumerate(layers):
            parent = self._unpack(layer, f"{name}-{number}", parent)
        request = snapshots_pb2.ViewSnapshotRequest(
            snapshotter=SNAPSHOTTER, key=f"{name}-view", parent=parent, labels=_KEPT
        )
        [mount] = self._call(self._snapshots.View, request).mounts
        target = self._folder / "mounted" / name
        target.mkdir(parents=True)
        options = ",".join(mount.options)
        subprocess.run(["mount", "-t", mount.type, "-o", options, mount.source, target], check=True, timeout=30)
        try:
            yield target
        finally:
            subprocess.run(["umount", target], check=True, timeout=30)

    def _unpack(self, layer: bytes, name: str, parent: str) -> str:
        key = f"{name}-active"
        descriptor = {"media_type": _LAYER, "digest": digest(layer), "size": len(layer)}
        self._store(layer, name)
        prepare = snapshots_pb2.PrepareSnapshotRequest(snapshotter=SNAPSHOTTER, key=key, parent=parent, labels=_KEPT)
        mounts = self._call(self._snapshots.Prepare, prepare).mounts
        self._call(self._diff.Apply, diff_pb2.ApplyRequest(diff=descriptor, mounts=mounts))
        commit = snapshots_pb2.CommitSnapshotRequest(snapshotter=SNAPSHOTTER, name=name, key=key, labels=_KEPT)
        self._call(self._snapshots.Commit, commit)
        return name

    def _store(self, layer: bytes, name: str) -> None:
        request = content_pb2.WriteContentRequest(
            action=content_pb2.COMMIT,
            ref=name,
            total=len(layer),
            expected=digest(layer),
            data=layer,
            labels=_KEPT,
        )
        try:
            list(self._content.Write(iter([request]), metadata=_METADATA, timeout=_CALL_TIMEOUT_S))
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                raise

    @staticmethod
    def _call(method: Any, request: Any) -> Any:  # noqa: ANN401  # generated
        return method(request, metadata=_METADATA, timeout=_CALL_TIMEOUT_S)


@contextmanager
def running_engine(folder: Path) -> Iterator[Engine]:
    """containerd with everything below *folder*; what it has mounted is unmounted afterwards."""
    require_root()
    require_tool("containerd")
    config = folder / "config.toml"
    config.write_text(_CONFIG.format(folder=folder))
    try:
        with running(["containerd", "--config", config], folder / "containerd.log"):
            yield Engine(folder)
    finally:
        unmount_below(folder)
