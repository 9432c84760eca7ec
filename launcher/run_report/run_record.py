"""What a run directory has about a run, read for its report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from launcher.errors import LaunchError
from launcher.plan.launch_plan import LaunchPlan
from launcher.run_dir.layout import RunDirLayout
from launcher.run_dir.lock import is_locked
from launcher.run_dir.reader import describe, read_whole_report
from launcher.run_dir.rehearsal_result import Rehearsal, read_rehearsal
from launcher.run_report.step_timeline import (
    StepTimeline,
    last_complete_step,
    ranks_to_read,
    steps_begun,
    timeline_of,
)
from launcher.steps.metrics import StepMetrics, read_metrics
from launcher.stragglers.straggler import Straggler
from launcher.stragglers.text import stragglers_in
from launcher.trace.recordings import Recordings, load, load_running

_PROBES = 4
"""Ranks whose recordings decide which step is shown."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run, as far as its directory has it."""

    path: str
    plan: LaunchPlan
    state: str
    """In words, as `mimo-launch status` prints it."""
    is_running: bool
    hosts: Mapping[str, str]
    """By node."""
    report: Mapping[str, Any] | None
    """What report.json has; `None` before the end."""
    rehearsal: Rehearsal | None = None
    """`None` of a real run."""
    steps: Sequence[StepMetrics] = ()
    timelines: Sequence[StepTimeline] = ()
    """The last complete step, and after a failure the one in which it happened; or the one that was asked for."""

    @property
    def stragglers(self) -> list[Straggler]:
        """Those that the report names; without entries that are damaged."""
        found = self.report.get("stragglers") if self.report is not None else None
        return list(stragglers_in(found)) if isinstance(found, list) else []

    @property
    def stragglers_left_out(self) -> int:
        """How many more there were, by the report; 0 if it does not state it."""
        found = (self.report or {}).get("stragglers_left_out")
        return found if isinstance(found, int) else 0


def read_run(run_dir: RunDirLayout, plan: LaunchPlan, hosts: Mapping[str, str]) -> RunRecord:
    """Read all about a run but its timelines.

    Args:
        run_dir, plan: of the run.
        hosts: by node of the plan, as far as they are known.
    """
    return RunRecord(
        path=str(run_dir.path),
        plan=plan,
        state=describe(run_dir),
        is_running=is_locked(run_dir),
        hosts=hosts,
        report=read_whole_report(run_dir),
        rehearsal=read_rehearsal(run_dir),
        steps=_read_steps(run_dir),
    )


def _read_steps(run_dir: RunDirLayout) -> list[StepMetrics]:
    try:
        with run_dir.metrics_file.open(encoding="utf-8", errors="replace") as file:
            return read_metrics(file)
    except OSError:
        return []


def with_timelines(record: RunRecord, run_dir: RunDirLayout, step: int | None = None) -> RunRecord:
    """The same with the timelines of its recordings.

    Args:
        record: of the run.
        run_dir: of the run.
        step: only the timeline of this step.

    Raises:
        LaunchError: nothing of this step is recorded.
    """
    wanted = _ranks_in(record)
    ranks = ranks_to_read(record.plan, wanted)
    steps = [step] if step is not None else _steps_to_show(record, run_dir, ranks)
    found = _load(record, run_dir, ranks, steps)
    made = [timeline_of(record.plan, found, each, wanted) for each in steps] if found is not None else []
    timelines = [each for each in made if each is not None]
    if step is not None and not timelines:
        raise LaunchError(f"--step {step}: no span of this step is recorded{_recorded_steps(record, run_dir, ranks)}")
    return replace(record, timelines=timelines)


def _load(record: RunRecord, run_dir: RunDirLayout, ranks: Sequence[int], steps: Sequence[int]) -> Recordings | None:
    if not record.is_running:
        return load(run_dir, record.plan, ranks=ranks, steps=steps) if steps else None
    return load_running(run_dir, record.plan)


def _steps_to_show(record: RunRecord, run_dir: RunDirLayout, ranks: Sequence[int]) -> list[int]:
    """The last complete step; of a run that has failed or hung the last one that has begun, too."""
    found = _probe(record, run_dir, ranks)
    if found is None:
        return []
    complete = last_complete_step(found)
    steps = [complete] if complete is not None else []
    if record.report is not None and record.report.get("outcome") in ("failed", "stalled"):
        begun = [number for each in found.by_rank.values() for number in steps_begun(each)]
        steps += [max(begun)] if begun and max(begun) != complete else []
    return steps


def _probe(record: RunRecord, run_dir: RunDirLayout, ranks: Sequence[int]) -> Recordings | None:
    some = [ranks[at * len(ranks) // _PROBES] for at in range(_PROBES)] if len(ranks) > _PROBES else ranks
    return load_running(run_dir, record.plan) if record.is_running else load(run_dir, record.plan, ranks=some)


def _recorded_steps(record: RunRecord, run_dir: RunDirLayout, ranks: Sequence[int]) -> str:
    found = _probe(record, run_dir, ranks)
    begun = [number for each in found.by_rank.values() for number in steps_begun(each)] if found is not None else []
    return f"; there are steps {min(begun)} to {max(begun)}" if begun else ""


def _ranks_in(record: RunRecord) -> list[int]:
    """The ranks that the report names: the first that failed, those that held up the others, and stragglers."""
    report = record.report or {}
    first, culprits = report.get("first"), report.get("culprits")
    named = [first] if isinstance(first, dict) else []
    named += [each for each in culprits if isinstance(each, dict)] if isinstance(culprits, list) else []
    ranks = [rank for each in named if isinstance(rank := each.get("rank"), int)]
    return [*ranks, *(each.rank for each in record.stragglers)]
