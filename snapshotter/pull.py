"""Pulling an image into containerd without its layers.

Manifest and config go into the content store, snapshots are asked for layer by layer, the image record comes last.
All of it happens under a lease, so that a garbage collection in between takes nothing away, and a pull that fails
leaves nothing that stays.
"""

import platform
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import anyio
import grpc

from registry_proxy.client import FetchedManifest, RegistryClient
from registry_proxy.oci.manifest import (
    Descriptor,
    ImageIndex,
    ImageManifest,
    Platform,
    parse_config,
    select_platform,
)
from registry_proxy.oci.reference import Reference
from snapshotter._proto import images_pb2, leases_pb2, types_pb2
from snapshotter.containerd import CALL_TIMEOUT_S, Containerd, Metadata
from snapshotter.content import Blob, ContentStore
from snapshotter.errors import PullError
from snapshotter.snapshots import chain_ids
from snapshotter.unpack import Layer, Outcome, Unpacking

_LEASE = timedelta(hours=24)


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    """What is pulled, and where to."""

    reference: Reference
    namespace: str
    snapshotter: str
    platform: Platform


@dataclass(frozen=True, slots=True, kw_only=True)
class PullResult:
    """What a pull did."""

    image: str
    digest: str
    namespace: str
    snapshotter: str
    layers_total: int
    layers_present: int
    layers_served: int
    layers_unpacked: int
    bytes_fetched: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Image:
    """An image as its documents describe it."""

    name: str
    index: FetchedManifest | None
    fetched: FetchedManifest
    manifest: ImageManifest
    config: bytes
    layers: tuple[Layer, ...]

    @property
    def target(self) -> FetchedManifest:
        """What the image's name stands for."""
        return self.index or self.fetched


