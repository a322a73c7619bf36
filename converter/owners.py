"""Who works on a job: a name that tells, on the same machine, whether the process still lives."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_START_TIME_FIELD = 19  # of the fields behind the program's name; field 22 counted from 1. Source: proc(5), stat


@dataclass(frozen=True, slots=True)
class Owner:
    """A process: *place* names machine, boot and pid namespace, *started* tells it from a later one of its pid."""

    place: str
    pid: int
    started: int  # clock ticks since boot

    @classmethod
    def current(cls) -> Self:
        """This process."""
        return cls(_this_place(), os.getpid(), _start_time(os.getpid()) or 0)

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Inverse of ``str()``; None for text of another form."""
        place, _, numbers = text.rpartition("#")
        pid, _, started = numbers.partition(".")
        if not (place and pid.isdigit() and started.isdigit()):
            return None
        return cls(place, int(pid), int(started))

    def __str__(self) -> str:
        return f"{self.place}#{self.pid}.{self.started}"


def is_dead(owner: str) -> bool:
    """True if *owner* is a process of this machine that has ended; False if it lives or cannot be seen from here."""
    known = Owner.parse(owner)
    return known is not None and known.place == _this_place() and _start_time(known.pid) != known.started


def _this_place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = Path("/proc/self/ns/pid").readlink()
    return f"{socket.gethostname()}/{boot}/{namespace}"


def _start_time(pid: int) -> int | None:
    """When the process started; None if there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[_START_TIME_FIELD])
