"""A rank that is killed while a checkpoint is written."""

import json
import os
import signal

import pytest

from launcher.host.reaper import state_of
from tests.faults.harness import Fault, Run, suffer

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(200)]

STEPS = 6


def kill_a_rank_while_it_saves(run: Run) -> None:
    """Hold rank 0 first, which moves a checkpoint to its place, to see that this one cannot become whole any more."""
    saved = run.folder / "checkpoints"
    run.wait_until((saved / "step_000002").exists, "a checkpoint")
    victim = run.ranks()[0]
    while True:
        run.wait_until(lambda: list(saved.glob("step_*.tmp/*")), "a checkpoint that is being written")
        os.kill(victim, signal.SIGSTOP)
        run.wait_until(lambda: state_of(victim) == "T", "a rank to stop")
        if unfinished := list(saved.glob("step_*.tmp")):
            break
        os.kill(victim, signal.SIGCONT)
    os.kill(victim, signal.SIGKILL)
    (run.job.folder / "unfinished").write_text(unfinished[0].stem)


def test_training_goes_on_from_the_checkpoint_before_the_one_that_was_not_finished(job):
    fault = Fault(
        layout="digits",
        code=0,
        outcome="done",
        has_prelude=False,
        script="",
        attempts=2,
        words=("runtime.max_restarts=1", "--", "--steps", str(STEPS), "--checkpoint-every", "1", "--eval-every", "0"),
        says=("rank 0 (vision.dp0) failed first: killed by SIGKILL; restarting all ranks (1 of 1)",),
        strike=kill_a_rank_while_it_saves,
        bound_s=150,
    )
    run = suffer(job, fault)
    records = [json.loads(line) for line in (run.folder / "losses.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, STEPS + 1))
    saved = {path.name: path.stat().st_mtime_ns for path in (run.folder / "checkpoints").iterdir()}
    assert sorted(saved) == [f"step_{step:06}" for step in range(STEPS - 2, STEPS + 1)]
    # What was whole has been read and not written again; what was not has been made again.
    note = job.folder / "unfinished"
    killed_at = note.stat().st_mtime_ns
    assert {name for name, written in saved.items() if written > killed_at} == {
        name for name in saved if name >= note.read_text()
    }
