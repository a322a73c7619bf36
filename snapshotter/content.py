"""Writing into containerd's content store.

Source: containerd, ``api/services/content/v1/content.proto``.
"""

import secrets
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from dataclasses import dataclass, field

import anyio
import grpc

from snapshotter._proto import content_pb2
from snapshotter.containerd import CALL_TIMEOUT_S, Containerd, Metadata
from snapshotter.errors import ContainerdError

_PIECE_BYTES = 1024 * 1024
_STREAM_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """What is stored, and the labels that it gets."""

    digest: str
    size_bytes: int
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ContentStore:
    """The content store as one namespace and one lease, both in *metadata*, see it."""

    containerd: Containerd
    metadata: Metadata

    async def write_bytes(self, blob: Blob, body: bytes) -> None:
        """Store a small document. Raises ContainerdError."""

        async def whole() -> AsyncIterator[bytes]:
            yield body

        await self.write(blob, whole())

    async def write(self, blob: Blob, parts: AsyncIterable[bytes]) -> None:
        """Store *parts*; content that is there already only gets the labels, and *parts* is not asked.

        containerd compares size and digest before the blob can be seen. What was written of a blob that fails is
        dropped.

        Raises:
            ContainerdError: containerd refused it.
        """
        reference = f"unpackd-{secrets.token_hex(8)}-{blob.digest}"
        async with self.containerd.errors(f"storing {blob.digest}"):
            call = self.containerd.content.Write(metadata=self.metadata, timeout=_STREAM_TIMEOUT_S)
            try:
                await _send(call, reference, blob, parts)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                    await self._abort(reference)
                    raise
                await self._relabel(blob)
            except BaseException:
                call.cancel()
                await self._abort(reference)
                raise

    async def _relabel(self, blob: Blob) -> None:
        if not blob.labels:
            return
        request = content_pb2.UpdateRequest(info={"digest": blob.digest, "labels": dict(blob.labels)})
        request.update_mask.paths.extend(f"labels.{key}" for key in blob.labels)
        await self.containerd.content.Update(request, metadata=self.metadata, timeout=CALL_TIMEOUT_S)

    async def _abort(self, reference: str) -> None:
        """Drop what was written so far; if that fails containerd drops it itself some day."""
        with anyio.CancelScope(shield=True):
            try:
                request = content_pb2.AbortRequest(ref=reference)
                await self.containerd.content.Abort(request, metadata=self.metadata, timeout=CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError:
                return


async def _send(call: grpc.aio.StreamStreamCall, reference: str, blob: Blob, parts: AsyncIterable[bytes]) -> None:
    """Offer the blob, then its pieces one at a time, then commit. Raises AioRpcError, ContainerdError."""

    async def ask(action: int, offset: int, data: bytes = b"") -> None:
        request = content_pb2.WriteContentRequest(
            action=action,
            ref=reference,
            total=blob.size_bytes,
            expected=blob.digest,
            offset=offset,
            data=data,
            labels=blob.labels if action == content_pb2.COMMIT else None,
        )
        await call.write(request)
        if await call.read() is grpc.aio.EOF:
            raise ContainerdError(f"containerd ended the transfer of {blob.digest}")

    await ask(content_pb2.STAT, 0)  # what is there already is refused here, before anything is fetched
    offset = 0
    async for part in parts:
        for start in range(0, len(part), _PIECE_BYTES):
            piece = part[start : start + _PIECE_BYTES]
            await ask(content_pb2.WRITE, offset, piece)
            offset += len(piece)
    await ask(content_pb2.COMMIT, offset)
    await call.done_writing()
