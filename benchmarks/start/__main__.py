"""From nothing to the first line of a container's output, by several snapshotters, over links of several lengths.

Run as root from the project's folder, after ``make containerd-2 nerdctl stargz``::

    # IMAGES: OCI layouts, tag 1: base (Debian), sci (it, python3, numpy, scipy, pandas), sixty (it, in 60 layers)
    python -m benchmarks.start --work WORK prepare --images IMAGES      # once; minutes (record: its last step alone)
    python -m benchmarks.start --work WORK measure --out FILE [--way NAME] [--image NAME] [--round-trip-ms N] [--runs N]
    python -m benchmarks.start table FILE…

All ways use the same containerd 2.x and the same registry and origin on this machine, which a relay puts some
milliseconds away behind a link of 1 Gbit/s. Before the clock runs, the daemons of the way run with empty caches, and
repositories are mounted; nothing of the image is there. *pull* is ``ctr images pull``, *first* the time from the
beginning of the pull to the first line of the container's output; bytes are those that the link carried to the node.
"""

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.rootfs import STORM
from benchmarks.start.prepare import Sources, prepare, sources
from benchmarks.start.recording import read_bytes, record
from benchmarks.start.ways import Distance, Start, Way, started, transferred

IMAGES = {
    "base": ("/bin/sh", "-c", "echo up; exec ls -R /etc"),
    "sci": ("/usr/bin/python3", "-c", "import numpy, scipy, pandas; print('up', flush=True)"),
    "sixty": ("/bin/sh", "-c", "echo up; exec ls -R /etc"),
}
AT_ONCE = 10


def first_line(start: Start, name: str, command: Iterable[str]) -> float:
    """Seconds until a container has printed a line; it then ends."""
    began = time.perf_counter()
    with start.begin(name, *command) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        took = time.perf_counter() - began
        process.stdout.read()
    if not line.startswith("up"):
        raise RuntimeError(f"the container printed {line!r}")
    return took


def one_start(start: Start, command: tuple[str, ...]) -> dict[str, float]:
    """A cold start, and then another one."""
    before = start.link.bytes_to_client
    began = time.perf_counter()
    start.pull()
    pull_s = time.perf_counter() - began
    first_s = pull_s + first_line(start, "first", command)
    moved = start.link.bytes_to_client - before
    fetched = transferred(start)
    return {
        "pull s": pull_s,
        "first s": first_s,
        "next s": first_line(start, "next", command),
        "moved MB": moved / 1e6,
        **{name: float(value) for name, value in fetched.items()},
    }


def many_starts(start: Start, command: tuple[str, ...]) -> dict[str, float]:
    """Ten containers at once, cold, after one pull."""
    began = time.perf_counter()
    start.pull()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(lambda number: first_line(start, f"c{number}", command), range(AT_ONCE)))
    return {"ten at once s": time.perf_counter() - began}


def storm(start: Start) -> dict[str, float]:
    """Microseconds a name of ``lstat`` over everything inside a container, for the second time."""
    start.pull()
    _, warm, _ = json.loads(start.run("storm", "/usr/bin/python3", "-c", STORM))
    return {"warm storm us": warm}


def measure(given: Sources, arguments: argparse.Namespace) -> None:
    """Append one line of JSON a run."""
    for run in range(arguments.runs):
        for way in [Way(name) for name in arguments.way]:
            for image in arguments.image:
                for round_trip_ms in arguments.round_trip_ms:
                    with started(way, given, image, Distance(round_trip_ms)) as start:
                        match arguments.what:
                            case "start":
                                figures = one_start(start, IMAGES[image])
                            case "ten":
                                figures = many_starts(start, IMAGES[image])
                            case _:
                                figures = storm(start)
                    row = {"way": str(way), "image": image, "round_trip_ms": round_trip_ms, **figures}
                    with arguments.out.open("a") as stream:
                        stream.write(json.dumps(row) + "\n")
                    print(run, row, file=sys.stderr)


def table(files: Iterable[Path]) -> str:
    """Medians as Markdown, a row for each way, image and distance."""
    rows: dict[tuple[str, float, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        for line in file.read_text().splitlines():
            row = json.loads(line)
            found = rows[row.pop("image"), row.pop("round_trip_ms"), row.pop("way")]
            for key, value in row.items():
                found[key].append(value)
    keys = list(dict.fromkeys(key for found in rows.values() for key in found))
    lines = ["| image | round trip | way | n | " + " | ".join(keys) + " |", "|---" * (len(keys) + 4) + "|"]
    order = [str(way) for way in Way]
    for (image, distance, way), found in sorted(rows.items(), key=lambda one: (*one[0][:2], order.index(one[0][2]))):
        count = max(map(len, found.values()))
        medians = [f"{statistics.median(found[key]):.3g}" if key in found else "" for key in keys]
        lines.append(f"| {image} | {distance:g} ms | {way} | {count} | " + " | ".join(medians) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parse the arguments, do it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="directory for registry and repository")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("prepare")
    one.add_argument("--images", type=Path, required=True, help="directory of OCI layouts")
    one.add_argument("--image", action="append", choices=IMAGES)
    one = commands.add_parser("record")
    one.add_argument("--image", action="append", choices=IMAGES)
    one = commands.add_parser("read", help="what starts read, added up")
    one.add_argument("--image", action="append", choices=IMAGES)
    one = commands.add_parser("measure")
    one.add_argument("--what", choices=("start", "ten", "storm"), default="start")
    one.add_argument("--way", action="append", choices=[str(way) for way in Way])
    one.add_argument("--image", action="append", choices=IMAGES)
    one.add_argument("--round-trip-ms", type=float, action="append")
    one.add_argument("--runs", type=int, default=1)
    one.add_argument("--out", type=Path, required=True)
    one = commands.add_parser("table")
    one.add_argument("files", type=Path, nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "table":
        print(table(arguments.files))
        return
    if arguments.work is None:
        parser.error("--work is needed")
    arguments.work = arguments.work.absolute()
    arguments.image = arguments.image or list(IMAGES)
    if arguments.command == "prepare":
        prepare(arguments.work, arguments.images.absolute(), arguments.image)
        record(arguments.work, {image: IMAGES[image] for image in arguments.image})
        return
    if arguments.command == "record":
        record(arguments.work, {image: IMAGES[image] for image in arguments.image})
        return
    if arguments.command == "read":
        print(json.dumps({image: read_bytes(arguments.work, image) for image in arguments.image}, indent=2))
        return
    arguments.way = arguments.way or [str(way) for way in Way]
    arguments.round_trip_ms = arguments.round_trip_ms or [0, 5, 20]
    with sources(arguments.work) as given:
        measure(given, arguments)


if __name__ == "__main__":
    main()
