"""Readers at random, while revisions come, the origin restarts and the daemon is killed: never a wrong byte.

Run as root from the project folder: ``python -m benchmarks.soak [--seconds N] [--json]``; an interval of 0 leaves that
fault out. Exit 0 if nothing was found: no wrong byte, no failed read, nobody who waited too long, no growth.

Every block of every file names its file and version and is otherwise a function of them, so readers know by
themselves what is right: one version per opened file, never older than one seen before, never one that is not
published, the size of that version; listings complete; what never existed stays absent.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.soak import readers
from benchmarks.soak.faults import Look, Mounted, Origin, as_lists
from benchmarks.soak.world import File, Plan, World

_SIGN_LIMIT_S = 45.0  # a reader without a sign of life for so long hangs
_END_TIMEOUT_S = 90.0
_FIT_LOOKS = 8  # with fewer there is no trend
_GROWTH = 1.15
_SLACK_KIB = 8 << 10
_SLACK_DESCRIPTORS = 24


def main() -> int:
    """Parse the arguments, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--readers", type=int, default=64)
    parser.add_argument("--data-mib", type=int, default=200)
    parser.add_argument("--quota-share", type=float, default=0.1, help="of the data")
    parser.add_argument("--revision-every", type=float, default=10, metavar="S")
    parser.add_argument("--origin-restart-every", type=float, default=60, metavar="S")
    parser.add_argument("--kill-every", type=float, default=120, metavar="S", help="needs a holder")
    parser.add_argument("--look-every", type=float, default=10, metavar="S")
    parser.add_argument("--pause", type=float, default=0.2, metavar="S", help="of a reader between two reads")
    parser.add_argument("--frontend", default="wire")
    parser.add_argument("--nice", type=int, default=0, help="of the readers")
    parser.add_argument("--work", type=Path, help="kept afterwards; a temporary directory by default")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.work is not None:
        arguments.work.mkdir(parents=True)
        report = soak(arguments.work, arguments)
    else:
        with tempfile.TemporaryDirectory() as folder:
            report = soak(Path(folder), arguments)
    if arguments.json:
        print(json.dumps(report, indent=1))
    else:
        for key, value in report.items():
            print(f"{key:28} {value if key != 'looks' else len(value)}")
    return 0 if report["is_good"] else 1


