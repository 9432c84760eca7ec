"""Ranks killed at random, again and again: the training comes to the same loss, to the last bit."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from launcher.host import reaper

pytestmark = [pytest.mark.ranks, pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = 20
STEPS = 160
SEED = int(os.environ.get("MIMO_CHAOS_SEED", random.randrange(1 << 32)))

CONFIG = """\
name: chaos
layout: non_colocated
modules:
  vision: {dp: 2}
  language: {tp: 2}
entry: {script: script.py}
run_dir: run
runtime: {grace_s: 3}
"""

# An encoder on two ranks, a language model on two others, a bridge between them, and every third step a checkpoint of all
# ranks' weights and moments, written beside its place.
TRAINING = """
import json, os, shutil
from pathlib import Path
import torch, torch.distributed as dist, mimo_role

STEPS, EVERY, FOLDER = 160, 3, Path("checkpoints")
ctx = mimo_role.current()
torch.manual_seed(ctx.rank if ctx.role.has_language_module else 0)
model = torch.nn.Linear(8, 8)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
saved = sorted(path for path in FOLDER.glob("step_*") if path.suffix != ".tmp")
done = [int(saved[-1].name[5:]) if saved else 0]
dist.broadcast_object_list(done, src=0)
if done[0]:
    state = torch.load(FOLDER / f"step_{done[0]:04}" / f"{ctx.rank}.pt")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
bridge = ctx.bridge("vision")

def save(step):
    folder = FOLDER / f"step_{step:04}.tmp"
    if ctx.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    dist.barrier()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / f"{ctx.rank}.pt")
    dist.barrier()
    if ctx.rank == 0:
        folder.rename(folder.with_suffix(""))

for step in range(done[0] + 1, STEPS + 1):
    ctx.step(step)
    optimizer.zero_grad()
    images = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
    if ctx.role.has_modality_modules:
        mine = images.chunk(2)[ctx.coords("vision")["dp"]]
        bridge(model(mine), batch_size=16).backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad, group=ctx.group("vision", "dp"))
    else:
        hidden = bridge(batch_size=16, sample_shape=(8,), dtype=torch.float32)
        loss = (model(hidden) - images).square().mean()
        loss.backward()
        total = loss.detach().clone()
        dist.all_reduce(total, group=ctx.group("language", "tp"))
        if ctx.rank == 2:
            with open("losses.jsonl", "a") as file:
                file.write(json.dumps([step, total.item().hex()]) + chr(10))
    optimizer.step()
    if step % EVERY == 0:
        save(step)
"""


class Training:
    """A training that goes on, and how far it has come."""

    def __init__(self, job, *words):
        self.folder = job.folder
        self.process = job.start(TRAINING, *words)

    def starts(self):
        return len(list(self.folder.glob("run/logs/attempt*")))

    def losses(self):
        try:
            lines = (self.folder / "losses.jsonl").read_text().split("\n")[:-1]
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def last_step(self):
        return max((step for step, _ in self.losses()), default=0)

    def ranks(self):
        """The processes of the ranks of the latest start: those that write its output."""
        logs = str(self.folder / "run" / "logs" / f"attempt{self.starts() - 1}")
        found = reaper.processes_of((self.folder / "run" / "run_id").read_text())
        return [pid for pid in found if _target(Path(f"/proc/{pid}/fd/1")).startswith(logs)]

    def wait_for(self, met, what):
        deadline = time.monotonic() + 150
        while not met():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, f"no {what}; MIMO_CHAOS_SEED={SEED}"
            time.sleep(0.005)

    def kill_a_rank(self, chance):
        os.kill(chance.choice(self.ranks()), signal.SIGKILL)


def _target(link):
    try:
        return str(link.readlink())
    except OSError:
        return ""


def test_twenty_random_kills_change_nothing_in_the_final_loss(job):
    print(f"MIMO_CHAOS_SEED={SEED}")
    job.config, chance = CONFIG, random.Random(SEED)
    undisturbed = Training(job)
    _, err = undisturbed.process.communicate(timeout=150)
    assert undisturbed.process.returncode == 0, err
    expected = undisturbed.losses()
    assert [step for step, _ in expected] == list(range(1, STEPS + 1))
    for path in (job.folder / "checkpoints").iterdir():
        path.rename(job.folder / f"undisturbed_{path.name}")
    (job.folder / "losses.jsonl").unlink()

    training = Training(job, f"runtime.max_restarts={KILLS + 5}")
    was_early = True
    try:
        for kill in range(KILLS):
            furthest = training.last_step()
            training.wait_for(lambda: training.starts() == kill + 1 and len(training.ranks()) == 4, f"start {kill}")  # noqa: B023
            # Two in a row that came no further than the one before are too many for a restart to make sense. The losses are
            # at most two steps behind the step that the other ranks have come to.
            was_early = not was_early and chance.random() < 0.4
            if not was_early:
                ahead = furthest + chance.randint(3, 6)
                training.wait_for(lambda: training.last_step() >= ahead, f"step {ahead}")  # noqa: B023
            time.sleep(chance.uniform(0, 0.05))
            training.kill_a_rank(chance)
        _, err = training.process.communicate(timeout=300)
    finally:
        training.process.kill()
        training.process.communicate()
    assert training.process.returncode == 0, err
    assert err.count("killed by SIGKILL; restarting all ranks") == KILLS, err
    found = dict(training.losses())
    assert found[STEPS] == expected[-1][1]
    assert sorted(found.items()) == [tuple(pair) for pair in expected]
    assert reaper.processes_of((job.folder / "run" / "run_id").read_text()) == []
