"""Keeping out of daemons what only programs at a terminal need."""

import sys
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from types import ModuleType

ORNAMENTS = ("rich", "pygments", "click")
"""Libraries import these for coloured tracebacks and commands of their own, and do without where they are not."""


def leave_out(*names: str) -> None:
    """From now on nothing in this process can import the modules *names*; what has them already keeps them."""
    for name in names:
        sys.modules.setdefault(name, cast("ModuleType", None))  # Source: Python, import system, "The module cache"
