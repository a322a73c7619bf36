"""Which figures there are. Every suite gives its figures of one run; ``where`` is a front end or ``local``."""

import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.fs.loops import (
    each_us,
    processor_s,
    read_long_mib_s,
    read_small,
    resident_mib,
    run_s,
    start_s,
    tar_s,
    together_us,
)
from benchmarks.fs.world import UNPACKD, World, forget_locally, mount, mountctl

LOCAL = "local"
PROCESSES = 64


@dataclass(frozen=True, slots=True)
class Figure:
    """What a number is about."""

    what: str
    state: str
    """``cold``: an empty cache and a fresh mount (of local files: the kernel has forgotten them); ``disk``: a fresh
    mount over the cache; ``warm``: again in the same mount."""
    unit: str
    where: str
    round_trip_ms: float = 0


Figures = dict[Figure, float]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a suite against one place."""

    world: World
    url: str
    round_trip_ms: float
    frontends: tuple[str, ...]


def files(run: Run) -> Figures:
    """Small files: names and contents, one process and many."""
    names = [path.relative_to(run.world.local) for path in sorted((run.world.local / "small").rglob("*"))]
    names = [name for name in names if (run.world.local / name).is_file()]

    def measure(root: Path, where: str, state: str) -> Figures:
        paths = [f"{root}/{name}" for name in names]
        add = partial(Figure, state=state, where=where, round_trip_ms=run.round_trip_ms)
        many = f"open+read+close 4 KiB, {PROCESSES} processes"
        daemon = None if where == LOCAL else _daemon(run.world)
        with _counted(daemon, len(paths)) as stat_us:
            found = {add("stat", unit="µs"): each_us(paths, os.stat)}
        with _counted(daemon, len(paths)) as read_us:
            found[add("open+read+close 4 KiB", unit="µs")] = each_us(paths, read_small)
        found[add(many, unit="µs a file")] = together_us(paths, PROCESSES)
        if daemon is not None and state != "warm":
            found[add("stat, daemon's processor time", unit="µs")] = stat_us[0]
            found[add("open+read+close 4 KiB, daemon's processor time", unit="µs")] = read_us[0]
        return found

    found: Figures = {}
    if not run.round_trip_ms:
        forget_locally(run.world.local / "small")
        found |= measure(run.world.local, LOCAL, "cold")
        found |= measure(run.world.local, LOCAL, "warm")
    for frontend in run.frontends:
        with mount(run.world, run.url, frontend) as mounted:
            found |= measure(mounted.root, frontend, "cold")
            found |= measure(mounted.root, frontend, "warm")
        with mount(run.world, run.url, frontend, keeps_cache=True) as mounted:
            found |= measure(mounted.root, frontend, "disk")
    return found


def long(run: Run) -> Figures:
    """One long file from its beginning to its end.

    ``warm`` is the second reading, in which the kernel marks every page as used again; ``warm, later`` the median of
    three that follow.
    """
    add = partial(Figure, "sequential read", unit="MiB/s", round_trip_ms=run.round_trip_ms)
    found: Figures = {}

    def measure(file: Path, where: str) -> None:
        for state in ("cold", "warm"):
            found[add(state=state, where=where)] = read_long_mib_s(file)
        found[add(state="warm, later", where=where)] = statistics.median(read_long_mib_s(file) for _ in range(3))

    forget_locally(run.world.local / "long")
    measure(run.world.local / "long", LOCAL)
    for frontend in run.frontends:
        with mount(run.world, run.url, frontend) as mounted:
            measure(mounted.root / "long", frontend)
        with mount(run.world, run.url, frontend, keeps_cache=True) as mounted:
            found[add(state="disk", where=frontend)] = read_long_mib_s(mounted.root / "long")
    return found


def find(run: Run) -> Figures:
    """``find`` over a tree, and what the daemon then has in memory."""
    return _program(run, "find", lambda root: run_s("find", root / "tree"))


def tar(run: Run) -> Figures:
    """Everything of a tree is read by ``tar``."""
    return _program(run, "tar", lambda root: tar_s(root / "tree"))


def _program(run: Run, what: str, seconds: Callable[[Path], float]) -> Figures:
    add = partial(Figure, round_trip_ms=run.round_trip_ms)
    shown = f"{what} {run.world.sizes.tree} entries"
    found: Figures = {}
    forget_locally(run.world.local / "tree")
    for state in ("cold", "warm"):
        found[add(shown, state, "s", LOCAL)] = seconds(run.world.local)
    for frontend in run.frontends:
        with mount(run.world, run.url, frontend) as mounted:
            daemon = _daemon(run.world)
            for state in ("cold", "warm"):
                with _counted(daemon, run.world.sizes.tree) as used_us:
                    found[add(shown, state, "s", frontend)] = seconds(mounted.root)
                found[add(f"{what}, daemon's processor time", state, "µs an entry", frontend)] = used_us[0]
            found[add("daemon's memory", f"after {what}", "MiB", frontend)] = resident_mib(daemon)
    return found


def start(run: Run) -> Figures:
    """A start that imports thousands of Python modules."""
    shown = f"start of {run.world.sizes.modules} modules"
    add = partial(Figure, shown, unit="s", round_trip_ms=run.round_trip_ms)
    profile = run.world.work / "profile.json"
    found: Figures = {}
    for state in ("cold", "warm"):
        if state == "cold":
            forget_locally(run.world.local / "python")
        found[add(state=state, where=LOCAL)] = start_s(run.world.local / "python")
    for frontend in run.frontends:
        with mount(run.world, run.url, frontend) as mounted:
            for state in ("cold", "warm"):
                with _counted(_daemon(run.world), run.world.sizes.modules) as used_us:
                    found[add(state=state, where=frontend)] = start_s(mounted.root / "python")
                key = Figure("start, daemon's processor time", state, "µs a module", frontend, run.round_trip_ms)
                found[key] = used_us[0]
            if frontend != "erofs":
                profile.write_bytes(mountctl(run.world, "profile"))
        with mount(run.world, run.url, frontend) as mounted:
            fetched = json.loads(mountctl(run.world, "prefetch", "--profile", profile))["seconds"]
            started = start_s(mounted.root / "python")
            found[add(state="cold, profile: fetching it", where=frontend)] = fetched
            found[add(state="cold, profile: then the start", where=frontend)] = started
        with mount(run.world, run.url, frontend, "--profile", profile) as mounted:
            found[add(state="cold, profile: both at once", where=frontend)] = start_s(mounted.root / "python")
    return found


def life(run: Run) -> Figures:
    """Mounting, the commands' own start, and what an idle daemon has in memory."""
    found: Figures = {}
    add = partial(Figure, state="disk", where="command")
    found[add("python -c pass", unit="s")] = run_s(sys.executable, "-c", "pass")
    for words in ("--help", "mount --help", "repo ls --help", "snapshotter --help"):
        found[add(f"unpackd {words}", unit="s")] = run_s(*UNPACKD, *words.split())
    for frontend in run.frontends:
        if frontend == "erofs":
            continue
        with mount(run.world, run.url, frontend) as mounted:
            found[Figure("mount", "cold", "s", frontend)] = mounted.seconds
            found[Figure("daemon's memory", "after mount", "MiB", frontend)] = resident_mib(_daemon(run.world))
        with mount(run.world, run.url, frontend, keeps_cache=True) as mounted:
            found[Figure("mount", "disk", "s", frontend)] = mounted.seconds
    return found


@contextmanager
def _counted(daemon: int | None, operations: int) -> Iterator[list[float]]:
    """Microseconds of processor time an operation that *daemon* uses in the block, in the list that is given."""
    used: list[float] = []
    before = 0.0 if daemon is None else processor_s(daemon)
    yield used
    if daemon is not None:
        used.append((processor_s(daemon) - before) / operations * 1e6)


def _daemon(world: World) -> int:
    return int(json.loads(mountctl(world, "status"))["pid"])


SUITES: dict[str, Callable[[Run], Figures]] = {
    "files": files,
    "long": long,
    "find": find,
    "tar": tar,
    "start": start,
    "life": life,
}
"""By name."""

FAR_SUITES = frozenset({"files", "start"})
"""Those that are repeated with every round trip."""
