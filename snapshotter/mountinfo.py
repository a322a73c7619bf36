"""What is mounted where in this mount namespace.

Source: proc(5), ``/proc/pid/mountinfo``: the fifth field is the mount point, with blanks as octal escapes; optional
fields follow from the seventh on up to a dash, ``shared:`` among them if mounts below are passed on to others; after
the dash come the type of the file system and what the mount calls its source.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_OCTAL_ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))


@dataclass(frozen=True, slots=True)
class MountPoint:
    """One line of the table."""

    path: Path
    is_shared: bool
    kind: str  # type of the file system
    source: str


def parse_mountinfo(text: str) -> Iterator[MountPoint]:
    """The mounts in the order in which they were made."""
    for line in text.splitlines():
        fields = line.split(" ")
        end = fields.index("-", 6)
        is_shared = any(field.startswith("shared:") for field in fields[6:end])
        yield MountPoint(Path(_plain(fields[4])), is_shared, kind=fields[end + 1], source=_plain(fields[end + 2]))


def _plain(field: str) -> str:
    for escape, character in _OCTAL_ESCAPES:
        field = field.replace(escape, character)
    return field


def mount_points() -> tuple[MountPoint, ...]:
    """The mounts of this process's namespace."""
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    return tuple(parse_mountinfo(text))


def is_seen_outside(path: Path) -> bool:
    """True if what this process mounts at or below *path* is seen by the first process, as far as is known."""
    try:
        if Path("/proc/self/ns/mnt").readlink() == Path("/proc/1/ns/mnt").readlink():
            return True
    except OSError:
        return True  # its namespace cannot be read
    above = [point for point in mount_points() if path.is_relative_to(point.path)]
    return bool(above) and max(reversed(above), key=lambda point: len(point.path.parts)).is_shared
