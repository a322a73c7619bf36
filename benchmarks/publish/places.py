"""Where benchmarks publish."""

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import cpu_s, family
from fs.publish.repository import Repository, Settings

NAME = "bench.example.org"


def fresh(folder: Path, *, processes: int = 0) -> Repository:
    """An empty repository in place of the one before, written with the help of so many processes."""
    for part in ("storage", "keys"):
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / "keys").mkdir()
    return Repository.create(
        NAME, str(folder / "storage"), folder / "keys", settings=Settings(writer_processes=processes)
    )


@dataclass(frozen=True, slots=True)
class Moment:
    """A time on two clocks: the wall's, and that of this process and its children, which others hardly disturb."""

    wall_s: float
    cpu_s: float

    @classmethod
    def now(cls) -> "Moment":
        """This moment."""
        return cls(time.perf_counter(), sum(map(cpu_s, family(os.getpid()))))

    def since(self, earlier: "Moment") -> "Moment":
        """What has passed since *earlier*."""
        return Moment(self.wall_s - earlier.wall_s, self.cpu_s - earlier.cpu_s)
