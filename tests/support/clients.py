"""Real clients that Debian does not have: ``make clients-build`` puts them into one directory."""

import os
from pathlib import Path

import pytest

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
CLIENTS = Path(os.environ.get("UNPACKD_CLIENTS") or _CACHE / "unpackd" / "clients")


def find_client(name: str, program: str) -> Path | None:
    """The *program* of the client *name*; None if it was not built."""
    path = CLIENTS / name / program
    return path if os.access(path, os.X_OK) else None


def require_client(name: str, program: str) -> Path:
    """The *program* of the client *name*; the test is skipped, with a word why, if it is not there."""
    path = find_client(name, program)
    if path is None:
        pytest.skip(f"needs {name}, which is not there: make {name}")
    return path
