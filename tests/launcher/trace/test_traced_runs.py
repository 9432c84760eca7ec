"""Traces of real runs: one that ends well, one that fails, one that hangs, and one that is going on."""

import json
import signal
import subprocess
import sys
from collections import defaultdict

import pytest

from mimo_role.monitoring.peak_memory import PEAK_MEMORY
from tests.launcher.jobs import Job

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(180)]

CONFIG = """\
name: small
layout: non_colocated
modules: {vision: {dp: 2}, language: {}}
entry: {script: script.py}
"""
SCRIPT = """
import sys, time
import torch, mimo_role
from mimo_role import ActivationSpec, Schedule1F1B

ctx = mimo_role.current()
weight = torch.ones(2, requires_grad=True)
schedule = Schedule1F1B(
    ctx,
    run=lambda module, _, inputs: weight * next(iter(inputs.values()), torch.ones(4 // ctx.lane(module)[1], 2)),
    spec_of=lambda *_: ActivationSpec.of(4, (2,), torch.float32),
    loss_of=lambda output, _: output.sum(),
)
for step in range(3):
    ctx.step(step)
    losses = schedule.step([0, 1])
    if losses:
        ctx.log(loss=sum(losses))
"""
STRICT = {
    "M": {"name": str, "pid": int, "tid": int, "args": dict},
    "X": {"name": str, "cat": str, "pid": int, "tid": int, "ts": float, "dur": float, "args": dict},
    "B": {"name": str, "cat": str, "pid": int, "tid": int, "ts": float, "args": dict},
    "i": {"name": str, "cat": str, "pid": int, "tid": int, "ts": float, "s": str},
    "C": {"name": str, "cat": str, "pid": int, "tid": int, "ts": float, "args": dict},
    "s": {"name": str, "cat": str, "pid": int, "tid": int, "ts": float, "id": int},
    "f": {"name": str, "cat": str, "pid": int, "tid": int, "ts": float, "id": int, "bp": str},
}
"""The fields of each kind of event, all required, no others."""


def trace_command(job, *words):
    command = [sys.executable, "-m", "launcher", "trace", "runs/small", *words]
    return subprocess.run(
        command, cwd=job.folder, env=job.whole_environ(), capture_output=True, text=True, timeout=60, check=False
    )


def read_strictly(path):
    """The trace, if it has what the format asks for: fields, spans that nest on each thread, arrows with both ends."""
    trace = json.loads(path.read_text())
    stacks, arrows = defaultdict(list), defaultdict(list)
    for event in trace["traceEvents"]:
        fields = STRICT[event["ph"]]
        assert event.keys() == fields.keys() | {"ph"}
        assert all(isinstance(event[name], kind) for name, kind in fields.items())
        assert event.get("ts", 0.0) >= 0.0
        if event["ph"] in "sf":
            arrows[event["id"]].append(event)
        if event["ph"] == "X":
            stack, end = stacks[event["pid"], event["tid"]], event["ts"] + event["dur"]
            while stack and stack[-1] <= event["ts"]:
                stack.pop()
            assert not stack or end <= stack[-1] + 1e-6
            stack.append(end)
    assert all([event["ph"] for event in pair] == ["s", "f"] for pair in arrows.values())
    return trace


def named(trace, phase, pid=None):
    return [event["name"] for event in trace["traceEvents"] if event["ph"] == phase and pid in (None, event["pid"])]


def test_the_trace_of_a_run_has_all_ranks_and_only_the_steps_that_were_asked_for(tmp_path):
    job = Job(tmp_path, CONFIG)
    assert job.run(SCRIPT).returncode == 0
    assert not (tmp_path / "runs/small/report.trace.json").exists()
    written = trace_command(job, "--steps", "1-2", "--out", "steps.json")
    assert written.returncode == 0, written.stderr
    assert written.stdout.startswith("wrote steps.json: ")
    trace = read_strictly(tmp_path / "steps.json")
    assert [event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name"] == [
        "rank 0 vision.dp0 on node0",
        "rank 1 vision.dp1 on node0",
        "rank 2 language on node0",
    ]
    assert named(trace, "i", 2) == ["step 1", "step 2"]
    assert [name for name in named(trace, "C") if name != PEAK_MEMORY] == ["loss", "loss"]
    # Activations and gradients of two micro-batches and two steps, from and to each rank of vision.
    assert len(named(trace, "s")) == 2 * 2 * 2 * 2
    assert trace["metadata"]["clock_error_ms"] == {"node0": 0.0}
    for steps, message in (("x", "--steps x: give a step"), ("900", "nothing of these steps is recorded")):
        refused = trace_command(job, "--steps", steps)
        assert (refused.returncode, message in refused.stderr) == (2, True)


