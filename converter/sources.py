"""Where images come from: registries, OCI layouts, archives. All of them are verified in the same way."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import anyio.to_thread

from converter.errors import (
    ImageRefusedError,
    SourceSyntaxError,
)
from converter.names import published_name
from registry_proxy.oci.digest import Digest
from registry_proxy.oci.manifest import (
    Descriptor,
    ImageManifest,
    Platform,
    parse_manifest,
    select_platform,
)
from registry_proxy.oci.reference import Reference

if TYPE_CHECKING:
    from registry_proxy.client import RegistryClient

_MAX_INDEXES = 4  # an index may lead to an index
OCI, OCI_ARCHIVE, DOCKER_ARCHIVE, DOCKER_DAEMON = "oci", "oci-archive", "docker-archive", "docker-daemon"
ROOTFS = "rootfs"
_LOCAL_KINDS = frozenset((OCI, OCI_ARCHIVE, DOCKER_ARCHIVE, ROOTFS))
_TARBALL = re.compile(r"(.*)\.(?:tar|tar\.gz|tgz|tar\.zst|tar\.zstd)")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundImage:
    """The image for one platform; all bytes are those that the digests name."""

    resolved: Digest  # what the name leads to: an index or the manifest
    manifest_digest: Digest
    manifest_bytes: bytes
    manifest: ImageManifest
    index_bytes: bytes | None


class OpenSource(Protocol):
    """An image that can be read."""

    @property
    def name(self) -> str:
        """The name that the repository gives to the image: ``registry/repository:tag``."""
        ...

    async def resolve(self) -> Digest:
        """What the name leads to now."""
        ...

    async def find(self, resolved: Digest, platform: Platform) -> FoundImage:
        """The image for *platform* below *resolved*."""
        ...

    async def platforms(self, resolved: Digest) -> list[Platform]:
        """The platforms that the index *resolved* has images for, in its order; none if it is no index."""
        ...

    async def config(self, descriptor: Descriptor) -> bytes:
        """A config blob, verified."""
        ...

    def blob(self, descriptor: Descriptor) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """A blob in pieces; what is wrong with it is raised before the last one is given."""
        ...


@dataclass(frozen=True, slots=True)
class ImageSource:
    """The name of an image as a user gives it; ``str()`` is that text again."""

    text: str
    kind: str  # "registry", "oci", "oci-archive", "docker-archive", "docker-daemon", "rootfs"
    reference: Reference | None = None  # of registries
    path: Path | None = None  # of the others
    tag: str | None = None  # of the others

    def __str__(self) -> str:
        return self.text

    def open(self, client: "RegistryClient | None" = None) -> AbstractAsyncContextManager[OpenSource]:
        """Get ready to read the image; a *client* that is given is used and left open."""
        if self.kind == DOCKER_DAEMON:
            return _open_daemon(self)
        if self.kind == ROOTFS:
            return _open_rootfs(self)
        if self.reference is not None:
            return _open_registry(self.reference, published_name(self.text), client)
        return _open_local(self)


def parse_source(text: str) -> ImageSource:
    """Read the name of an image, in a registry or in files.

    Forms: ``registry/repo[:tag][@digest]``, ``docker://…``, ``oci:DIR[:TAG]``, ``oci-archive:FILE[:TAG]``,
    ``docker-archive:FILE[:REF]``, ``docker-daemon:REF``, ``rootfs:FILE``; and FILE alone if it is there, and called
    ``….tar``, ``….tar.gz``, ``….tgz`` or ``….tar.zst``: a tar of a root file system.

    Raises:
        SourceSyntaxError: a local source without a path.
        ReferenceSyntaxError: the name of an image in a registry is malformed.
    """
    kind, colon, rest = text.partition(":")
    if colon and kind == DOCKER_DAEMON:
        if not rest:
            raise SourceSyntaxError(f"{text!r} is not a source of an image: write {kind}:REFERENCE")
        return ImageSource(text, kind, tag=rest)
    if _TARBALL.fullmatch(text) is not None and (kind not in _LOCAL_KINDS or not colon) and Path(text).is_file():
        return ImageSource(text, ROOTFS, path=Path(text).absolute())
    if not colon or kind not in _LOCAL_KINDS:
        return ImageSource(text, "registry", reference=Reference.parse(text))
    path, colon, tag = rest.partition(":")
    if not path or (colon and not tag):
        raise SourceSyntaxError(f"{text!r} is not a source of an image: write {kind}:PATH or {kind}:PATH:TAG")
    return ImageSource(text, kind, path=Path(path).absolute(), tag=tag or None)


def tarball_stem(name: str) -> str:
    """The name of a file without what says that it is a tar."""
    match = _TARBALL.fullmatch(name)
    return name if match is None else match[1]


# --- registries


@asynccontextmanager
async def _open_registry(reference: Reference, name: str, client: "RegistryClient | None") -> AsyncIterator[OpenSource]:
    if client is not None:
        yield _RegistrySource(client, reference, name)
        return
    from registry_proxy.client import open_client  # noqa: PLC0415  # an HTTP stack that local sources do without

    async with open_client() as own:
        yield _RegistrySource(own, reference, name)


class _RegistrySource:
    def __init__(self, client: "RegistryClient", reference: Reference, name: str) -> None:
        self._client = client
        self._reference = reference
        self.name = name

    async def resolve(self) -> Digest:
        if self._reference.digest is not None:
            return self._reference.digest  # a digest leads to itself
        return (await self._client.resolve(self._reference)).digest

    async def find(self, resolved: Digest, platform: Platform) -> FoundImage:
        async def manifest(digest: Digest) -> bytes:
            return (await self._client.manifest(self._reference.with_digest(digest))).body

        return await descend(manifest, resolved, None, platform)

    async def platforms(self, resolved: Digest) -> list[Platform]:
        return offered((await self._client.manifest(self._reference.with_digest(resolved))).body, None)

    async def config(self, descriptor: Descriptor) -> bytes:
        return await self._client.blob_bytes(self._reference, descriptor)

    def blob(self, descriptor: Descriptor) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self._client.blob(self._reference, descriptor)


def offered(body: bytes, media_type: str | None) -> list[Platform]:
    """The platforms of an index; none for anything else, and none for BuildKit's attestations."""
    document = parse_manifest(body, media_type)
    if isinstance(document, ImageManifest):
        return []
    named = [one.platform for one in document.manifests if one.platform is not None]
    return [platform for platform in dict.fromkeys(named) if platform.os != "unknown"]


