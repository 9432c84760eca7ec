"""Writes the trace of a run."""

import json
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import LaunchError
from launcher.plan.launch_plan import LaunchPlan
from launcher.run_dir.layout import RunDirLayout
from launcher.run_dir.reader import is_locked
from launcher.trace.chrome import trace_of
from launcher.trace.recordings import load, load_running
from mimo_role.host.files import write_whole

LAST_S = 10.0
"""Seconds in the trace that a failed or hung run writes by itself."""


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
        out: the file; default: `trace.json` in the run directory.

    Raises:
        LaunchError: nothing was recorded, or the file cannot be written.
    """
    found = load_running(run_dir, plan) if is_locked(run_dir) else None
    found = found or load(run_dir, plan)
    if found is None:
        raise LaunchError(
            f"{run_dir.path}: nothing is recorded here; ranks record what Schedule1F1B runs, and what a script passes to "
            "ctx.step(), ctx.span() and ctx.log()"
        )
    return _write(out or run_dir.trace_file, trace_of(plan, found, steps=steps))


def write_last_seconds(run_dir: RunDirLayout, plan: LaunchPlan) -> Written | None:
    """Write the trace of the last seconds of a run that has failed; `None` if nothing was recorded.

    Raises:
        LaunchError: the file cannot be written.
    """
    found = load(run_dir, plan)
    return _write(run_dir.trace_file, trace_of(plan, found, last_s=LAST_S)) if found is not None else None


def _write(path: Path, trace: dict[str, Any]) -> Written:
    try:
        write_whole(path, json.dumps(trace, separators=(",", ":"), allow_nan=False))
    except OSError as error:
        raise LaunchError(f"{path}: {error.strerror}; choose another file with --out FILE") from None
    spans = [event for event in trace["traceEvents"] if event["ph"] in "XB"]
    ranks = {event["pid"] for event in trace["traceEvents"]}
    return Written(path, len(ranks), len(spans), tuple(trace["metadata"]["ranks_without_recording"]))
