"""A benchmark of this checkout against the same benchmark of another one, such as the last release's.

    git worktree add ../before v0.1.0
    python benchmarks/compare.py ../before bridge --rounds 5 -- --only "1:1 tp 1" --mib 1

Both run in turn, each with its own code, so that what else the machine does falls on both. A row shows the medians of the
benchmark's `ours`, of this checkout and of the other one, and the median of the rounds' ratios.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from report import Row, show

HERE = Path(__file__).parents[1]


def measured(checkout: Path, benchmark: str, settings: list[str]) -> dict[str, float]:
    """The cases of one run, and what each took."""
    command = [sys.executable, str(checkout / "benchmarks" / f"{benchmark}.py"), "--json", *settings]
    environ = {**os.environ, "PYTHONPATH": str(checkout)}  # before what is installed
    found = subprocess.run(command, env=environ, cwd=checkout, stdout=subprocess.PIPE, text=True, check=True)
    return {row["case"]: row["ours"] for row in json.loads(found.stdout)["rows"]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("other", type=Path, help="the other checkout's folder")
    options.add_argument("benchmark", help="such as bridge, startup or recovery")
    options.add_argument("--rounds", type=int, default=5, help="runs of each (default: 5)")
    options.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options.epilog = "The benchmark's own options come after --."
    words = [*sys.argv[1:], "--"]
    own, settings = words[: words.index("--")], words[words.index("--") + 1 : -1]
    arguments = options.parse_args(own)
    rounds = []
    for number in range(arguments.rounds):
        checkouts = [HERE, arguments.other.resolve()]
        found = {path: measured(path, arguments.benchmark, settings) for path in checkouts[:: 1 - 2 * (number % 2)]}
        rounds.append([found[path] for path in checkouts])
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    cases = [case for case in rounds[0][0] if all(case in side for sides in rounds for side in sides)]
    rows = []
    for case in cases:
        here, other = zip(*((mine[case], theirs[case]) for mine, theirs in rounds), strict=True)
        ratio = median(mine / theirs if theirs else float(mine == theirs) for mine, theirs in zip(here, other, strict=True))
        rows.append(Row(case, median(here), median(other), ratio, len(rounds)))
    show(f"{arguments.benchmark} against {arguments.other}", rows, arguments.json)


if __name__ == "__main__":
    main()
