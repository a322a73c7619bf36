"""The two services over gRPC: message, call, message.

Source: Container Storage Interface, "Identity Service RPC" and "Node Service RPC".
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import grpc
import structlog
from google.protobuf.wrappers_pb2 import BoolValue

from fs.errors import MountingError
from snapshotter._proto import csi_pb2 as messages
from snapshotter._proto import csi_pb2_grpc as stubs
from snapshotter.csi.errors import VolumeBusyError, VolumeError, VolumeUnavailableError
from snapshotter.csi.requests import parse_source, require_mountable, required, required_path
from snapshotter.csi.volumes import Volumes
from snapshotter.hanging import PatientThreads, ThreadsExhaustedError

_log = structlog.get_logger()
_T = TypeVar("_T")
_THREADS = 16
_TIMEOUT_S = 20.0
_CAPABILITIES = ("STAGE_UNSTAGE_VOLUME", "GET_VOLUME_STATS", "VOLUME_CONDITION")


class IdentityService(stubs.IdentityServicer):  # type: ignore[misc]  # generated code has no types
    """Who the plugin is."""

    def __init__(self, name: str, volumes: Volumes) -> None:
        self._name = name
        self._volumes = volumes

    async def GetPluginInfo(  # noqa: N802  # the service's own name, like all below
        self, _: messages.GetPluginInfoRequest, _context: grpc.aio.ServicerContext
    ) -> messages.GetPluginInfoResponse:
        """Name and version."""
        return messages.GetPluginInfoResponse(name=self._name, vendor_version=metadata.version("unpackd"))

    async def GetPluginCapabilities(  # noqa: N802
        self, _: messages.GetPluginCapabilitiesRequest, _context: grpc.aio.ServicerContext
    ) -> messages.GetPluginCapabilitiesResponse:
        """None: there is no controller."""
        return messages.GetPluginCapabilitiesResponse()

    async def Probe(  # noqa: N802
        self, _: messages.ProbeRequest, _context: grpc.aio.ServicerContext
    ) -> messages.ProbeResponse:
        """Whether repositories can be here."""
        return messages.ProbeResponse(ready=BoolValue(value=self._volumes.is_ready()))


class NodeService(stubs.NodeServicer):  # type: ignore[misc]  # generated code has no types
    """Volumes of this machine. Calls for one volume exclude each other."""

    def __init__(self, node: str, volumes: Volumes, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._node = node
        self._volumes = volumes
        self._threads = PatientThreads(limit=_THREADS, timeout_s=timeout_s)
        self._busy: set[str] = set()

    async def NodeStageVolume(  # noqa: N802
        self, request: messages.NodeStageVolumeRequest, context: grpc.aio.ServicerContext
    ) -> messages.NodeStageVolumeResponse:
        """Show a volume for all pods of this machine."""
        async with self._call(context, "NodeStageVolume", request.volume_id):
            staging = required_path(request.staging_target_path, "staging_target_path")
            require_mountable(request.volume_capability.WhichOneof("access_type"))
            source = parse_source(request.volume_context)
            await self._run(lambda: self._volumes.stage(source, staging))
            return messages.NodeStageVolumeResponse()

    async def NodeUnstageVolume(  # noqa: N802
        self, request: messages.NodeUnstageVolumeRequest, context: grpc.aio.ServicerContext
    ) -> messages.NodeUnstageVolumeResponse:
        """Take that away."""
        async with self._call(context, "NodeUnstageVolume", request.volume_id):
            staging = required_path(request.staging_target_path, "staging_target_path")
            await self._run(lambda: self._volumes.hide(staging))
            return messages.NodeUnstageVolumeResponse()

    async def NodePublishVolume(  # noqa: N802
        self, request: messages.NodePublishVolumeRequest, context: grpc.aio.ServicerContext
    ) -> messages.NodePublishVolumeResponse:
        """Show a volume in a pod's directory."""
        async with self._call(context, "NodePublishVolume", request.volume_id):
            target = required_path(request.target_path, "target_path")
            given = request.staging_target_path
            staging = required_path(given, "staging_target_path") if given else None
            require_mountable(request.volume_capability.WhichOneof("access_type"))
            source = parse_source(request.volume_context)
            await self._run(lambda: self._volumes.publish(source, staging, target))
            return messages.NodePublishVolumeResponse()

    async def NodeUnpublishVolume(  # noqa: N802
        self, request: messages.NodeUnpublishVolumeRequest, context: grpc.aio.ServicerContext
    ) -> messages.NodeUnpublishVolumeResponse:
        """Take that away."""
        async with self._call(context, "NodeUnpublishVolume", request.volume_id):
            target = required_path(request.target_path, "target_path")
            await self._run(lambda: self._volumes.hide(target))
            return messages.NodeUnpublishVolumeResponse()

    async def NodeGetVolumeStats(  # noqa: N802
        self, request: messages.NodeGetVolumeStatsRequest, context: grpc.aio.ServicerContext
    ) -> messages.NodeGetVolumeStatsResponse:
        """How large a volume is, and whether it can be read."""
        async with _translated(context, "NodeGetVolumeStats", request.volume_id):
            required(request.volume_id, "volume_id")
            target = Path(required(request.volume_path, "volume_path"))  # one that is not absolute is no volume
            usage = await self._run(lambda: self._volumes.usage(target))
            kinds = messages.VolumeUsage.Unit
            return messages.NodeGetVolumeStatsResponse(
                usage=[
                    _usage(kinds.BYTES, usage.total_bytes, usage.available_bytes),
                    _usage(kinds.INODES, usage.total_inodes, usage.available_inodes),
                ],
                volume_condition={"abnormal": bool(usage.problem), "message": usage.problem or "readable"},
            )

    async def NodeGetCapabilities(  # noqa: N802
        self, _: messages.NodeGetCapabilitiesRequest, _context: grpc.aio.ServicerContext
    ) -> messages.NodeGetCapabilitiesResponse:
        """Staging, sizes and conditions."""
        kinds = messages.NodeServiceCapability.RPC.Type
        return messages.NodeGetCapabilitiesResponse(
            capabilities=[{"rpc": {"type": kinds.Value(name)}} for name in _CAPABILITIES]
        )

    async def NodeGetInfo(  # noqa: N802
        self, _: messages.NodeGetInfoRequest, _context: grpc.aio.ServicerContext
    ) -> messages.NodeGetInfoResponse:
        """What this machine is called; it takes any number of volumes."""
        return messages.NodeGetInfoResponse(node_id=self._node)

    @asynccontextmanager
    async def _call(self, context: grpc.aio.ServicerContext, call: str, volume: str) -> AsyncIterator[None]:
        """Around a call for *volume*, which no other one may be for at the same time."""
        async with _translated(context, call, volume):
            required(volume, "volume_id")
            if volume in self._busy:
                raise VolumeBusyError(f"another call for the volume {volume} is not finished")
            self._busy.add(volume)
            try:
                yield
            finally:
                self._busy.discard(volume)

    async def _run(self, function: Callable[[], _T]) -> _T:
        try:
            return await self._threads.run(function)
        except ThreadsExhaustedError as error:
            raise VolumeUnavailableError("earlier calls still hang") from error
        except TimeoutError as error:
            raise VolumeUnavailableError("the repository does not answer in time") from error


def _usage(unit: int, total: int, available: int) -> messages.VolumeUsage:
    return messages.VolumeUsage(unit=unit, total=total, available=available, used=total - available)


@asynccontextmanager
async def _translated(context: grpc.aio.ServicerContext, call: str, volume: str) -> AsyncIterator[None]:
    """Around a call: errors become statuses, and those of this side are logged."""
    try:
        yield
    except VolumeError as error:
        _log.info("call_refused", call=call, volume=volume, status=error.code.name, reason=str(error))
        await context.abort(error.code, str(error))
    except (MountingError, OSError) as error:
        _log.warning("call_failed", call=call, volume=volume, reason=str(error))
        await context.abort(grpc.StatusCode.INTERNAL, str(error))
