"""Medians and ratios of what was measured, as a JSON document and as a Markdown table."""

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.fs.suites import LOCAL, Figure

Row = dict[str, Any]


def document(values: Mapping[Figure, Sequence[float]], facts: Mapping[str, Any]) -> Row:
    """All figures; ``ratio`` is to the local directory's median, of the same state and the same runs."""
    medians = {figure: statistics.median(found) for figure, found in values.items()}
    local = {(one.what, one.state, one.round_trip_ms): value for one, value in medians.items() if one.where == LOCAL}
    rows: list[Row] = []
    for figure, found in values.items():
        beside = local.get((figure.what, figure.state, figure.round_trip_ms))
        beside = beside or local.get((figure.what, figure.state, 0))
        row: Row = {
            "what": figure.what,
            "state": figure.state,
            "round_trip_ms": figure.round_trip_ms,
            "where": figure.where,
            "unit": figure.unit,
            "median": _rounded(medians[figure]),
            "values": [_rounded(value) for value in found],
        }
        if beside and figure.where != LOCAL:
            row["ratio"] = _rounded(medians[figure] / beside)
        rows.append(row)
    machine = {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    return {**facts, "machine": machine, "figures": rows}


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def table(rows: Sequence[Row]) -> str:
    """A line for each figure, a column for each place; behind a figure, how many times the local one it is."""
    places = list(dict.fromkeys(row["where"] for row in rows))
    if LOCAL in places:
        places = [LOCAL, *(place for place in places if place != LOCAL)]
    lines: dict[tuple[str, str, float, str], dict[str, str]] = {}
    for row in rows:
        line = lines.setdefault((row["what"], row["state"], row["round_trip_ms"], row["unit"]), {})
        ratio = f" ({row['ratio']:g}x)" if "ratio" in row else ""
        line[row["where"]] = f"{row['median']:g}{ratio}"
    head = ["", "state", "added round trip", "unit", *places]
    text = [_line(head), _line(["---"] * len(head))]
    for (what, state, round_trip_ms, unit), line in lines.items():
        away = f"{round_trip_ms:g} ms" if round_trip_ms else ""
        text.append(_line([what, state, away, unit, *(line.get(place, "") for place in places)]))
    return "\n".join(text)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
