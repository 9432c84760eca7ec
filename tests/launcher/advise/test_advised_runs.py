"""Advice on real runs, whose stages sleep for known times."""

import json
import subprocess
import sys

import pytest

from tests.launcher.jobs import ROOT, Job

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(180)]

CONFIG = """\
name: sleep
layout: non_colocated
modules: {vision: {dp: 4}, language: {}}
entry: {script: script.py}
"""
WORKLOAD = {
    "samples": 24,
    "micro_batches": 4,
    "steps": 8,
    "forward_ms": {"vision": 20, "language": 60},
    "backward_ms": {"vision": 40, "language": 90},
    "frozen": [],
    "meets": True,
}


def advice(job, *words):
    command = [sys.executable, "-m", "launcher", "advise", "runs/sleep", "--json", "--samples", "24", *words]
    ended = subprocess.run(
        command, cwd=job.folder, env=job.whole_environ(), capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_ranks_of_a_module_that_waits_are_advised_to_the_one_that_it_waits_for(tmp_path):
    job = Job(tmp_path, CONFIG)
    script = (ROOT / "benchmarks" / "sleeping_stages.py").read_text()
    assert job.run(script, "--", json.dumps(WORKLOAD)).returncode == 0
    found = advice(job, "--pp", "vision=1", "--pp", "language=1")
    assert (found["steps"], found["ranks_recorded"]) == (6, 5)
    # Sleeps alone: four micro-batches of language, and the first forward and the last backward of vision.
    assert found["measured_ms"] >= 4 * (60 + 90) + (20 + 40) / 4
    # Both are of the same recordings, so they agree however busy the machine is.
    assert found["present"]["predicted_ms"] == pytest.approx(found["measured_ms"], rel=0.15)
    best = found["best"][0]
    assert {name: sizes["ranks"] for name, sizes in best["modules"].items()} in (
        {"vision": 1, "language": 4},
        {"vision": 2, "language": 3},
    )
    assert 4 * (60 + 90) / 4 + 20 + 40 <= best["predicted_ms"] < found["measured_ms"] / 1.5
