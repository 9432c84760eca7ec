"""One micro-batch over a bridge and its gradients back, by this checkout and by another one, in one world.

    git worktree add ../before v0.1.0
    python benchmarks/bridge_versions.py ../before --only "tp 1" --mib 0.25 1

Two worlds of the same code differ by more than two versions do, so here both are imported in the same ranks, the other one as
`mimo_role_other` from a copy, and take turns. The cases are those of `bridge.py`. A row shows the medians in ms, and the median
of the worlds' medians of the ratios of neighbouring turns; who is first alternates. Ratios of single worlds, also of the same
code on both sides, differ by 10 % and more.
"""

import argparse
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from bridge import LIMIT_S, MIB, MicroBatch, chosen_cases, name_of
from report import Row, show

from mimo_role.testing import run_ranks

WARM_UP = 5
"""Turns of each side that are not counted: in them, memory for large messages is allocated."""
OURS, OTHER = "mimo_role", "mimo_role_other"


def copy_of(checkout: Path, folder: Path) -> None:
    """Copy the checkout's `mimo_role` under a name of its own."""
    package = folder / OTHER
    shutil.copytree(checkout / OURS, package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in package.rglob("*.py*"):
        path.write_text(re.sub(rf"\b{OURS}\b", OTHER, path.read_text()))


def measure(
    folder: str, packages: list[str], shape: tuple[int, int, int], mib: float, parallel: bool, autograd: bool, pairs: int
) -> Any:
    """On one rank: ms per micro-batch of each package, turn by turn."""
    import torch.distributed as dist

    sys.path.insert(0, folder)
    both = [MicroBatch(import_module(package), shape, mib, parallel) for package in packages]
    steps: list[Callable[[], None]] = [each.autograd_step if autograd else each.step for each in both]
    repeats = 20 if mib < 4 else 3
    found: list[list[float]] = [[], []]
    for number in range(pairs + WARM_UP):
        for side in (0, 1)[:: 1 - 2 * (number % 2)]:
            dist.barrier()
            started = time.perf_counter()
            for _ in range(repeats):
                steps[side]()
            dist.barrier()
            found[side].append(1000 * (time.perf_counter() - started) / repeats)
    return [times[WARM_UP:] for times in found]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("other", type=Path, help="the other checkout's folder; this one's own shows the noise")
    options.add_argument("--mib", type=float, nargs="+", default=MIB, help="sizes of a micro-batch")
    options.add_argument("--only", default="", help="cases whose name has this in it, such as 'tp 4'")
    options.add_argument("--autograd", action="store_true", help="call the bridge as a function, instead of single steps")
    options.add_argument("--pairs", type=int, default=11, help="turns of each side in a world (default: 11)")
    options.add_argument("--worlds", type=int, default=16, help="worlds of each case (default: 16)")
    options.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = options.parse_args()
    cases = chosen_cases(options, arguments.only)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        copy_of(arguments.other.resolve(), Path(folder))
        for m, n, tp, parallel in cases:
            case = name_of(m, n, tp, parallel)
            for mib in arguments.mib:
                ours, other, ratios = [], [], []
                for world in range(arguments.worlds):
                    packages = [OURS, OTHER][:: 1 - 2 * (world % 2)]
                    settings = (folder, packages, (m, n, tp), mib, parallel, arguments.autograd, arguments.pairs)
                    found = dict(zip(packages, run_ranks(measure, (m + n) * tp, *settings, timeout_s=LIMIT_S)[0], strict=True))
                    ours += found[OURS]
                    other += found[OTHER]
                    ratios.append(median(mine / theirs for mine, theirs in zip(found[OURS], found[OTHER], strict=True)))
                rows.append(Row(f"{case}, {mib:g} MiB", median(ours), median(other), median(ratios), len(ours)))
                print(f"{rows[-1].case}: {' '.join(f'{ratio:.2f}' for ratio in sorted(ratios))}", file=sys.stderr)
    show(f"bridges against {arguments.other}", rows, arguments.json)


if __name__ == "__main__":
    main()
