"""The snapshots service over gRPC: message, call, message; nothing is decided here.

Source: containerd, ``api/services/snapshots/v1/snapshots.proto``.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import grpc
import structlog
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from snapshotter._proto import snapshots_pb2 as messages
from snapshotter._proto import snapshots_pb2_grpc as stubs
from snapshotter._proto import types_pb2
from snapshotter.errors import SnapshotterError
from snapshotter.figures import Figures
from snapshotter.mounts import Mount
from snapshotter.operations import Snapshotter
from snapshotter.snapshots import Info
from snapshotter.statuses import status_of, status_of_fault

_log = structlog.get_logger()
_NANOSECONDS = 1_000_000_000


class SnapshotsService(stubs.SnapshotsServicer):  # type: ignore[misc]  # generated code has no types
    """Serves a Snapshotter."""

    def __init__(self, snapshotter: Snapshotter, figures: Figures) -> None:
        self._snapshotter = snapshotter
        self._figures = figures

    async def Prepare(  # noqa: N802  # the service's own name, like all below
        self, request: messages.PrepareSnapshotRequest, context: grpc.aio.ServicerContext
    ) -> messages.PrepareSnapshotResponse:
        """Make an Active snapshot."""
        async with self._translated(context, "Prepare", request.key):
            mounts = await self._snapshotter.prepare(request.key, request.parent, dict(request.labels))
            return messages.PrepareSnapshotResponse(mounts=_mounts(mounts))

    async def View(  # noqa: N802
        self, request: messages.ViewSnapshotRequest, context: grpc.aio.ServicerContext
    ) -> messages.ViewSnapshotResponse:
        """Make a View."""
        async with self._translated(context, "View", request.key):
            mounts = await self._snapshotter.view(request.key, request.parent, dict(request.labels))
            return messages.ViewSnapshotResponse(mounts=_mounts(mounts))

    async def Mounts(  # noqa: N802
        self, request: messages.MountsRequest, context: grpc.aio.ServicerContext
    ) -> messages.MountsResponse:
        """Mounts of an Active snapshot or a View."""
        async with self._translated(context, "Mounts", request.key):
            return messages.MountsResponse(mounts=_mounts(await self._snapshotter.mounts(request.key)))

    async def Commit(  # noqa: N802
        self, request: messages.CommitSnapshotRequest, context: grpc.aio.ServicerContext
    ) -> Empty:
        """Make an Active snapshot a Committed one."""
        async with self._translated(context, "Commit", request.key):
            await self._snapshotter.commit(request.name, request.key, request.parent, dict(request.labels))
            return Empty()

    async def Remove(  # noqa: N802
        self, request: messages.RemoveSnapshotRequest, context: grpc.aio.ServicerContext
    ) -> Empty:
        """Remove a snapshot."""
        async with self._translated(context, "Remove", request.key):
            await self._snapshotter.remove(request.key)
            return Empty()

    async def Stat(  # noqa: N802
        self, request: messages.StatSnapshotRequest, context: grpc.aio.ServicerContext
    ) -> messages.StatSnapshotResponse:
        """Say what a snapshot is."""
        async with self._translated(context, "Stat", request.key):
            return messages.StatSnapshotResponse(info=_info(await self._snapshotter.stat(request.key)))

    async def Update(  # noqa: N802
        self, request: messages.UpdateSnapshotRequest, context: grpc.aio.ServicerContext
    ) -> messages.UpdateSnapshotResponse:
        """Change labels."""
        async with self._translated(context, "Update", request.info.name):
            paths = tuple(request.update_mask.paths)
            info = await self._snapshotter.update(request.info.name, dict(request.info.labels), paths)
            return messages.UpdateSnapshotResponse(info=_info(info))

    async def List(  # noqa: N802
        self, request: messages.ListSnapshotsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[messages.ListSnapshotsResponse]:
        """Stream what matches the filters."""
        async with self._translated(context, "List", ""):
            async for block in self._snapshotter.listed(tuple(request.filters)):
                yield messages.ListSnapshotsResponse(info=[_info(info) for info in block])

    async def Usage(  # noqa: N802
        self, request: messages.UsageRequest, context: grpc.aio.ServicerContext
    ) -> messages.UsageResponse:
        """Measure a snapshot."""
        async with self._translated(context, "Usage", request.key):
            usage = await self._snapshotter.usage(request.key)
            return messages.UsageResponse(size=usage.size_bytes, inodes=usage.inodes)

    async def Cleanup(  # noqa: N802
        self, request: messages.CleanupRequest, context: grpc.aio.ServicerContext
    ) -> Empty:
        """Delete what is left of removed snapshots."""
        async with self._translated(context, "Cleanup", request.snapshotter):
            await self._snapshotter.cleanup()
            return Empty()

    @asynccontextmanager
    async def _translated(self, context: grpc.aio.ServicerContext, method: str, key: str) -> AsyncIterator[None]:
        """End the call with the status of the error that the body raises, whatever it is."""
        with self._figures.timed(method):
            try:
                yield
            except SnapshotterError as error:
                _log.debug("call_refused", method=method, key=key, error=str(error))
                self._figures.failures[method, status_of(error).name] += 1
                await context.abort(status_of(error), str(error))
            except Exception as error:  # noqa: BLE001  # the edge: containerd gets a status, the log gets the rest
                _log.exception("call_failed", method=method, key=key)
                status = status_of_fault(error)
                self._figures.failures[method, status.name] += 1
                full = status is grpc.StatusCode.RESOURCE_EXHAUSTED
                reason = "no space left in the snapshotter's directory" if full else type(error).__name__
                await context.abort(status, f"{method} failed: {reason}")


def _mounts(mounts: Iterable[Mount]) -> list[types_pb2.Mount]:
    return [types_pb2.Mount(type=mount.type, source=mount.source, options=mount.options) for mount in mounts]


def _info(info: Info) -> messages.Info:
    return messages.Info(
        name=info.name,
        parent=info.parent,
        kind=int(info.kind),
        created_at=_timestamp(info.created_ns),
        updated_at=_timestamp(info.updated_ns),
        labels=dict(info.labels),
    )


def _timestamp(time_ns: int) -> Timestamp:
    seconds, nanos = divmod(time_ns, _NANOSECONDS)
    return Timestamp(seconds=seconds, nanos=nanos)