async def descend(
    read: Callable[[Digest], Awaitable[bytes]], resolved: Digest, media_type: str | None, platform: Platform
) -> FoundImage:
    """From what a name leads to, through indexes, to the manifest for *platform*; *read* gives verified bytes."""
    digest = resolved
    index: bytes | None = None
    for _ in range(_MAX_INDEXES):
        body = await read(digest)
        document = parse_manifest(body, media_type)
        if isinstance(document, ImageManifest):
            return FoundImage(
                resolved=resolved,
                manifest_digest=digest,
                manifest_bytes=body,
                manifest=document,
                index_bytes=index,
            )
        chosen = select_platform(document, platform)
        digest, media_type, index = chosen.digest, chosen.media_type, index or body
    raise ImageRefusedError(f"more than {_MAX_INDEXES - 1} indexes lead to one another")


@asynccontextmanager
async def _open_local(source: ImageSource) -> AsyncIterator[OpenSource]:
    from converter.local_sources import open_local  # noqa: PLC0415  # it builds on this module

    yield await anyio.to_thread.run_sync(open_local, source)


@asynccontextmanager
async def _open_rootfs(source: ImageSource) -> AsyncIterator[OpenSource]:
    from converter.rootfs_source import RootfsTarball  # noqa: PLC0415  # it builds on this module

    yield await anyio.to_thread.run_sync(RootfsTarball, source)


@asynccontextmanager
async def _open_daemon(source: ImageSource) -> AsyncIterator[OpenSource]:
    from converter.docker_engine import saved_image  # noqa: PLC0415  # only this source needs the engine's SDK
    from converter.local_sources import open_local  # noqa: PLC0415  # it builds on this module

    async with saved_image(source.tag or "") as archive:
        saved = ImageSource(source.text, DOCKER_ARCHIVE, path=archive, tag=source.tag)
        yield await anyio.to_thread.run_sync(open_local, saved)
