"""What a start reads: paths in the order of their first read, so that a later start can have them fetched beforehand.

A profile is a JSON document: ``version``, ``repository``, ``revision`` and ``reads``, a list of objects with ``path``
and, for files in chunks, ``chunks``, the numbers of those that were read. Bytes of a path that are not UTF-8 are lone
surrogates, as Python's ``os.fsdecode`` makes them. A profile is a hint: what is gone or changed since is no error.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fs.errors import AbsentError, MalformedError, RefusedError

_VERSION = 1
_MOST_FILES = 100_000
_MOST_CHUNKS = 4096  # of one file
LIMIT_BYTES = 64 << 20
"""A longer profile is not read."""


@dataclass(frozen=True, slots=True)
class Read:
    """A file that was read."""

    path: bytes
    chunks: tuple[int, ...] = ()  # numbers, in order of first read; none for a file that is one object


class ReadRecorder:
    """Notes first reads; bounded, later ones are dropped."""

    def __init__(self, *, most_files: int = _MOST_FILES) -> None:
        self._most_files = most_files
        self._reads: dict[bytes, dict[int, None] | None] = {}

    def whole(self, path: bytes) -> None:
        """A file that is one object is read."""
        if path not in self._reads and len(self._reads) < self._most_files:
            self._reads[path] = None

    def chunk(self, path: bytes, number: int) -> None:
        """A chunk of a file is read."""
        chunks = self._reads.get(path)
        if chunks is None:
            if len(self._reads) >= self._most_files:
                return
            chunks = self._reads[path] = {}
        if len(chunks) < _MOST_CHUNKS:
            chunks[number] = None

    def reads(self) -> list[Read]:
        """What was read so far, in order."""
        return [Read(path, tuple(chunks or ())) for path, chunks in self._reads.items()]

    def clear(self) -> None:
        """Begin anew."""
        self._reads.clear()


def profile_document(repository: str, revision: int, reads: list[Read]) -> dict[str, Any]:
    """The profile as a JSON document."""
    rows = [
        {"path": os.fsdecode(read.path), **({"chunks": list(read.chunks)} if read.chunks else {})} for read in reads
    ]
    return {"version": _VERSION, "repository": repository, "revision": revision, "reads": rows}


def parse_profile(text: bytes) -> list[Read]:
    """Inverse of ``profile_document``; a list of paths, one a line, will do as well. Raises MalformedError."""
    if not text.lstrip().startswith(b"{"):
        return [Read(_canonical(line)) for line in text.splitlines() if line.strip()][:_MOST_FILES]
    try:
        document = json.loads(text)
        if document["version"] != _VERSION:
            raise MalformedError(f"the profile has version {document['version']!r}; version {_VERSION} can be read")
        reads = [
            Read(_canonical(os.fsencode(row["path"])), tuple(int(number) for number in row.get("chunks", ())))
            for row in document["reads"][:_MOST_FILES]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MalformedError(f"this is no profile: {error!r}") from error
    return reads


def read_profile(file: Path) -> list[Read]:
    """The profile in *file*. Raises AbsentError, MalformedError, RefusedError."""
    try:
        with file.open("rb") as stream:
            text = stream.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise AbsentError(f"the profile {file} cannot be read: {error.strerror}") from error
    if len(text) > LIMIT_BYTES:
        raise RefusedError(f"the profile {file} is larger than {LIMIT_BYTES} bytes")
    return parse_profile(text)


def _canonical(path: bytes) -> bytes:
    """*path* from the root of the repository, as catalogs have it."""
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    return b"".join(b"/" + name for name in names)
