"""Making the snapshots of an image in containerd: served ones are only asked for, others are fetched and unpacked.

This is what containerd's own unpacker does from 2.0 on, and what its older clients leave out.

Source: containerd, "Remote snapshotter"; ``core/unpack/unpacker.go``.
"""

import secrets
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum

import anyio
import grpc

from snapshotter._proto import diff_pb2, snapshots_pb2, types_pb2
from snapshotter.containerd import CALL_TIMEOUT_S, Containerd, Metadata
from snapshotter.content import Blob, ContentStore
from snapshotter.errors import ContainerdAbsentError, LayerMismatchError, PullError
from snapshotter.fetching import Fetches, fetching_ahead
from snapshotter.labels import (
    CRI_IMAGE_LAYERS,
    CRI_IMAGE_REF,
    CRI_LAYER_DIGEST,
    CRI_MANIFEST_DIGEST,
    LIMIT_BYTES,
    SNAPSHOT_REF,
)

_ATTEMPTS = 3
_APPLY_TIMEOUT_S = 3600.0
_UNCOMPRESSED = "containerd.io/uncompressed"


class Outcome(StrEnum):
    """How a layer came to be a snapshot."""

    PRESENT = "present"
    SERVED = "served"
    UNPACKED = "unpacked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of the image that is pulled."""

    media_type: str
    digest: str
    size_bytes: int
    diff_id: str
    chain_id: str
    parent_chain_id: str  # empty for the first


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacking:
    """What all layers of one pull share.

    ``fetch`` gives the verified bytes of a layer's blob; ``content_labels`` go with it into the content store.
    """

    containerd: Containerd
    snapshotter: str
    image_name: str
    manifest_digest: str
    metadata: Metadata
    fetch: Callable[[Layer], AbstractAsyncContextManager[AsyncIterable[bytes]]]
    content_labels: Mapping[str, str]

    async def is_present(self, chain_id: str) -> bool:
        """True if the namespace has the snapshot. Raises ContainerdError."""
        request = snapshots_pb2.StatSnapshotRequest(snapshotter=self.snapshotter, key=chain_id)
        try:
            async with self.containerd.errors(f"looking for a snapshot of {self.snapshotter}"):
                await self.containerd.snapshots.Stat(request, metadata=self.metadata, timeout=CALL_TIMEOUT_S)
        except ContainerdAbsentError:
            return False
        return True

    async def unpack(self, layers: Sequence[Layer]) -> tuple[Outcome, ...]:
        """Make the snapshots of *layers*, lowest first; tells how each was made.

        Raises:
            ContainerdError: containerd refused something.
            PullError: the snapshotter says that it serves a layer, and then it is not there.
            LayerMismatchError: a layer is not what the config says.
            ProxyError: what the registry has to say.
        """
        by_digest = {layer.digest: layer for layer in layers}
        async with fetching_ahead(lambda digest: self._store(by_digest[digest])) as fetches:
            outcomes: list[Outcome] = []
            for layer in layers:
                outcomes.append(await self._unpack(layer, layers, fetches))
                if outcomes[-1] is not Outcome.UNPACKED:
                    fetches.drop(layer.digest)
            return tuple(outcomes)

    async def _unpack(self, layer: Layer, layers: Sequence[Layer], fetches: Fetches) -> Outcome:
        """Make the snapshot of *layer*, one of *layers*, whose parent is there."""
        labels = layer_labels(
            layers, layers.index(layer), image_name=self.image_name, manifest_digest=self.manifest_digest
        )
        for _ in range(_ATTEMPTS):
            if await self.is_present(layer.chain_id):
                return Outcome.PRESENT
            key = f"extract-{secrets.token_hex(8)} {layer.chain_id}"
            request = snapshots_pb2.PrepareSnapshotRequest(
                snapshotter=self.snapshotter, key=key, parent=layer.parent_chain_id, labels=labels
            )
            async with self.containerd.errors(f"preparing layer {layer.digest}"):
                mounts = await self._prepare(request)
            if mounts is not None:
                fetches.begin(one.digest for one in layers[layers.index(layer) :])
                await self._fill(layer, key, mounts, fetches)
                return Outcome.UNPACKED
            if await self.is_present(layer.chain_id):
                return Outcome.SERVED
        raise PullError(f"{self.snapshotter} says that it serves {layer.chain_id}, but containerd does not find it")

    async def _prepare(self, request: snapshots_pb2.PrepareSnapshotRequest) -> Sequence[types_pb2.Mount] | None:
        """Mounts to unpack on, None if the snapshotter has the layer. Raises AioRpcError."""
        try:
            reply = await self.containerd.snapshots.Prepare(request, metadata=self.metadata, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.ALREADY_EXISTS:
                return None
            raise
        mounts: Sequence[types_pb2.Mount] = reply.mounts
        return mounts

    async def _fill(self, layer: Layer, key: str, mounts: Sequence[types_pb2.Mount], fetches: Fetches) -> None:
        """Wait for the blob, unpack it onto *mounts* and commit; the Active snapshot goes if that fails."""
        try:
            await fetches.wait(layer.digest)
            await self._apply(layer, mounts)
            await self._commit(layer, key)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._remove(key)
            raise

    async def _store(self, layer: Layer) -> None:
        """Fetch a blob into the content store."""
        blob = Blob(
            digest=layer.digest,
            size_bytes=layer.size_bytes,
            labels={**self.content_labels, _UNCOMPRESSED: layer.diff_id},
        )
        async with self.fetch(layer) as parts:
            await ContentStore(self.containerd, self.metadata).write(blob, parts)

    async def _apply(self, layer: Layer, mounts: Sequence[types_pb2.Mount]) -> None:
        blob = types_pb2.Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size_bytes)
        request = diff_pb2.ApplyRequest(diff=blob, mounts=mounts)
        async with self.containerd.errors(f"unpacking layer {layer.digest}"):
            reply = await self.containerd.diff.Apply(request, metadata=self.metadata, timeout=_APPLY_TIMEOUT_S)
        if reply.applied.digest != layer.diff_id:
            raise LayerMismatchError(
                f"layer {layer.digest} unpacks to {reply.applied.digest}, the image's config says {layer.diff_id}",
            )

    async def _commit(self, layer: Layer, key: str) -> None:
        request = snapshots_pb2.CommitSnapshotRequest(
            snapshotter=self.snapshotter,
            name=layer.chain_id,
            key=key,
            labels={SNAPSHOT_REF: layer.chain_id},
        )
        async with self.containerd.errors(f"committing layer {layer.digest}"):
            try:
                await self.containerd.snapshots.Commit(request, metadata=self.metadata, timeout=CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                    raise
                await self._remove(key)  # another pull of the same layer was quicker

    async def _remove(self, key: str) -> None:
        """Remove an Active snapshot; what cannot be removed is collected when the lease is gone."""
        request = snapshots_pb2.RemoveSnapshotRequest(snapshotter=self.snapshotter, key=key)
        try:
            await self.containerd.snapshots.Remove(request, metadata=self.metadata, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return


def layer_labels(layers: Sequence[Layer], number: int, *, image_name: str, manifest_digest: str) -> dict[str, str]:
    """Labels with which the layer *number* is asked for: its ChainID, and what pullers with annotations add.

    The list of layers holds this one and those above it, as many as fit into a label.

    Source: containerd, ``pkg/snapshotters/annotations.go``.
    """
    listed = ""
    for layer in layers[number:]:
        longer = f"{listed},{layer.digest}" if listed else layer.digest
        if len(CRI_IMAGE_LAYERS) + len(longer) > LIMIT_BYTES:
            break
        listed = longer
    return {
        SNAPSHOT_REF: layers[number].chain_id,
        CRI_IMAGE_REF: image_name,
        CRI_LAYER_DIGEST: layers[number].digest,
        CRI_IMAGE_LAYERS: listed,
        CRI_MANIFEST_DIGEST: manifest_digest,
    }
