"""One pass over a layer's blob: unpack, verify the DiffID, parse, store the files, and note what the layer changes."""

import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from converter.changeset import ChangeSet, ChangeSetBuilder
from converter.errors import CorruptLayerError, LimitError
from converter.layer_streams import unpacked
from converter.layer_tar import TarReader
from converter.limits import Limits
from fs.format.tree import Content
from registry_proxy.oci.digest import Digest

_WHOLE_BYTES = 1 << 20
"""Files up to this size are handed on in one piece, larger ones as a stream."""


class ContentStore(Protocol):
    """Where the files' bytes go: the publisher's ingester."""

    def add_bytes(self, data: bytes) -> Content:
        """Store a whole file."""
        ...

    def add_stream(self, read: Callable[[int], bytes], size: int) -> Content:
        """Store a file of *size* bytes that *read* gives piece by piece."""
        ...


def read_layer(  # noqa: PLR0913  # the collaborators of one pass, all by name
    blob: Iterable[bytes],
    *,
    packing: str | None,
    diff_id: Digest,
    store: ContentStore,
    limits: Limits,
    report: Callable[[int], None] = lambda _: None,
) -> ChangeSet:
    """Store the files of a layer and give its change set.

    Nothing refers to what was stored until the change set is published, so that a layer that turns out to be wrong
    leaves nothing that can be seen.

    Args:
        blob: the layer as the registry has it; whoever gives it has verified its digest when it ends.
        packing: how it is packed by its media type, see ``layer_streams``; None if that is not said.
        diff_id: what the image's config says is the digest of the tar.
        store: takes the files' bytes.
        limits: what the layer may cost.
        report: called with the number of entries since the last call.

    Raises:
        LayerError: an entry cannot be part of a file tree.
        LimitError: a limit is exceeded.
        CorruptLayerError: the stream is broken, or is not what *diff_id* says.
    """
    tar = _VerifiedStream(blob, packing, diff_id, limits)
    reader = TarReader(tar.next_piece, limits)
    builder = ChangeSetBuilder()
    while (member := reader.next()) is not None:
        report(1)
        change = builder.accept(member)
        if change is None:
            continue
        if stat.S_ISREG(change.mode):
            size = member.size
            content = (
                store.add_bytes(reader.read(size)) if size <= _WHOLE_BYTES else store.add_stream(reader.read, size)
            )
            change = change._replace(content=content)
        builder.add(change)
    if not reader.drain():
        builder.warn(b"", "behind the end of the archive is left out: the archive goes on there")
    tar.verify()
    return builder.finish(diff_id=str(diff_id), unpacked_bytes=tar.unpacked_bytes)


class _VerifiedStream:
    """The pieces of a tar, hashed and counted on their way."""

    def __init__(self, blob: Iterable[bytes], packing: str | None, diff_id: Digest, limits: Limits) -> None:
        self._pieces = unpacked(self._counted(blob), packing)
        self._limits = limits
        self._diff_id = diff_id
        self._hasher = diff_id.hasher()
        self._packed_bytes = 0
        self.unpacked_bytes = 0

    def _counted(self, blob: Iterable[bytes]) -> Iterator[bytes]:
        for part in blob:
            self._packed_bytes += len(part)
            yield part

    def next_piece(self) -> bytes:
        """The next piece; empty at the end."""
        piece = next(self._pieces, b"")
        self._hasher.update(piece)
        self.unpacked_bytes += len(piece)
        if self.unpacked_bytes > self._limits.max_layer_bytes:
            raise LimitError(
                f"the layer unpacks to more than {self._limits.max_layer_bytes} bytes "
                "(UNPACKD_CONVERTER_LIMITS_MAX_LAYER_BYTES)"
            )
        if self._limits.ratio_exceeded(self._packed_bytes, self.unpacked_bytes):
            raise LimitError(
                f"{self._packed_bytes} bytes of the layer unpack to {self.unpacked_bytes}: more than "
                f"{self._limits.max_ratio} times as many (UNPACKD_CONVERTER_LIMITS_MAX_RATIO)"
            )
        return piece

    def verify(self) -> None:
        """Raises CorruptLayerError unless all that was read has the DiffID that it should have."""
        found = self._hasher.hexdigest()
        if found != self._diff_id.hex:
            raise CorruptLayerError(
                f"the unpacked layer has the DiffID {self._diff_id.algorithm}:{found}, but the image's config says "
                f"{self._diff_id}; the image must be built or pushed again"
            )
