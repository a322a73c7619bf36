"""Images that users send instead of naming a registry: blobs in a directory that web processes and workers share.

Every blob is stored under the digest that its bytes were found to have, so a name can never lead to other bytes, the
same layer is sent once, and what was cut off is sent again without harm. Blobs that nobody asked for in a while go.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from converter.errors import UploadError, UploadTooLargeError
from fs.runtime.files import sync_directory, write_atomically
from registry_proxy.errors import DigestSyntaxError
from registry_proxy.oci import media_types
from registry_proxy.oci.digest import Digest, Hasher
from registry_proxy.oci.manifest import MAX_MANIFEST_BYTES, ImageManifest, parse_manifest, require_image

_PARTIAL = "partial."


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What may lie in a spool."""

    blob_bytes: int = 20 << 30
    total_bytes: int = 100 << 30
    keep_s: float = 86400.0  # after the last question about a blob


class UploadSpool:
    """The blobs in one directory. Threads and processes may share it."""

    def __init__(
        self, directory: Path, limits: UploadLimits | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._directory = directory
        self._limits = limits or UploadLimits()
        self._clock = clock

    def has(self, digest: Digest) -> bool:
        """True if the blob is here; then it stays for a while."""
        try:
            os.utime(self._blob(digest), (self._clock(), self._clock()))
        except FileNotFoundError:
            return False
        return True

    def begin(self, digest: Digest, size_bytes: int) -> "Incoming":
        """Get ready to take the blob *digest*.

        Raises:
            UploadTooLargeError: it is larger than allowed, or does not fit any more.
            UploadError: digests of that algorithm cannot be checked.
        """
        path = self._blob(digest)
        if size_bytes > self._limits.blob_bytes:
            raise UploadTooLargeError(f"a blob may have {self._limits.blob_bytes} bytes, {digest} has {size_bytes}")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._clean() + size_bytes > self._limits.total_bytes:
            raise UploadTooLargeError("the service holds as much as it may of what others sent; try again later")
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=_PARTIAL)
        return Incoming(os.fdopen(descriptor, "wb"), Path(temporary), path, digest, size_bytes)

    def missing(self, manifest: Digest) -> list[Digest]:
        """What has to be sent before the image *manifest* is whole.

        Raises:
            UploadError: it is no manifest of an image.
            ProxyError: it is one of a kind that cannot be converted.
        """
        if not self.has(manifest):
            return [manifest]
        document = self._manifest(manifest)
        blobs = {one.digest: one.size_bytes for one in (document.config, *document.layers)}
        missing = []
        for digest, size in blobs.items():
            if not self.has(digest):
                missing.append(digest)
            elif self._blob(digest).stat().st_size != size:
                raise UploadError(f"the manifest says that {digest} has {size} bytes, which is not so")
        return missing

    def seal(self, manifest: Digest) -> Path:
        """Make an OCI layout of the image *manifest*, for ``layout``.

        Source: OCI image specification 1.1, image-layout.md.
        """
        document = self._manifest(manifest)
        layout = self._layout(manifest)
        layout.mkdir(mode=0o700, parents=True, exist_ok=True)
        described = {
            "mediaType": document.media_type,
            "digest": str(manifest),
            "size": self._blob(manifest).stat().st_size,
        }
        index = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": [described]}
        with suppress(FileExistsError):
            (layout / "blobs").symlink_to(os.path.relpath(self._directory / "blobs", layout))
        write_atomically(layout / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        write_atomically(layout / "index.json", json.dumps(index).encode())
        return layout

    def layout(self, manifest: Digest) -> Path | None:
        """The layout of the image *manifest*; None if nobody sent it."""
        layout = self._layout(manifest)
        return layout if (layout / "index.json").exists() else None

    def _manifest(self, digest: Digest) -> ImageManifest:
        path = self._blob(digest)
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise UploadError(f"{digest} is no manifest: it is too large")
        document = parse_manifest(path.read_bytes())
        if not isinstance(document, ImageManifest):
            raise UploadError(f"{digest} is an index; name the manifest for one platform")
        require_image(document)
        return document

    def _blob(self, digest: Digest) -> Path:
        if not digest.is_verifiable:
            raise UploadError(f"digests of the algorithm {digest.algorithm} cannot be checked")
        return self._directory / "blobs" / digest.algorithm / digest.hex

    def _layout(self, manifest: Digest) -> Path:
        return self._directory / "images" / manifest.hex

    def _clean(self) -> int:
        """Remove what is too old; gives how many bytes are left."""
        too_old = self._clock() - self._limits.keep_s
        total = 0
        for path in self._directory.glob("blobs/*/*"):
            with suppress(FileNotFoundError):  # another process cleans too
                status = path.stat()
                if status.st_mtime < too_old:
                    path.unlink()
                else:
                    total += status.st_size
        for layout in self._directory.glob("images/*"):
            with suppress(FileNotFoundError):
                if layout.stat().st_mtime < too_old:
                    shutil.rmtree(layout)
        return total


class Incoming:
    """A blob that is being received. A context: what was not finished leaves nothing behind."""

    def __init__(self, stream: BinaryIO, temporary: Path, path: Path, digest: Digest, size_bytes: int) -> None:
        self._stream = stream
        self._temporary = temporary
        self._path = path
        self._digest = digest
        self._left = size_bytes
        self._hasher: Hasher = digest.hasher()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, piece: bytes) -> None:
        """Take the next piece. Raises UploadError if it is more than was announced."""
        self._left -= len(piece)
        if self._left < 0:
            raise UploadError(f"{self._digest} has more bytes than announced")
        self._hasher.update(piece)
        self._stream.write(piece)

    def finish(self) -> None:
        """Check the digest and show the blob. Raises UploadError if there are not exactly those bytes."""
        if self._left:
            raise UploadError(f"{self._left} bytes of {self._digest} are missing")
        if self._hasher.hexdigest() != self._digest.hex:
            raise UploadError(f"the bytes that were sent do not have the digest {self._digest}")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._temporary.rename(self._path)
        sync_directory(self._path.parent)


def uploaded_layout(directory: Path | None, digest: str) -> Path | None:
    """The layout in which the image with that manifest was sent; None if it was not, or nothing can be sent here."""
    if directory is None:
        return None
    with suppress(DigestSyntaxError):
        return UploadSpool(directory).layout(Digest.parse(digest))
    return None
