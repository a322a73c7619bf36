"""Where benchmarks publish."""

import resource
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from fs.publish.repository import Repository

NAME = "bench.example.org"


def fresh(folder: Path) -> Repository:
    """An empty repository in place of the one before."""
    for part in ("storage", "keys"):
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / "keys").mkdir()
    return Repository.create(NAME, str(folder / "storage"), folder / "keys")


@dataclass(frozen=True, slots=True)
class Moment:
    """A time on two clocks: the wall's, and this process's own, which other programs hardly disturb."""

    wall_s: float
    cpu_s: float

    @classmethod
    def now(cls) -> "Moment":
        """This moment."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return cls(time.perf_counter(), used.ru_utime + used.ru_stime)

    def since(self, earlier: "Moment") -> "Moment":
        """What has passed since *earlier*."""
        return Moment(self.wall_s - earlier.wall_s, self.cpu_s - earlier.cpu_s)
