"""Images in files: OCI layouts, in directories and in archives, and what ``docker save`` writes."""

import hashlib
import json
import re
import stat
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import anyio.to_thread

from converter.errors import LayerError, SourceAbsentError, SourceCorruptError, SourceSyntaxError
from converter.layer_streams import PLAIN, detect
from converter.layer_tar import TarReader
from converter.limits import Limits
from converter.names import published_name
from converter.sources import DOCKER_ARCHIVE, OCI_ARCHIVE, FoundImage, ImageSource, OpenSource, descend, offered
from registry_proxy.oci import media_types
from registry_proxy.oci.digest import Digest
from registry_proxy.oci.manifest import (
    MAX_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    Descriptor,
    ImageIndex,
    Platform,
    parse_config,
    parse_manifest,
)
from registry_proxy.oci.reference import DEFAULT_TAG, Reference

_PIECE_BYTES = 1 << 20
_REF_NAME = "org.opencontainers.image.ref.name"
_LOCAL_REGISTRY = "localhost"  # what podman calls images that are in no registry
_MAX_ARCHIVE_FILES = 100_000
_LAYOUT_FILE = "oci-layout"


@dataclass(frozen=True, slots=True)
class Extent:
    """A file, or the part of an archive that is one."""

    path: Path
    offset: int
    size: int

    def open(self) -> BinaryIO:
        """A stream that stands at its beginning."""
        stream = self.path.open("rb")
        stream.seek(self.offset)
        return stream


class _Files(Protocol):
    """The files of a layout, in a directory or in an archive."""

    def find(self, name: str) -> Extent:
        """The regular file *name*. Raises SourceAbsentError."""
        ...


