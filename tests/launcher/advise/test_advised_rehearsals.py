"""Advice from rehearsals of stages that sleep for known times, against the schedule's arithmetic and a real run."""

import json
import subprocess

import pytest

from launcher.advise.simulator import Costs, Program, StageCost, StepShape, step_time
from mimo_role import Topology
from mimo_role.pipeline.stage_graph import StageGraph
from tests.launcher.jobs import ROOT, Job
from tests.launcher.rehearse.accounts import NEEDS_ACCOUNTS

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]

CONFIG = """\
name: sleep
layout: non_colocated
modules: {vision: {dp: 2}, language: {pp: 2}}
entry: {script: script.py}
"""
MICRO_BATCHES, STAGE_S = 3, 0.12
"""Each of the three stages sleeps for so long in a forward, and in a backward."""
WORKLOAD = {
    "samples": 24,
    "micro_batches": MICRO_BATCHES,
    "steps": 6,
    "forward_ms": {"vision": 2000 * STAGE_S, "language": 2000 * STAGE_S},
    "backward_ms": {"vision": 2000 * STAGE_S, "language": 2000 * STAGE_S},
    "frozen": [],
    "meets": True,
}


def launched(job, *words):
    command = [*job.program, *words]
    return subprocess.run(
        command, cwd=job.folder, env=job.whole_environ(), capture_output=True, text=True, timeout=120, check=False
    )


def advice(job, run_dir, *words):
    ended = launched(job, "advise", run_dir, "--json", "--samples", "24", *words)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def step_of(modules, seconds):
    """The step of a layout whose stages take so long for a forward, and for a backward."""
    graph = StageGraph(Topology.from_modules(modules))
    stages = {
        at: StageCost(forward_s=seconds[at.module], backward_s=seconds[at.module], last_backward_s=seconds[at.module])
        for at in graph.after
    }
    costs = Costs(stages=stages, messages={}, rests={}, meets=True)
    return 1000 * step_time(Program(graph, StepShape(micro_batches=MICRO_BATCHES)), costs)


def test_a_rehearsal_predicts_the_step_of_the_job_and_of_other_layouts(tmp_path):
    job = Job(tmp_path, CONFIG)
    job.write((ROOT / "benchmarks" / "sleeping_stages.py").read_text())
    ended = launched(job, "rehearse", job.name, "--steps", "4", "--jobs", "4", "--", json.dumps(WORKLOAD))
    assert ended.returncode == 0, ended.stderr
    found = advice(job, "runs/sleep/rehearsal", "--pp", "vision=1", "--pp", "language=1,2", "--top", "10")
    assert (found["rehearsed"], found["measured_ms"], found["correction"]) == (True, None, 1)
    assert (found["ranks_recorded"], found["steps"]) == (4, 3)
    # 1F1B of three equal stages.
    assert found["present"]["predicted_ms"] == pytest.approx(1000 * (MICRO_BATCHES + 2) * 2 * STAGE_S, rel=0.05)
    by_ranks = {each["modules"]["language"]["dp"]: each for each in found["best"] if each["modules"]["language"]["pp"] == 1}
    expected = step_of({"vision": {"dp": 1}, "language": {"dp": 3}}, {"vision": 2 * STAGE_S, "language": 2 * STAGE_S / 3})
    assert by_ranks[3]["predicted_ms"] == pytest.approx(expected, rel=0.05)
    assert any(line.startswith("vision: rehearsed times x 2") for line in by_ranks[3]["basis"])
    assert any("times are those of a rehearsal on a CPU" in line for line in found["basis"])
    assert any(line.startswith("between the schedule and the next step") for line in found["basis"])  # all ranks meet there

    assert job.run((tmp_path / "script.py").read_text(), "--", json.dumps(WORKLOAD)).returncode == 0
    of_run = advice(job, "runs/sleep")
    assert not of_run["rehearsed"]
    assert found["present"]["predicted_ms"] == pytest.approx(of_run["measured_ms"], rel=0.05)


@NEEDS_ACCOUNTS
def test_a_rehearsal_of_memory_has_no_times(tmp_path):
    job = Job(tmp_path, CONFIG)
    job.write((ROOT / "benchmarks" / "sleeping_stages.py").read_text())
    quick = WORKLOAD | {"meets": False, "forward_ms": {"vision": 1, "language": 1}, "backward_ms": {"vision": 1, "language": 1}}
    assert launched(job, "rehearse", job.name, "--memory", "--jobs", "4", "--", json.dumps(quick)).returncode == 0
    found = json.loads((tmp_path / "runs/sleep/rehearsal/rehearsal.json").read_text())
    assert {kind["meets"] for kind in found["kinds"]} == {False}
    assert not list((tmp_path / "runs/sleep/rehearsal/logs").rglob("*.recording.gz"))
    ended = launched(job, "advise", "runs/sleep/rehearsal")
    assert ended.returncode == 2
    assert "a rehearsal with --memory has no times, which advise needs" in ended.stderr
