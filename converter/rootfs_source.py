"""A plain tar of a root file system as an image of one layer. It has no config, so one is made, the same each time."""

import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from converter.errors import ImageRefusedError, LayerError, SourceAbsentError, SourceCorruptError
from converter.image_platforms import machine_platform
from converter.layer_streams import PLAIN, detect, unpacked
from converter.layer_tar import TarReader
from converter.limits import Limits
from converter.local_sources import Extent, local_name, made_manifest, verified, verified_pieces
from converter.sources import FoundImage, ImageSource, descend, tarball_stem
from registry_proxy.oci.digest import Digest
from registry_proxy.oci.manifest import Descriptor, Platform

_PIECE_BYTES = 1 << 20


class RootfsTarball:
    """An ``OpenSource`` over one file. Opening reads the whole file once, for its digests."""

    def __init__(self, source: ImageSource) -> None:
        """Read the file of *source*.

        Raises:
            SourceAbsentError: there is no such file.
            SourceCorruptError: it is no tar, packed with gzip or zstd or not at all.
        """
        self._path = source.path or Path()
        try:
            packing, digest, diff_id = self._read()
            size = self._path.stat().st_size
        except OSError as error:
            raise SourceAbsentError(f"{self._path}: {error.strerror}") from error
        except ImageRefusedError as error:
            raise SourceCorruptError(f"{self._path}: {error}") from error
        self._extent = Extent(self._path, 0, size)
        platform = machine_platform()
        config = {
            "architecture": platform.architecture,
            "os": platform.os,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [str(diff_id)]},
        }
        self._config = json.dumps(config, separators=(",", ":")).encode()
        suffix = "" if packing == PLAIN else f"+{packing}"
        media_type = f"application/vnd.oci.image.layer.v1.tar{suffix}"
        self._manifest = made_manifest(
            self._config, [{"mediaType": media_type, "digest": str(digest), "size": self._extent.size}]
        )
        self.name = local_name(Path(tarball_stem(self._path.name)), source.tag)

    def _read(self) -> tuple[str, Digest, Digest]:
        """How the file is packed, its digest and that of the tar in it."""
        with self._path.open("rb") as stream:
            packing = detect(stream.read(4))
            stream.seek(0)
            packed, plain = hashlib.sha256(), hashlib.sha256()

            def parts() -> Iterator[bytes]:
                while part := stream.read(_PIECE_BYTES):
                    packed.update(part)
                    yield part

            head = b""
            for piece in unpacked(parts(), packing):
                head = head or piece
                plain.update(piece)
        self._refuse_what_is_no_tar(head)
        return packing, Digest("sha256", packed.hexdigest()), Digest("sha256", plain.hexdigest())

    def _refuse_what_is_no_tar(self, head: bytes) -> None:
        """Say so before anything is fetched; what is wrong further on is told as of any layer."""
        pieces = iter([head])
        try:
            found = TarReader(lambda: next(pieces, b""), Limits()).next() if head else None
        except LayerError as error:
            raise SourceCorruptError(f"{self._path} is not a tar of a root file system: {error}") from error
        if found is None:
            raise SourceCorruptError(f"{self._path} is not a tar of a root file system: there is nothing in it")

    async def resolve(self) -> Digest:
        """See OpenSource.resolve."""
        return Digest.of(self._manifest)

    async def find(self, resolved: Digest, platform: Platform) -> FoundImage:
        """See OpenSource.find."""

        async def manifest(digest: Digest) -> bytes:
            return verified(self._manifest, digest, "the manifest")

        return await descend(manifest, resolved, None, platform)

    async def platforms(self, _resolved: Digest) -> list[Platform]:
        """See OpenSource.platforms."""
        return []

    async def config(self, descriptor: Descriptor) -> bytes:
        """See OpenSource.config."""
        return verified(self._config, descriptor.digest, "the config")

    def blob(self, descriptor: Descriptor) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """See OpenSource.blob."""
        return verified_pieces(self._extent, descriptor)