def soak(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run."""
    plan = Plan.of(arguments.data_mib)
    world = World(work, plan)
    world.begin()
    origin = Origin(world.storage, work / "origin.log")
    origin.start()
    quota_bytes = int(world.data_bytes * arguments.quota_share)
    try:
        mount = Mounted(world.public_key, work, origin.url, quota_bytes, ["--frontend", arguments.frontend])
        try:
            return _run(world, origin, mount, work, arguments) | {"quota_bytes": quota_bytes}
        finally:
            mount.unmount()
    finally:
        origin.stop()


def _run(world: World, origin: Origin, mount: Mounted, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    board = readers.Board.of(arguments.readers)
    findings = work / "findings.jsonl"
    longest_hold_s = max(1.0, min(180.0, arguments.seconds / 4))
    settings = readers.Settings(
        plan=world.plan,
        versions=world.versions,
        mountpoint=mount.mountpoint,
        findings=findings,
        pause_s=arguments.pause,
        longest_hold_s=longest_hold_s,
        nice=arguments.nice,
    )
    processes = readers.start(arguments.readers, settings, board)
    looks: list[Look] = []
    trouble: list[str] = []
    hung: set[int] = set()

    def look() -> None:
        now = time.monotonic()
        hung.update(number for number, sign in enumerate(board.signs) if now - sign > _SIGN_LIMIT_S)
        taken = mount.look()
        if taken is not None:
            looks.append(taken)

    over = threading.Event()
    faults: list[tuple[float, Callable[[], None]]] = [
        (arguments.revision_every, world.go_on),
        (arguments.origin_restart_every, origin.restart),
        (arguments.kill_every, mount.kill),
        (arguments.look_every, look),
    ]
    threads = [threading.Thread(target=_every, args=(every, act, over, trouble)) for every, act in faults if every]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    try:
        over.wait(arguments.seconds)
    finally:
        over.set()
        for thread in threads:
            thread.join()
        board.is_over.value = True
        hung |= _end(processes)
    elapsed_s = time.monotonic() - began
    last = _last_state(mount, world)
    found = _found(findings)
    growth = _growth(looks, arguments.kill_every)
    shutil.copy(mount.log, work / "mount.log")
    return {
        "is_good": not (found or hung or trouble or last or growth["is_growing"]),
        "seconds": round(elapsed_s, 1),
        "frontend": arguments.frontend,
        "readers": arguments.readers,
        "data_bytes": world.data_bytes,
        "files": len(world.plan.files),
        "operations": {kind: sum(counts) for kind, counts in board.counts.items()},
        "read_bytes": sum(board.read_bytes),
        "wrong": [line for line in found if line["what"] == "wrong"],
        "failed": [line for line in found if line["what"] != "wrong"],
        "hung_readers": sorted(hung),
        "trouble": trouble,
        "wrong_at_the_end": last,
        "longest_operation_s": round(max(board.longest_s), 3),
        "longest_lag_s": round(max(board.lag_s), 3),
        "revisions": world.revisions,
        "origin_restarts": origin.restarts,
        "longest_origin_absence_s": round(origin.longest_absence_s, 2),
        "kills": mount.kills,
        "growth": growth,
        "looks": as_lists(looks),
    }


def _every(every_s: float, act: Callable[[], None], over: threading.Event, trouble: list[str]) -> None:
    """*act* every so many seconds until it is over; what goes wrong there is told, not hidden."""
    due = time.monotonic() + every_s
    while not over.wait(max(0.0, due - time.monotonic())):
        try:
            act()
        except Exception as error:  # noqa: BLE001  # a fault of the soak's own
            trouble.append(f"{getattr(act, '__qualname__', act)}: {error!r}")
        due = max(due + every_s, time.monotonic())


def _end(processes: list[Any]) -> set[int]:
    """Wait for the readers; gives those that did not end."""
    deadline = time.monotonic() + _END_TIMEOUT_S
    hung = set()
    for number, process in enumerate(processes):
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            hung.add(number)
            process.kill()
    return hung


def _last_state(mount: Mounted, world: World) -> list[str]:
    """Refresh, then read everything once more; it must be the newest version. Gives what is not."""
    deadline = time.monotonic() + _END_TIMEOUT_S
    while mount.control("refresh") is None:
        if time.monotonic() > deadline:
            return ["the daemon does not answer"]
        time.sleep(0.2)
    wrong: list[str] = []
    for file in [*world.plan.small, *world.plan.large]:
        wanted = world.versions.committed[file.number]
        try:
            found = _versions(mount, file)
        except readers.WrongBytesError as error:
            wrong.append(f"{file.path}: {error}")
            continue
        if found != {wanted}:
            wrong.append(f"{file.path} shows version {found}, not {wanted}")
    return wrong


def _versions(mount: Mounted, file: File) -> set[int]:
    path = Path(f"{mount.mountpoint}{file.path}")
    data = path.read_bytes()
    blocks = [data[start : start + readers.BLOCK_BYTES] for start in range(0, len(data), readers.BLOCK_BYTES)]
    return {readers.check_block(block, file.number, number) for number, block in enumerate(blocks)}


def _found(findings: Path) -> list[dict[str, Any]]:
    if not findings.exists():
        return []
    return [json.loads(line) for line in findings.read_text("utf-8").splitlines()]


def _growth(looks: list[Look], kill_every_s: float) -> dict[str, Any]:
    """Second quarter of the run against the last, of looks at daemons that had lived for some time."""
    settled = [one for one in looks if one.age_s >= kill_every_s / 2] or looks
    if len(settled) < _FIT_LOOKS:
        return {"is_growing": False, "looks": len(settled)}
    quarter = len(settled) // 4
    early, late = settled[quarter : 2 * quarter], settled[-quarter:]
    figures: dict[str, Any] = {"looks": len(settled)}
    is_growing = False
    for name, slack in (
        ("daemon_kib", _SLACK_KIB),
        ("holder_kib", _SLACK_KIB),
        ("daemon_descriptors", _SLACK_DESCRIPTORS),
        ("holder_descriptors", _SLACK_DESCRIPTORS),
        ("journal_bytes", _SLACK_KIB << 10),
        ("known_inodes", 1000),
        ("daemon_threads", _SLACK_DESCRIPTORS),
    ):
        first, last = (statistics.median(getattr(one, name) for one in part) for part in (early, late))
        figures[name] = {"early": first, "late": last}
        is_growing |= last > first * _GROWTH + slack
    return figures | {"is_growing": is_growing}


if __name__ == "__main__":
    sys.exit(main())
