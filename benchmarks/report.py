"""What the benchmarks share: alternating runs, medians, a table and JSON."""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median


@dataclass(frozen=True)
class Row:
    """One case: medians of ours and the peer's over `runs` alternating runs."""

    case: str
    ours: float
    peer: float
    ratio: float
    runs: int


def alternate(case: str, ours: Callable[[], float], peer: Callable[[], float], runs: int) -> Row:
    """Measure both in turn, so that what else the machine does falls on both."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        found[0].append(ours())
        found[1].append(peer())
    return Row(case, median(found[0]), median(found[1]), median(found[0]) / median(found[1]), runs)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return arguments


def show(benchmark: str, rows: list[Row], as_json: bool) -> None:
    """Print the result."""
    if as_json:
        print(json.dumps({"benchmark": benchmark, "rows": [asdict(row) for row in rows]}))
        return
    width = max(len(row.case) for row in rows)
    print(f"{'case':{width}}  {'ours':>12}  {'peer':>12}  {'ratio':>8}  runs")
    for row in rows:
        print(f"{row.case:{width}}  {row.ours:12.3f}  {row.peer:12.3f}  {row.ratio:8.3g}  {row.runs:4d}")