def test_a_run_that_fails_leaves_its_last_seconds_and_what_it_was_doing(tmp_path):
    job = Job(tmp_path, CONFIG)
    failing = (
        "\nif ctx.rank == 2:\n    with ctx.span('evaluate'):\n        raise ValueError('on purpose')\nschedule.step([0, 1])\n"
    )
    assert job.run(SCRIPT + failing).returncode == 1
    trace = read_strictly(tmp_path / "runs/small/report.trace.json")
    (span,) = [event for event in trace["traceEvents"] if event["name"] == "evaluate"]
    assert (span["pid"], span["args"]["failed"]) == (2, True)


def test_a_run_that_hangs_leaves_what_each_rank_waited_for(tmp_path):
    job = Job(tmp_path, CONFIG + "runtime: {stall_timeout_s: 3}\n")
    hanging = "\nif ctx.rank == 2:\n    with ctx.span('stuck'):\n        time.sleep(600)\nschedule.step([0, 1])\n"
    assert job.run(SCRIPT + hanging).returncode == 124
    trace = read_strictly(tmp_path / "runs/small/report.trace.json")
    assert named(trace, "B", 2) == ["stuck"]
    assert all(name.startswith(("wait for", "backward")) for name in named(trace, "B", 0) + named(trace, "B", 1))


def test_a_rank_that_waits_for_a_collective_is_shown_to_wait_for_it(tmp_path):
    job = Job(tmp_path, CONFIG + "runtime: {stall_timeout_s: 3}\n")
    hanging = "\nif ctx.rank == 2:\n    with ctx.span('stuck'):\n        time.sleep(600)\ntorch.distributed.barrier()\n"
    assert job.run(SCRIPT + hanging).returncode == 124
    trace = read_strictly(tmp_path / "runs/small/report.trace.json")
    assert [named(trace, "B", rank) for rank in range(3)] == [["wait for a collective of world"]] * 2 + [["stuck"]]


def test_a_run_that_is_going_on_is_read_from_memory(tmp_path):
    job = Job(tmp_path, CONFIG)
    run = job.start(SCRIPT + "\nif ctx.rank == 2:\n    print('here', flush=True)\ntime.sleep(600)\n")
    try:
        while "here" not in run.stdout.readline():
            assert run.poll() is None
        assert trace_command(job).returncode == 0
        assert "step 2" in named(read_strictly(tmp_path / "runs/small/mimo_trace.json"), "i", 2)
    finally:
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=60)


def test_a_run_that_records_nothing_has_no_trace(tmp_path):
    job = Job(tmp_path, CONFIG)
    assert job.run("").returncode == 0
    assert not list((tmp_path / "runs/small").rglob("*.recording.gz"))
    refused = trace_command(job)
    assert (refused.returncode, "nothing is recorded here" in refused.stderr) == (2, True)


def test_each_attempt_keeps_what_its_ranks_recorded(tmp_path):
    job = Job(tmp_path, CONFIG + "runtime: {max_restarts: 1}\n")
    script = (
        "\nimport os\nif ctx.rank == 2 and os.environ['MIMO_RESTART_COUNT'] == '0':\n    sys.exit(3)\nschedule.step([0, 1])\n"
    )
    assert job.run(SCRIPT + script).returncode == 0
    kept = sorted({path.parent.name for path in (tmp_path / "runs/small").rglob("*.recording.gz")})
    assert kept == ["attempt0", "attempt1"]
    assert trace_command(job).returncode == 0
    assert read_strictly(tmp_path / "runs/small/mimo_trace.json")["metadata"]["attempt"] == 1
