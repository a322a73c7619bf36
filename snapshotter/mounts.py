"""What containerd is told to mount. PURE.

Only plain ``bind`` and ``overlay`` mounts are given: every containerd from 1.6 on understands them.
"""

from dataclasses import dataclass
from pathlib import PurePath

from fs.rootfs.overlay import METADATA_ONLY, lowerdir

_SHORT_BYTES = 3000  # containerd takes paths apart if all options together have more than 3584 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One mount: arguments of mount(2) without the target."""

    type: str
    source: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayTraits:
    """What this machine wants in every overlay's options."""

    index_off: bool = False
    """The kernel knows ``index``; over FUSE it has to be off, since it needs file handles from the lower layer."""
    userxattr: bool = False
    """The mounts are made inside a user namespace, where ``trusted.*`` attributes cannot be written."""

    metadata_only: bool = False
    """The kernel can copy up the metadata of a file alone, and look for its data below."""

    @property
    def options(self) -> tuple[str, ...]:
        """The options in the order in which they are given."""
        chosen = (("index=off", self.index_off), ("userxattr", self.userxattr))
        return tuple(option for option, wanted in chosen if wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowers:
    """What lies below a snapshot, uppermost first."""

    layers: tuple[PurePath, ...]
    whole: bool = False
    """The lowest layer is a whole root file system of the repository."""
    data: PurePath | None = None
    """The lowest layer is a metadata image, and this is where its files' data are."""

    @property
    def is_short(self) -> bool:
        """False if containerd would have to shorten the option, which it cannot if there is a data-only layer."""
        return len(lowerdir(self.layers, self.data)) < _SHORT_BYTES

    def options(self, traits: OverlayTraits) -> tuple[str, ...]:
        """The option that names them, and what they need besides.

        A snapshot over a whole root file system always gets the options of metadata images: then its upper directory
        is right with and without one.
        """
        needed = METADATA_ONLY if self.whole and traits.metadata_only else ()
        return (lowerdir(self.layers, self.data), *needed)


def active_mounts(
    *,
    upper: PurePath,
    work: PurePath,
    lowers: Lowers,
    traits: OverlayTraits,
    id_mapping: tuple[str, ...] = (),
) -> tuple[Mount, ...]:
    """Mounts of an Active snapshot over *lowers*."""
    if not lowers.layers:
        return (Mount(type="bind", source=str(upper), options=("rw", "rbind", *id_mapping)),)
    options = (*traits.options, f"workdir={work}", f"upperdir={upper}", *lowers.options(traits), *id_mapping)
    return (Mount(type="overlay", source="overlay", options=options),)


def view_mounts(
    *,
    own: PurePath,
    lowers: Lowers,
    traits: OverlayTraits,
    id_mapping: tuple[str, ...] = (),
) -> tuple[Mount, ...]:
    """Mounts of a View: read-only by nature. *own* is its empty directory, shown if there is nothing below."""
    if len(lowers.layers) > 1 or lowers.data is not None:
        options = (*traits.options, *lowers.options(traits), *id_mapping)
        return (Mount(type="overlay", source="overlay", options=options),)
    source = lowers.layers[0] if lowers.layers else own
    return (Mount(type="bind", source=str(source), options=("ro", "rbind", *id_mapping)),)
