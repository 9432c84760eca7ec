"""Real runs that are watched."""

import json
import os
import subprocess
import sys
import time

import pytest

from launcher.live.view import LiveView
from tests.launcher.jobs import ROOT

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(180)]

SCRIPT = """
import time, torch, mimo_role
from pathlib import Path
from mimo_role import ActivationSpec, Schedule1F1B

ctx = mimo_role.current()
weight = torch.ones(2, requires_grad=True)

def run(module, _, inputs):
    time.sleep(0.005)
    return weight * next(iter(inputs.values()), torch.ones(6 // ctx.lane(module)[1], 2))

schedule = Schedule1F1B(
    ctx,
    run=run,
    spec_of=lambda *_: ActivationSpec.of(6, (2,), torch.float32),
    loss_of=lambda output, _: output.sum(),
)
for step in range(1, 5000):
    ctx.step(step, of=4999)
    schedule.step([0, 1])
    ctx.log(loss=2.5, tokens=64.0)
    stop = torch.tensor(int(Path("stop").exists()))
    torch.distributed.all_reduce(stop, torch.distributed.ReduceOp.MAX)
    if stop:
        break
raise SystemExit(3 if ctx.rank == 2 else 0)
"""


def mimo_launch(job, *words):
    environ = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "300"}
    command = [sys.executable, "-m", "launcher", *words]
    done = subprocess.run(command, cwd=job.folder, env=environ, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return done.stdout


def test_a_run_is_shown_while_it_trains_and_after_it_has_failed(job):
    running = job.start(SCRIPT, "run_dir=run")
    watching = None
    try:
        wait_for_step(job, running)
        command = [sys.executable, "-m", "launcher", "top", "run", "--interval", "0.2"]
        environ = os.environ | {"PYTHONPATH": str(ROOT)}
        watching = subprocess.Popen(command, cwd=job.folder, env=environ, stdout=subprocess.PIPE, text=True)
        assert watching.stdout.readline().startswith("small: step ")
        page = mimo_launch(job, "top", "run", "--once").splitlines()
        view = LiveView.from_json(mimo_launch(job, "top", "run", "--once", "--json"))
        status = mimo_launch(job, "status", "run")
        in_json = json.loads(mimo_launch(job, "status", "run", "--json"))
        (job.folder / "stop").touch()
        _, errors = running.communicate(timeout=60)
        assert running.returncode == 3, errors
        last = watching.stdout.read().splitlines()[-1]
        assert watching.wait(20) == 0
    finally:
        for process in filter(None, (running, watching)):
            process.kill()
            process.communicate()
    assert page[0].startswith("small | 3 ranks | ")
    assert page[0].endswith(" | running")
    assert page[2] == "loss 2.5"
    titles = next(line for line in page if line.startswith("module"))
    assert all(title in titles for title in ("steps/s", "tokens/s", "█ compute", "▒ bridge", "slowest rank"))
    assert {line.split()[0] for line in page[-2:]} == {"vision", "language"}
    assert view.modules["language"].tokens_per_s > 0
    assert "  step " in status
    assert " of 4,999 | " in status
    assert in_json["live"]["total_steps"] == 4999
    assert last.startswith("small: over, failed: rank 2 (language.tp1)")
    after = mimo_launch(job, "status", "run")
    assert "of 4,999" not in after


def wait_for_step(job, running):
    """Wait until all ranks have ended a step; bounded by the test's timeout."""
    while True:
        assert running.poll() is None, running.communicate()
        try:
            view = LiveView.from_json((job.folder / "run/live.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            pass
        else:
            if view.step is not None and view.step > 5 and view.recording == view.world_size:
                return
        time.sleep(0.05)
