"""What containerd is told to mount. PURE.

Only plain ``bind`` and ``overlay`` mounts are given: every containerd from 1.6 on understands them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath


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

    @property
    def options(self) -> tuple[str, ...]:
        """The options in the order in which they are given."""
        chosen = (("index=off", self.index_off), ("userxattr", self.userxattr))
        return tuple(option for option, wanted in chosen if wanted)


def active_mounts(
    *,
    upper: PurePath,
    work: PurePath,
    lowers: Sequence[PurePath],
    traits: OverlayTraits,
    id_mapping: tuple[str, ...] = (),
) -> tuple[Mount, ...]:
    """Mounts of an Active snapshot over *lowers*, uppermost first."""
    if not lowers:
        return (Mount(type="bind", source=str(upper), options=("rw", "rbind", *id_mapping)),)
    options = (*traits.options, f"workdir={work}", f"upperdir={upper}", _lowerdir(lowers), *id_mapping)
    return (Mount(type="overlay", source="overlay", options=options),)


def view_mounts(
    *,
    own: PurePath,
    lowers: Sequence[PurePath],
    traits: OverlayTraits,
    id_mapping: tuple[str, ...] = (),
) -> tuple[Mount, ...]:
    """Mounts of a View: read-only by nature. *own* is its empty directory, shown if there is nothing below."""
    if len(lowers) > 1:
        options = (*traits.options, _lowerdir(lowers), *id_mapping)
        return (Mount(type="overlay", source="overlay", options=options),)
    source = lowers[0] if lowers else own
    return (Mount(type="bind", source=str(source), options=("ro", "rbind", *id_mapping)),)


def _lowerdir(lowers: Sequence[PurePath]) -> str:
    """One option; no path holds a colon, a comma or a backslash, since all lie under a root that has none."""
    return "lowerdir=" + ":".join(str(lower) for lower in lowers)
