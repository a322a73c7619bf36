"""``python -m benchmarks.fs``: what the client costs its users, beside a local directory in the same run.

Run as root from the project's folder. Prints a Markdown table of medians, or with ``--json`` one document with all
values. Documents that were kept are printed as one table by ``--table FILE…``.
"""

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from benchmarks.fs.report import document, table
from benchmarks.fs.suites import FAR_SUITES, SUITES, Figure, Run
from benchmarks.fs.world import Sizes, away, build, origin

FRONTENDS = ("pyfuse3", "wire", "erofs")
_DEFAULTS = Sizes()


def parse_arguments() -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fs",
        description=(__doc__ or "").replace("``", "'"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--suite", action="append", choices=list(SUITES), help="repeatable; all by default")
    parser.add_argument("--frontend", action="append", choices=FRONTENDS, help="repeatable; all by default")
    parser.add_argument("--round-trip", action="append", type=float, help="added ms; repeatable; default: 0, 5, 20")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--files", type=int, default=_DEFAULTS.small, help="small files (suite files)")
    parser.add_argument("--entries", type=int, default=_DEFAULTS.tree, help="of the tree (suites find, tar)")
    parser.add_argument("--modules", type=int, default=_DEFAULTS.modules, help="Python modules (suite start)")
    parser.add_argument("--long-mib", type=int, default=_DEFAULTS.long_mib, help="of the long file (suite long)")
    parser.add_argument("--json", action="store_true", help="one document on stdout")
    parser.add_argument("--table", nargs="+", type=Path, metavar="FILE", help="print kept documents, measure nothing")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    if arguments.table:
        print(table([row for file in arguments.table for row in json.loads(file.read_text())["figures"]]))
        return
    suites = arguments.suite or list(SUITES)
    sizes = Sizes(
        small=arguments.files if "files" in suites else 0,
        tree=arguments.entries if {"find", "tar"} & set(suites) else 0,
        modules=arguments.modules if "start" in suites else 0,
        long_mib=arguments.long_mib if "long" in suites else 0,
    )
    frontends = tuple(arguments.frontend or FRONTENDS)
    values: defaultdict[Figure, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        world = build(Path(folder), sizes)
        with origin(world.work) as url:
            for number in range(arguments.runs):
                for suite in suites:
                    for round_trip_ms in arguments.round_trip or (0, 5, 20):
                        if round_trip_ms and suite not in FAR_SUITES:
                            continue
                        print(f"run {number + 1}: {suite}, {round_trip_ms:g} ms", file=sys.stderr)
                        with away(url, round_trip_ms) as place:
                            for figure, value in SUITES[suite](Run(world, place, round_trip_ms, frontends)).items():
                                values[figure].append(value)
    facts = {"runs": arguments.runs, "sizes": {name: getattr(sizes, name) for name in Sizes.__slots__}}
    found = document(values, facts)
    print(json.dumps(found, indent=1, ensure_ascii=False) if arguments.json else table(found["figures"]))


if __name__ == "__main__":
    main()
