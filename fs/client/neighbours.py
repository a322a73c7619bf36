"""Which small files to fetch because others beside them were read. Pure: it only says where, and how many.

Who reads one file of a directory after the other reads the rest as well; who reads in one directory after the other
reads in the next ones. Each file that is fetched in vain is paid for by one that was missing and is not waited for:
every further miss doubles what is fetched, so the number of times that a reader waits grows with the logarithm of what
it reads, not with the number of files or directories.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from fs.format.paths import ROOT, name_of, parent_path

SMALL_FILE_BYTES = 1 << 16
"""Only such files are fetched because they are beside others."""
_FOLDERS = 1024
_MISSES = 3
_FIRST_AROUND = 32
_MOST_AROUND = 512
_FIRST_BELOW = 128
_MOST_BELOW = 2048
_LEVELS = 2  # of directories above the one that holds the file
_SURE = 2  # misses that make a directory one that is read, and such directories that make it worth to look at others


@dataclass(frozen=True, slots=True)
class Around:
    """Files that are worth fetching."""

    top: bytes  # directory
    count: int  # at most
    suffix: bytes | None = None
    """None: only what lies in *top* itself. Else what lies anywhere below it and has a name that ends so."""
    after: bytes = b""
    """Name in *top* of the directory where reading has come to; those behind it come first."""


@dataclass(slots=True)
class _Below:
    """What was missing below a directory."""

    misses: dict[bytes, int] = field(default_factory=dict)  # by name of its directories
    is_read: bool = False
    bursts: int = 0


class Neighbours:
    """Notices who reads small files. What it remembers is bounded."""

    def __init__(self) -> None:
        self._missed = OrderedDict[bytes, int]()
        self._below = OrderedDict[bytes, _Below]()

    def missed(self, path: bytes, size: int) -> list[Around]:
        """The file at *path* with *size* bytes was read and had to be fetched: what else is worth fetching."""
        if size > SMALL_FILE_BYTES:
            return []
        folder = parent_path(path)
        found: list[Around] = []
        count = self._missed[folder] = self._missed.pop(folder, 0) + 1
        if len(self._missed) > _FOLDERS:
            self._missed.popitem(last=False)
        if count % _MISSES == 0:
            found.append(Around(folder, min(_MOST_AROUND, _FIRST_AROUND << min(count // _MISSES - 1, 10))))
        child = folder
        for _ in range(_LEVELS):
            if child == ROOT:
                break
            top = parent_path(child)
            below = self._missed_below(top, name_of(child))
            if below is not None:
                many = min(_MOST_BELOW, _FIRST_BELOW << min(below.bursts - 1, 10))
                found.append(Around(top, many, suffix_of(name_of(path)), name_of(child)))
            child = top
        return found

    def _missed_below(self, top: bytes, child: bytes) -> _Below | None:
        """Count a miss in directory *child* of *top*; gives the count if *top* is read from one to the next."""
        below = self._below[top] = self._below.pop(top, _Below())
        if len(self._below) > _FOLDERS:
            self._below.popitem(last=False)
        is_new = child not in below.misses
        if len(below.misses) < _FOLDERS or not is_new:
            below.misses[child] = below.misses.get(child, 0) + 1
        if not below.is_read:
            below.is_read = is_new = sum(count >= _SURE for count in below.misses.values()) >= _SURE
        if not below.is_read or not is_new:
            return None
        below.bursts += 1
        return below


def suffix_of(name: bytes) -> bytes:
    """What tells the kind of a file: the last dot and what follows; empty if there is none."""
    _, dot, suffix = name[1:].rpartition(b".")
    return dot + suffix
