"""Caches that were filled beforehand and are only read: on shared, read-only or removable disks.

A preloaded cache is the directory of an ordinary one that nobody writes to (``unpackd repo preload`` fills one).
Objects are sealed as in every cache, so what is damaged is noticed, and then fetched as if it were not there.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import structlog

from fs.client.object_file import ObjectFile
from fs.errors import AbsentError, CorruptError
from fs.format.hashes import Hash

_log = structlog.get_logger()

_OPEN_FILES = 128


class PreloadedCaches:
    """Objects of several directories, looked for in their order. Belongs to one event loop."""

    def __init__(self, directories: Sequence[Path] = ()) -> None:
        self.hits = 0
        self._directories = [str(directory / "objects") for directory in directories]
        self._open: OrderedDict[str, ObjectFile] = OrderedDict()
        self._damaged: set[str] = set()

    def check(self) -> None:
        """Make sure that there is something. Raises AbsentError."""
        for directory in self._directories:
            if not os.path.isdir(directory):  # noqa: PTH112  # text here
                raise AbsentError(f"{directory.removesuffix('/objects')} is no preloaded cache: it has no 'objects'")

    def has(self, name: Hash) -> bool:
        """True if the object called *name* is there."""
        text = str(name)
        return bool(self._directories) and text not in self._damaged and self._path(text) is not None

    def _path(self, text: str) -> str | None:
        paths = (f"{directory}/{text[:2]}/{text[2:]}" for directory in self._directories)
        return next((path for path in paths if os.path.exists(path)), None)  # noqa: PTH110  # one system call

    def find(self, name: Hash) -> ObjectFile | None:
        """The object called *name*, or None. Others may push it out: use it at once."""
        if not self._directories:
            return None
        text = str(name)
        opened = self._open.get(text)
        if opened is None:
            opened = self.open_private(name)
            if opened is None:
                return None
            self._open[text] = opened
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(text)
        self.hits += 1
        return opened

    def open_private(self, name: Hash) -> ObjectFile | None:
        """The object called *name* for a caller that keeps it open and closes it, or None."""
        text = str(name)
        path = None if text in self._damaged else self._path(text)
        if path is None:
            return None
        try:
            return ObjectFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC), text, path)
        except (CorruptError, OSError) as error:
            self.discard(name, error)
            return None

    def discard(self, name: Hash, error: Exception) -> None:
        """Do not use an object any more that *error* says is damaged."""
        text = str(name)
        _log.error("preloaded_object_damaged", object=text, reason=str(error))
        self._damaged.add(text)
        opened = self._open.pop(text, None)
        if opened is not None:
            opened.close()

    def close(self) -> None:
        """Close all files."""
        while self._open:
            self._open.popitem()[1].close()
