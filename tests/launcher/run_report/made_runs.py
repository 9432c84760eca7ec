"""Run directories as mimo-launch writes them, of any size, without running anything: real files with made-up times."""

import gzip
import json
import math
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path

from launcher.config.loader import load
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.planner import make_plan
from launcher.run_dir.layout import RunDirLayout
from launcher.run_report.step_timeline import ranks_to_read
from launcher.steps.metrics import ModuleStep, StepMetrics
from mimo_role.monitoring.records import RECORD, RECORDS_AT, Flag, Kind, used_bytes
from mimo_role.monitoring.ring import Ring, what

SMALL = """\
name: small
layout: non_colocated
modules: {vision: {dp: 2}, language: {pp: 2}}
entry: {script: train.py}
"""
MEDIUM = """\
name: medium
layout: non_colocated
modules:
  vision:   {tp: 2, dp: 8, pool: encoders}
  language: {tp: 4, dp: 3, pp: 4, pool: llm}
pools:
  encoders: {nodes: 2, procs_per_node: 8}
  llm:      {nodes: 6, procs_per_node: 8}
entry: {script: train.py}
"""
LARGE = """\
name: large
layout: non_colocated
modules:
  vision:   {tp: 2, dp: 256, pool: encoders}
  audio:    {dp: 512, pool: encoders}
  language: {tp: 8, cp: 2, dp: 36, pp: 16, pool: llm}
pools:
  encoders: {nodes: 128, procs_per_node: 8}
  llm:      {nodes: 1152, procs_per_node: 8}
entry: {script: train.py}
"""
DONE = {
    "outcome": "done",
    "exit_code": 0,
    "headline": None,
    "attempts": 1,
    "restarts": [],
    "message": None,
    "began": "2026-11-26T08:00:00+00:00",
    "ended": "2026-11-26T11:25:30+00:00",
}
_MS = 1_000_000
_CAPACITY = 4_096


def plan_in(folder: Path, config: str) -> LaunchPlan:
    (folder / "job.yaml").write_text(config, encoding="utf-8")
    (folder / "train.py").touch()
    return make_plan(load(folder / "job.yaml", [])[0], folder / "job.yaml", ())


def write_run(
    folder: Path,
    config: str = SMALL,
    *,
    report: Mapping[str, object] | None = DONE,
    steps: Iterable[StepMetrics] = (),
    recorded: Iterable[int] | None = None,
    micro_batches: int = 4,
    last_step: int = 5,
) -> tuple[RunDirLayout, LaunchPlan]:
    """A run directory, and its plan.

    Args:
        folder: which gets a config too.
        config: of the job.
        report: what report.json has; `None`: there is none.
        steps: what metrics.jsonl has.
        recorded: the ranks that have a recording; default: those that a timeline reads.
        micro_batches: in each of the last three steps, which are recorded.
        last_step: the last one of them.
    """
    plan = plan_in(folder, config)
    run_dir = RunDirLayout(folder / "run")
    run_dir.attempt_dir(0).mkdir(parents=True)
    run_dir.plan_file.write_text(plan.to_json(), encoding="utf-8")
    run_dir.run_id_file.write_text("20261126T080000-1", encoding="utf-8")
    if report is not None:
        run_dir.report_file.write_text(json.dumps(report), encoding="utf-8")
    if lines := [each.to_json() for each in steps]:
        run_dir.metrics_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for rank in ranks_to_read(plan, []) if recorded is None else recorded:
        data = _recording(plan, rank, micro_batches, range(last_step - 2, last_step + 1))
        run_dir.recording_file(0, rank).write_bytes(gzip.compress(data, compresslevel=1))
    return run_dir, plan


def _recording(plan: LaunchPlan, rank: int, micro_batches: int, steps: range) -> bytes:
    """What a rank records of a pipeline: forwards and backwards of each micro-batch, and the waits between them."""
    memory = mmap.mmap(-1, RECORDS_AT + _CAPACITY * RECORD.size)
    ring = Ring(memory, rank)
    for step in steps:
        _record_step(ring, plan, rank, micro_batches, step)
    return bytes(memory[: used_bytes(memory[:])])


def _record_step(ring: Ring, plan: LaunchPlan, rank: int, micro_batches: int, step: int) -> None:
    module = plan.topology.modules_of(rank)[0]
    stage = plan.topology.grids[module].coords(rank)["pp"]
    stage_name, link = ring.name_of(f"{module}.{stage}"), ring.name_of("vision stage 0 -> language stage 0")
    slow = 1.6 if rank % 7 == 3 else 1.0
    now = (step * 1_000 + 3) * _MS + rank * 1_000
    ring.add(what(Kind.STEP), now, now, step)
    data = ring.name_of("data")
    ring.add(what(Kind.SPAN, data), now, now + 2 * _MS, step)
    now += 2 * _MS + (stage + (module == "language")) * 3 * _MS
    for batch in range(micro_batches):
        if module == "language":
            ring.add(what(Kind.WAIT_ACTIVATIONS, link, batch, 1, 0), now, now + _MS, step)
        now = _record_span(ring, Kind.FORWARD, stage_name, batch, step, now + _MS, round(3 * slow * _MS), link)
        now = _record_span(ring, Kind.BACKWARD, stage_name, batch, step, now, round(5 * slow * _MS), link)
    optimizer = ring.name_of("optimizer")
    ring.add(what(Kind.SPAN, optimizer), now, now + 4 * _MS, step, flags=Flag.FAILED if rank == 3 and step == 4 else 0)


def _record_span(ring: Ring, kind: Kind, name: int, batch: int, step: int, begin: int, length: int, link: int) -> int:
    send = Kind.SEND_ACTIVATIONS if kind is Kind.FORWARD else Kind.SEND_GRADIENTS
    ring.add(what(send, link, batch, 1), begin + length * 4 // 5, begin + length * 9 // 10, step)
    ring.add(what(kind, name, batch, 1), begin, begin + length, step)
    return begin + length


def made_steps(count: int, modules: Iterable[str] = ("vision", "language"), restart_at: int | None = None) -> list[StepMetrics]:
    """Steps with a falling loss that has outliers, and the times of modules."""
    return [
        StepMetrics(
            step=step,
            attempt=int(restart_at is not None and step >= restart_at),
            time=1.8e9 + step,
            seconds=1.2 + 0.1 * math.sin(step / 50) + (2.0 if step % 997 == 500 else 0.0),
            scalars={
                "lr": 3e-4 * min(1.0, step / 100),
                "loss": 2.0 + 8.0 * math.exp(-step / max(1, count) * 5) + 0.2 * math.sin(step * 12.9898),
                "grad norm": 1.0 + 0.5 * math.sin(step * 78.233) ** 2,
            },
            modules={name: _module_step(name, number) for number, name in enumerate(modules)},
        )
        for step in range(count)
    ]


def _module_step(name: str, number: int) -> ModuleStep:
    parts = {"collectives_s": 0.08, "bridge_wait_s": 0.35 / (1 + number), "bubble_s": 0.1 * number}
    return ModuleStep(compute_s=0.5 + 0.15 * number, samples=512.0, tokens=2.0e6 if name == "language" else None, **parts)
