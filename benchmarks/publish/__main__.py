"""What publishing costs: ingest beside a bare loop of deflate and hash over the same bytes, commits beside full houses.

Run from the project's folder: ``python -m benchmarks.publish [--runs N] [--images N[,N…]] [--only PART] [--json]``.
Medians over the runs.
"""

import argparse
import json
import os
import resource
import tempfile
from pathlib import Path

from benchmarks.publish.commits import measure_commits
from benchmarks.publish.ingest import measure_ingest

PARTS = ("ingest", "commit")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--images", default="10,10000,100000", help="how many are there when commits are timed")
    parser.add_argument("--only", choices=PARTS, help="measure only this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report: dict[str, object] = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "runs": options.runs}
    if options.only in (None, "ingest"):
        report["ingest"] = measure_ingest(options.runs)
    if options.only in (None, "commit"):
        with tempfile.TemporaryDirectory(prefix="unpackd-bench-") as folder:
            houses = [int(number) for number in options.images.split(",")]
            report["commit"] = measure_commits(Path(folder), options.runs, houses)
        report["commit_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for part in PARTS:
        for line in report.get(part, ()):  # type: ignore[attr-defined]
            print("  ".join(f"{key} {value}" for key, value in line.items()))
    print("  ".join(f"{key} {value}" for key, value in report.items() if key not in PARTS))


if __name__ == "__main__":
    main()