@dataclass(frozen=True, slots=True)
class Puller:
    """Pulls through one connection to containerd and one to the registries.

    ``advance`` is called with bytes as they arrive.
    """

    containerd: Containerd
    registry: RegistryClient
    advance: Callable[[int], None]

    async def pull(self, request: PullRequest) -> PullResult:
        """Pull one image.

        Raises:
            ContainerdError: containerd cannot be reached or refused something.
            PullError: the image cannot be pulled as it is.
            ProxyError: what the registry has to say.
        """
        started_s = time.monotonic()
        image = await self._resolve(request)
        async with self._leased(request.namespace) as metadata:
            store = ContentStore(self.containerd, metadata)
            await self._store_documents(store, request, image)
            fetched_bytes, outcomes = await self._unpack(request, image, metadata)
            await self._record(image, metadata)
        documents = [image.fetched.body, image.config, *([image.index.body] if image.index else [])]
        return PullResult(
            image=image.name,
            digest=str(image.target.digest),
            namespace=request.namespace,
            snapshotter=request.snapshotter,
            layers_total=len(image.layers),
            layers_present=outcomes.count(Outcome.PRESENT),
            layers_served=outcomes.count(Outcome.SERVED),
            layers_unpacked=outcomes.count(Outcome.UNPACKED),
            bytes_fetched=fetched_bytes + sum(len(document) for document in documents),
            seconds=round(time.monotonic() - started_s, 3),
        )

    async def _resolve(self, request: PullRequest) -> _Image:
        """Fetch the documents of the image for the wanted platform."""
        fetched = await self.registry.manifest(request.reference)
        index = None
        if isinstance(fetched.document, ImageIndex):
            index = fetched
            chosen = select_platform(fetched.document, request.platform)
            fetched = await self.registry.manifest(request.reference.with_digest(chosen.digest))
        if not isinstance(fetched.document, ImageManifest):
            raise PullError(f"{request.reference}: an index inside an index is not an image")
        manifest = fetched.document
        config = await self.registry.blob_bytes(request.reference, manifest.config)
        return _Image(
            name=str(replace(request.reference, scheme=None)),
            index=index,
            fetched=fetched,
            manifest=manifest,
            config=config,
            layers=_layers(manifest, [str(diff_id) for diff_id in parse_config(config).diff_ids]),
        )

    @asynccontextmanager
    async def _leased(self, namespace: str) -> AsyncIterator[Metadata]:
        """Metadata of calls under a lease, which ends with the block, or by itself some time after a crash."""
        base: Metadata = (("containerd-namespace", namespace),)
        expiry = (datetime.now(UTC) + _LEASE).isoformat(timespec="seconds")
        request = leases_pb2.CreateRequest(
            id=f"unpackd-pull-{secrets.token_hex(8)}",
            labels={"containerd.io/gc.expire": expiry},
        )
        async with self.containerd.errors("making a lease"):
            await self.containerd.leases.Create(request, metadata=base, timeout=CALL_TIMEOUT_S)
        try:
            yield (*base, ("containerd-lease", request.id))
        finally:
            with anyio.CancelScope(shield=True):
                await self._release(request.id, base)

    async def _release(self, lease: str, metadata: Metadata) -> None:
        """End a lease; one that cannot be ended expires."""
        try:
            request = leases_pb2.DeleteRequest(id=lease)
            await self.containerd.leases.Delete(request, metadata=metadata, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return

    async def _store_documents(self, store: ContentStore, request: PullRequest, image: _Image) -> None:
        """Config, manifest, index; each with labels that keep alive what it names.

        Source: containerd, "Garbage Collection", labels ``containerd.io/gc.ref.content`` and ``gc.ref.snapshot``.
        """
        origin = _origin_label(request.reference)
        top = (
            {f"containerd.io/gc.ref.snapshot.{request.snapshotter}": image.layers[-1].chain_id} if image.layers else {}
        )
        config_digest = str(image.manifest.config.digest)
        await store.write_bytes(
            Blob(digest=config_digest, size_bytes=len(image.config), labels={**origin, **top}), image.config
        )
        children = {"containerd.io/gc.ref.content.config": config_digest}
        children |= {f"containerd.io/gc.ref.content.l.{n}": layer.digest for n, layer in enumerate(image.layers)}
        await _store_manifest(store, image.fetched, {**origin, **children})
        if image.index is not None and isinstance(image.index.document, ImageIndex):
            manifests = image.index.document.manifests
            children = {f"containerd.io/gc.ref.content.m.{n}": str(one.digest) for n, one in enumerate(manifests)}
            await _store_manifest(store, image.index, {**origin, **children})

    async def _unpack(self, request: PullRequest, image: _Image, metadata: Metadata) -> tuple[int, Sequence[Outcome]]:
        """Make all snapshots; gives the bytes of layers that were fetched, and how each layer was made."""
        descriptors = {str(descriptor.digest): descriptor for descriptor in image.manifest.layers}

        def fetch(layer: Layer) -> AbstractAsyncContextManager[AsyncIterable[bytes]]:
            return self._counted(request.reference, descriptors[layer.digest])

        unpacking = Unpacking(
            containerd=self.containerd,
            snapshotter=request.snapshotter,
            image_name=image.name,
            manifest_digest=str(image.fetched.digest),
            metadata=metadata,
            fetch=fetch,
            content_labels=_origin_label(request.reference),
        )
        if image.layers and await unpacking.is_present(image.layers[-1].chain_id):
            return 0, [Outcome.PRESENT] * len(image.layers)
        outcomes = await unpacking.unpack(image.layers)
        made = zip(image.layers, outcomes, strict=True)
        return sum(layer.size_bytes for layer, outcome in made if outcome is Outcome.UNPACKED), outcomes

    @asynccontextmanager
    async def _counted(self, reference: Reference, descriptor: Descriptor) -> AsyncIterator[AsyncIterable[bytes]]:
        """The verified bytes of a blob; the caller of the pull hears how many."""
        async with self.registry.blob(reference, descriptor) as parts:

            async def counted() -> AsyncIterator[bytes]:
                async for part in parts:
                    self.advance(len(part))
                    yield part

            yield counted()

    async def _record(self, image: _Image, metadata: Metadata) -> None:
        """Create the image's record, or let it name what was pulled now."""
        target = types_pb2.Descriptor(
            media_type=image.target.media_type,
            digest=str(image.target.digest),
            size=len(image.target.body),
        )
        record = images_pb2.Image(name=image.name, target=target)
        async with self.containerd.errors(f"recording {image.name}"):
            try:
                create = images_pb2.CreateImageRequest(image=record)
                await self.containerd.images.Create(create, metadata=metadata, timeout=CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                    raise
                update = images_pb2.UpdateImageRequest(image=record)
                update.update_mask.paths.append("target")
                await self.containerd.images.Update(update, metadata=metadata, timeout=CALL_TIMEOUT_S)


def host_platform() -> Platform:
    """What images have to be made for to run here."""
    return Platform.parse(f"linux/{platform.machine()}")


def _layers(manifest: ImageManifest, diff_ids: Sequence[str]) -> tuple[Layer, ...]:
    """The layers with their ChainIDs, lowest first. Raises PullError."""
    if len(diff_ids) != len(manifest.layers):
        raise PullError(f"the manifest has {len(manifest.layers)} layers, the config {len(diff_ids)}")
    chain = chain_ids(diff_ids)
    return tuple(
        Layer(
            media_type=descriptor.media_type,
            digest=str(descriptor.digest),
            size_bytes=descriptor.size_bytes,
            diff_id=diff_id,
            chain_id=chain_id,
            parent_chain_id=below,
        )
        for descriptor, diff_id, chain_id, below in zip(
            manifest.layers, diff_ids, chain, ("", *chain[:-1]), strict=True
        )
    )


def _origin_label(reference: Reference) -> dict[str, str]:
    """Where content came from, as containerd's own pullers note it."""
    return {f"containerd.io/distribution.source.{reference.registry}": reference.repository}


async def _store_manifest(store: ContentStore, fetched: FetchedManifest, labels: dict[str, str]) -> None:
    blob = Blob(digest=str(fetched.digest), size_bytes=len(fetched.body), labels=labels)
    await store.write_bytes(blob, fetched.body)
