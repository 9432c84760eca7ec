"""Writes the trace of a run."""

import json
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import LaunchError
from launcher.plan.launch_plan import LaunchPlan
from launcher.run_dir.layout import RunDirLayout
from launcher.run_dir.lock import is_locked
from launcher.trace.chrome import trace_of
from launcher.trace.recordings import load, load_running
from mimo_role.host.files import write_whole

LAST_S = 10.0
"""Seconds in the trace that a failed or hung run writes by itself."""
MOST_RANKS = 64
"""Ranks in it: one of each stage, and those beside the one that failed. `mimo-launch trace` writes all."""


@dataclass(frozen=True)
class Written:
    """A trace that was written."""

    path: Path
    ranks: int
    spans: int
    without: tuple[int, ...]
    """Ranks of which there is no recording."""


def steps_from(text: str | None) -> range | None:
    """The steps of `40-50` or `40`; `None` for all.

    Raises:
        LaunchError: it is neither.
    """
    if text is None:
        return None
    first, _, last = text.partition("-")
    numbers = [first, last or first]
    if not all(number.isascii() and number.isdigit() for number in numbers) or int(numbers[0]) > int(numbers[1]):
        raise LaunchError(f"--steps {text}: give a step or a range of them, such as 40-50")
    return range(int(numbers[0]), int(numbers[1]) + 1)


def write_trace(
    run_dir: RunDirLayout, plan: LaunchPlan, *, steps: Container[int] | None = None, out: Path | None = None
) -> Written:
    """Write the trace of a run that has ended, or of node 0 of one that is going on on this machine.

    Args:
        run_dir: of the run.
        plan: of the run.
        steps: only these steps.
        out: the file; default: `mimo_trace.json` in the run directory.

    Raises:
        LaunchError: nothing was recorded, or the file cannot be written.
    """
    is_running = is_locked(run_dir)
    found = load_running(run_dir, plan) if is_running else load(run_dir, plan, steps=steps)
    if found is None and is_running:
        raise LaunchError(
            f"{run_dir.path}: the run is going on, and node 0 ({host_of_node_0(run_dir)}) has its recordings; run the command "
            "there, or when the run has ended"
        )
    if found is None:
        raise LaunchError(
            f"{run_dir.path}: nothing is recorded here; ranks record what Schedule1F1B runs, and what a script passes to "
            "ctx.step(), ctx.span() and ctx.log()"
        )
    trace = trace_of(plan, found, steps=steps)
    if steps is not None and not any(event["ph"] in "XBiC" for event in trace["traceEvents"]):
        raise LaunchError(f"{run_dir.path}: nothing of these steps is recorded; ranks keep their last records only")
    return _write(out or run_dir.trace_file, trace)


def write_last_seconds(run_dir: RunDirLayout, plan: LaunchPlan, failed: int | None = None) -> Written | None:
    """Write the trace of the last seconds of a run that has failed; `None` if nothing was recorded.

    Args:
        run_dir, plan: of the run.
        failed: the rank that failed first, if one has.

    Raises:
        LaunchError: the file cannot be written.
    """
    found = load(run_dir, plan, ranks=ranks_to_show(plan, failed), last_ns=round(1e9 * LAST_S))
    return _write(run_dir.failure_trace_file, trace_of(plan, found, last_s=LAST_S)) if found is not None else None


def ranks_to_show(plan: LaunchPlan, failed: int | None) -> list[int]:
    """At most `MOST_RANKS` ranks: the one that failed, the first of each stage, then its node's, then the others."""
    topology = plan.topology
    wanted = [] if failed is None else [failed]
    wanted += [grid.rank_at({"pp": stage}) for grid in topology.grids.values() for stage in range(grid.axis_size("pp"))]
    wanted += next((list(node.ranks) for node in plan.nodes if failed in node.ranks), [])
    wanted += range(min(topology.world_size, 2 * MOST_RANKS))
    return list(dict.fromkeys(wanted))[:MOST_RANKS]


def host_of_node_0(run_dir: RunDirLayout) -> str:
    """The host of node 0, as the run directory has it."""
    try:
        nodes = json.loads(run_dir.nodes_file.read_text(encoding="utf-8"))
        return str(nodes[0]["host"])
    except (OSError, ValueError, LookupError, TypeError):
        return "the machine on which the run was started"


def _write(path: Path, trace: dict[str, Any]) -> Written:
    try:
        write_whole(path, json.dumps(trace, separators=(",", ":"), allow_nan=False))
    except OSError as error:
        raise LaunchError(f"{path}: {error.strerror}; choose another file with --out FILE") from None
    spans = [event for event in trace["traceEvents"] if event["ph"] in "XB"]
    ranks = {event["pid"] for event in trace["traceEvents"]}
    return Written(path, len(ranks), len(spans), tuple(trace["metadata"]["ranks_without_recording"]))
