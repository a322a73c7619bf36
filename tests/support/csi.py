"""The CSI plugin as a process, and the calls of a kubelet."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from snapshotter._proto import csi_pb2, csi_pb2_grpc
from tests.support.processes import running, wait_until
from tests.support.snapshotter import UNPACKD

CALL_TIMEOUT_S = 30.0
MOUNT = {"mount": {}, "access_mode": {"mode": "SINGLE_NODE_WRITER"}}  # what a kubelet sends for inline volumes


@dataclass(frozen=True, slots=True)
class Plugin:
    """A running plugin."""

    socket: Path
    identity: Any
    node: Any

    def publish(
        self,
        target: Path,
        context: Mapping[str, str],
        *,
        volume: str = "v1",
        staging: Path | None = None,
        capability: Mapping[str, Any] = MOUNT,
    ) -> None:
        self.node.NodePublishVolume(
            csi_pb2.NodePublishVolumeRequest(
                volume_id=volume,
                target_path=str(target),
                staging_target_path=str(staging or ""),
                volume_capability=capability,
                volume_context=context,
            ),
            timeout=CALL_TIMEOUT_S,
        )

    def unpublish(self, target: Path, *, volume: str = "v1") -> None:
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume, target_path=str(target))
        self.node.NodeUnpublishVolume(request, timeout=CALL_TIMEOUT_S)

    def stage(self, staging: Path, context: Mapping[str, str], *, volume: str = "v1") -> None:
        self.node.NodeStageVolume(
            csi_pb2.NodeStageVolumeRequest(
                volume_id=volume,
                staging_target_path=str(staging),
                volume_capability=MOUNT,
                volume_context=context,
            ),
            timeout=CALL_TIMEOUT_S,
        )

    def unstage(self, staging: Path, *, volume: str = "v1") -> None:
        request = csi_pb2.NodeUnstageVolumeRequest(volume_id=volume, staging_target_path=str(staging))
        self.node.NodeUnstageVolume(request, timeout=CALL_TIMEOUT_S)

    def stats(self, target: Path) -> Any:  # noqa: ANN401  # generated message
        request = csi_pb2.NodeGetVolumeStatsRequest(volume_id="v1", volume_path=str(target))
        return self.node.NodeGetVolumeStats(request, timeout=CALL_TIMEOUT_S)


@contextmanager
def running_plugin(folder: Path, repositories: Path) -> Iterator[Plugin]:
    """The plugin over what is mounted below *repositories*; *folder* has a short path, for the socket."""
    socket = folder / "run" / "csi.sock"
    command = [UNPACKD, "csi", "--endpoint", f"unix://{socket}", "--node", "n1", "--repositories", repositories]
    with running(command, folder / "csi.log") as process, grpc.insecure_channel(f"unix:{socket}") as channel:
        plugin = Plugin(socket, csi_pb2_grpc.IdentityStub(channel), csi_pb2_grpc.NodeStub(channel))
        wait_until(lambda: socket.exists() or process.poll() is not None, "the start of the plugin")
        assert process.poll() is None, (folder / "csi.log").read_text()
        plugin.identity.Probe(csi_pb2.ProbeRequest(), timeout=CALL_TIMEOUT_S, wait_for_ready=True)
        yield plugin