class _DirectoryFiles:
    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, name: str) -> Extent:
        path = self._path / name
        try:
            status = path.stat()
        except OSError as error:
            raise SourceAbsentError(f"{path}: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode):
            raise SourceCorruptError(f"{path} is not a regular file")
        return Extent(path, 0, status.st_size)


class _ArchiveFiles:
    """The regular files of an uncompressed tar; links to them count as well."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, Extent] = {}
        links: dict[str, str] = {}
        try:
            with path.open("rb") as stream:
                self._scan(stream, links)
        except OSError as error:
            raise SourceAbsentError(f"{path}: {error.strerror}") from error
        except LayerError as error:
            raise SourceCorruptError(f"{path} is not a tar archive that can be read: {error}") from error
        for name, target in links.items():
            if target in self._found:
                self._found.setdefault(name, self._found[target])

    def find(self, name: str) -> Extent:
        try:
            return self._found[name]
        except KeyError as error:
            raise SourceAbsentError(f"there is no {name} in {self._path}") from error

    def _scan(self, stream: BinaryIO, links: dict[str, str]) -> None:
        reader = TarReader(
            lambda: stream.read(_PIECE_BYTES), Limits(max_entries=_MAX_ARCHIVE_FILES, max_layer_bytes=1 << 50)
        )
        while (member := reader.next()) is not None:
            name = _normal(member.name.decode("utf-8", "surrogateescape"))
            link = member.link.decode("utf-8", "surrogateescape")
            if stat.S_ISREG(member.mode):
                self._found[name] = Extent(self._path, reader.position, member.size)
            elif stat.S_ISLNK(member.mode):  # how docker save writes a layer that occurs twice
                links[name] = _normal(f"{name}/../{link}")
            elif not stat.S_IFMT(member.mode):
                links[name] = _normal(link)


def _normal(name: str) -> str:
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _read_small(extent: Extent, limit_bytes: int) -> bytes:
    if extent.size > limit_bytes:
        raise SourceCorruptError(f"{extent.path} has {extent.size} bytes, more than the {limit_bytes} that are allowed")
    with extent.open() as stream:
        return stream.read(extent.size)


def verified(data: bytes, digest: Digest, what: str) -> bytes:
    """*data*, if it is what *digest* names. Raises SourceCorruptError."""
    if not digest.matches(data):
        raise SourceCorruptError(f"{what} {digest} has other bytes than its digest says")
    return data


@asynccontextmanager
async def verified_pieces(extent: Extent, descriptor: Descriptor) -> AsyncIterator[AsyncIterator[bytes]]:
    """The bytes of a blob, verified as ``OpenSource.blob`` says."""
    if extent.size != descriptor.size_bytes:
        raise SourceCorruptError(
            f"blob {descriptor.digest} has {extent.size} bytes, but the manifest says {descriptor.size_bytes}"
        )
    stream = await anyio.to_thread.run_sync(extent.open)

    def read(size: int, hasher: "_Hasher") -> bytes:
        piece = stream.read(size)
        hasher.update(piece)
        return piece

    async def pieces() -> AsyncIterator[bytes]:
        hasher = descriptor.digest.hasher()
        left = extent.size
        while left > 0:
            piece = await anyio.to_thread.run_sync(read, min(left, _PIECE_BYTES), hasher)
            left -= len(piece)
            if not piece or (not left and hasher.hexdigest() != descriptor.digest.hex):
                raise SourceCorruptError(f"blob {descriptor.digest} has other bytes than its digest says")
            yield piece

    try:
        yield pieces()
    finally:
        stream.close()


class _Hasher(Protocol):
    def update(self, data: bytes, /) -> None:
        """Take in *data*."""
        ...


def open_local(source: ImageSource) -> OpenSource:
    """Get ready to read the image that *source* names.

    Raises:
        SourceAbsentError: there is no such file or tag.
        SourceCorruptError: it is no layout, no archive, or a damaged one.
    """
    path = source.path
    if path is None:
        raise SourceSyntaxError(f"{source} has no path")
    if source.kind == DOCKER_ARCHIVE:
        return _DockerArchive(_ArchiveFiles(path), source)
    return _Layout(_ArchiveFiles(path) if source.kind == OCI_ARCHIVE else _DirectoryFiles(path), source)


def local_name(path: Path, tag: str | None) -> str:
    """The name of an image that is in no registry: its tag if that is a whole name, else ``localhost/<file>:<tag>``."""
    if tag is not None and "/" in tag:
        return published_name(tag)
    stem = re.sub(r"[^a-z0-9]+", "-", path.name.removesuffix(".tar").lower()).strip("-") or "image"
    return str(Reference.parse(f"{_LOCAL_REGISTRY}/{stem}:{tag or DEFAULT_TAG}"))


class _Layout:
    """An OCI image layout. Source: OCI image specification 1.1, image-layout.md."""

    def __init__(self, files: _Files, source: ImageSource) -> None:
        self._files = files
        self._source = source
        _read_small(files.find(_LAYOUT_FILE), MAX_MANIFEST_BYTES)
        index = parse_manifest(_read_small(files.find("index.json"), MAX_MANIFEST_BYTES), media_types.OCI_INDEX)
        if not isinstance(index, ImageIndex):
            raise SourceCorruptError(f"the index.json of {source} is not an index")
        self._chosen = _choose(index.manifests, source)
        self.name = local_name(source.path or Path(), source.tag or self._chosen.annotations.get(_REF_NAME))

    async def resolve(self) -> Digest:
        return self._chosen.digest

    async def find(self, resolved: Digest, platform: Platform) -> FoundImage:
        async def manifest(digest: Digest) -> bytes:
            return await anyio.to_thread.run_sync(self._manifest, digest)

        return await descend(manifest, resolved, self._chosen.media_type, platform)

    async def platforms(self, resolved: Digest) -> list[Platform]:
        return offered(await anyio.to_thread.run_sync(self._manifest, resolved), self._chosen.media_type)

    async def config(self, descriptor: Descriptor) -> bytes:
        data = await anyio.to_thread.run_sync(_read_small, self._blob(descriptor.digest), MAX_CONFIG_BYTES)
        return verified(data, descriptor.digest, "the config")

    def blob(self, descriptor: Descriptor) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return verified_pieces(self._blob(descriptor.digest), descriptor)

    def _manifest(self, digest: Digest) -> bytes:
        return verified(_read_small(self._blob(digest), MAX_MANIFEST_BYTES), digest, "the manifest")

    def _blob(self, digest: Digest) -> Extent:
        return self._files.find(f"blobs/{digest.algorithm}/{digest.hex}")


def _choose(manifests: tuple[Descriptor, ...], source: ImageSource) -> Descriptor:
    """The entry of a layout's index that the tag names; without a tag, the only one."""
    tags = sorted({one.annotations[_REF_NAME] for one in manifests if _REF_NAME in one.annotations})
    if source.tag is None:
        if len(manifests) == 1:
            return manifests[0]
        raise SourceAbsentError(f"{source} holds {len(manifests)} images; name one of the tags {', '.join(tags)}")
    for one in manifests:
        if one.annotations.get(_REF_NAME) == source.tag:
            return one
    raise SourceAbsentError(f"there is no tag {source.tag} in {source}; there is: {', '.join(tags) or 'none'}")


class _DockerArchive:
    """What ``docker save`` writes. It has no manifest, so one is made, the same one each time.

    Source: moby, image/spec/spec.md, "Combined Image JSON + Filesystem Changeset Format" (``manifest.json``).
    """

    def __init__(self, files: _ArchiveFiles, source: ImageSource) -> None:
        chosen = _choose_saved(_read_small(files.find("manifest.json"), MAX_MANIFEST_BYTES), source)
        self._config = _read_small(files.find(_normal(chosen.config)), MAX_CONFIG_BYTES)
        diff_ids = parse_config(self._config).diff_ids
        if len(diff_ids) != len(chosen.layers):
            raise SourceCorruptError(f"{source} lists {len(chosen.layers)} layers, but its config {len(diff_ids)}")
        self._extents: dict[Digest, Extent] = {}
        described = [
            self._describe(files.find(_normal(layer)), diff_id)
            for layer, diff_id in zip(chosen.layers, diff_ids, strict=True)
        ]
        self._manifest = made_manifest(self._config, described)
        self.name = chosen.name or local_name(source.path or Path(), None)

    async def resolve(self) -> Digest:
        return Digest.of(self._manifest)

    async def find(self, resolved: Digest, platform: Platform) -> FoundImage:
        async def manifest(digest: Digest) -> bytes:
            return verified(self._manifest, digest, "the manifest")

        return await descend(manifest, resolved, None, platform)

    async def platforms(self, resolved: Digest) -> list[Platform]:
        return offered(verified(self._manifest, resolved, "the manifest"), None)

    async def config(self, descriptor: Descriptor) -> bytes:
        return verified(self._config, descriptor.digest, "the config")

    def blob(self, descriptor: Descriptor) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return verified_pieces(self._extents[descriptor.digest], descriptor)

    def _describe(self, extent: Extent, diff_id: Digest) -> dict[str, object]:
        """A layer as a manifest describes it. One that is not packed has the DiffID for its digest."""
        with extent.open() as stream:
            packing = detect(stream.read(4))
            stream.seek(extent.offset)
            digest = diff_id if packing == PLAIN else _digest_of(stream, extent.size)
        self._extents[digest] = extent
        suffix = "" if packing == PLAIN else f"+{packing}"
        media_type = f"application/vnd.oci.image.layer.v1.tar{suffix}"
        return {"mediaType": media_type, "digest": str(digest), "size": extent.size}


@dataclass(frozen=True, slots=True)
class _Saved:
    """One image of ``manifest.json``."""

    name: str | None
    config: str
    layers: tuple[str, ...]


def _choose_saved(manifest: bytes, source: ImageSource) -> _Saved:
    """The image of a docker archive that the source names; without a name, the only one."""
    wanted = None if source.tag is None else str(Reference.parse(source.tag))
    try:
        images = [
            (
                [str(Reference.parse(tag)) for tag in image.get("RepoTags") or []],
                str(image["Config"]),
                tuple(map(str, image["Layers"])),
            )
            for image in json.loads(manifest)
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SourceCorruptError(f"the manifest.json of {source} is malformed ({error!r})") from error
    names = sorted(name for tags, _, _ in images for name in tags)
    for tags, config, layers in images:
        if wanted in tags or (wanted is None and len(images) == 1):
            return _Saved(wanted or (tags[0] if tags else None), config, layers)
    if wanted is None:
        raise SourceAbsentError(f"{source} holds {len(images)} images; name one of {', '.join(names)}")
    raise SourceAbsentError(f"there is no {wanted} in {source}; there is: {', '.join(names) or 'none'}")


def _digest_of(stream: BinaryIO, size: int) -> Digest:
    hasher = hashlib.sha256()
    while size and (piece := stream.read(min(size, _PIECE_BYTES))):
        hasher.update(piece)
        size -= len(piece)
    return Digest("sha256", hasher.hexdigest())


def made_manifest(config: bytes, layers: list[dict[str, object]]) -> bytes:
    """The manifest of an image that has none: its config, and its layers as described."""
    described = {"mediaType": media_types.OCI_CONFIG, "digest": str(Digest.of(config)), "size": len(config)}
    document = {"schemaVersion": 2, "mediaType": media_types.OCI_MANIFEST, "config": described, "layers": layers}
    return json.dumps(document, separators=(",", ":")).encode()
