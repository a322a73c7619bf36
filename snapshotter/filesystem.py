"""LayerFilesystem: where the content of remote snapshots comes from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Protocol

from snapshotter.labels import RootOwner, WantedLayer
from snapshotter.snapshots import LayerSource, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLayer:
    """A layer that is complete and readable now."""

    source: LayerSource
    parent_chain_id: str | None
    """ChainID of the layer below; None for the first layer of a chain."""
    parent_known: bool = True
    """False if the repository does not say what the layer stands on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RootImage:
    """Where the metadata image of a whole root file system is, and the data that its files name."""

    file: Path
    data: Path
    shared_data: Path
    """The same data with one inode for files that have the same bytes; not there with every client."""


class LayerFilesystem(Protocol):
    """Finds layers and says where they are. Every call ends within the implementation's time limit.

    A source that belongs to no repository that is known is a LayerUnavailableError.
    """

    async def find(self, wanted: WantedLayer) -> FoundLayer | None:
        """The layer if it can be served now; None if it is not there.

        Raises:
            LayerUnavailableError: it is not known whether it is there: no answer, no answer in time, or a read error.
        """
        ...

    async def check(self, sources: Sequence[LayerSource]) -> tuple[RootOwner, ...]:
        """Look at every layer; gives the owner of each one's root directory.

        Raises:
            LayerUnavailableError: one of them cannot be read now.
        """
        ...

    def path(self, source: LayerSource) -> PurePath:
        """Directory of a layer. Looks at nothing."""
        ...

    def root_image(self, source: LayerSource) -> RootImage | None:
        """The metadata image of a layer, which need not be there; None if layers of this kind have none."""
        ...

    async def measure(self, source: LayerSource) -> Usage | None:
        """What the layer alone holds, as the repository's metadata says; None if they do not say it now."""
        ...
