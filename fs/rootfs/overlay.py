"""Overlay options of a metadata image over its data. PURE.

Source: Linux, Documentation/filesystems/overlayfs.rst, "Metadata only copy up" and "Data-only lower layers".
"""

from collections.abc import Sequence
from pathlib import PurePath

METADATA_ONLY = ("metacopy=on", "redirect_dir=on")
"""What lets overlay look for a file's data below the layer that has its metadata."""


def lowerdir(layers: Sequence[PurePath], data: PurePath | None = None) -> str:
    """The option for *layers*, uppermost first, and a layer *data* whose names are not seen.

    No path may hold a colon, a comma or a backslash.
    """
    option = "lowerdir=" + ":".join(str(layer) for layer in layers)
    return option if data is None else f"{option}::{data}"
