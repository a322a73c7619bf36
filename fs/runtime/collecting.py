"""Python's search for cycles of garbage, in programs that make very many objects."""

import gc

_NEW_OBJECTS = 50_000


def collect_rarely() -> None:
    """Leave out what is loaded, look at the rest a seventieth as often as usual: trees and entries have no cycles."""
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS)
