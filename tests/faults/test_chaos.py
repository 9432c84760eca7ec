"""Ranks killed at random, again and again: the training comes to the same loss, to the last bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher import warden
from tests.examples.digits_runs import EXAMPLE, LEFT_OUT, ROOT, metrics, train

pytestmark = [pytest.mark.ranks, pytest.mark.slow, pytest.mark.timeout(300)]

KILLS = 20
STEPS = 120
WORDS = ["--steps", str(STEPS), "--batch-size", "16", "--checkpoint-every", "3", "--eval-every", "0"]
SEED = int(os.environ.get("MIMO_CHAOS_SEED", random.randrange(1 << 32)))


class Victim:
    """A training that goes on, and how far it has come."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        config = str(EXAMPLE / "non_colocated.yaml")
        overrides = [f"run_dir={run_dir}", f"runtime.max_restarts={KILLS + 5}", "runtime.grace_s=3"]
        environ = {name: value for name, value in os.environ.items() if name not in LEFT_OUT and not name.startswith("MIMO_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launcher", "run", config, *overrides, "--", *WORDS],
            cwd=ROOT,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def starts(self) -> int:
        return len(list(self.run_dir.glob("logs/attempt*")))

    def last_step(self) -> int:
        try:
            return max((int(record["step"]) for record in metrics(self.run_dir)), default=0)
        except (OSError, ValueError):  # not there yet, or in the middle of a line
            return 0

    def ranks(self) -> list[int]:
        """The processes of the ranks of the latest start: those that write its output."""
        logs = str(self.run_dir / "logs" / f"attempt{self.starts() - 1}")
        found = warden.processes_of((self.run_dir / "run_id").read_text())
        return [pid for pid in found if _target(f"/proc/{pid}/fd/1").startswith(logs)]

    def wait_for(self, met, what: str) -> None:
        deadline = time.monotonic() + 60
        while not met():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, f"no {what}; seed {SEED}"
            time.sleep(0.005)


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def test_twenty_random_kills_change_nothing_in_the_final_loss(tmp_path):
    print(f"MIMO_CHAOS_SEED={SEED}")
    chance = random.Random(SEED)
    undisturbed = train("non_colocated", tmp_path / "undisturbed", *WORDS)
    victim = Victim(tmp_path / "killed")
    was_early = True
    try:
        for kill in range(KILLS):
            furthest = victim.last_step()
            victim.wait_for(lambda: victim.starts() == kill + 1 and len(victim.ranks()) == 4, f"start {kill}")  # noqa: B023
            # Two in a row that came no further than the one before are too many for a restart to make sense.
            was_early = not was_early and chance.random() < 0.4
            if not was_early:
                ahead = furthest + chance.randint(1, 8)
                victim.wait_for(lambda: victim.last_step() >= ahead, f"step {ahead}")  # noqa: B023
            time.sleep(chance.uniform(0, 0.1))
            os.kill(chance.choice(victim.ranks()), signal.SIGKILL)
        said, _ = victim.process.communicate(timeout=120)
    finally:
        victim.process.kill()
        victim.process.communicate()
    assert victim.process.returncode == 0, said
    assert said.count("killed by SIGKILL; starting all ranks again") == KILLS, said
    losses = {record["step"]: record["loss"] for record in metrics(victim.run_dir) if "loss" in record}
    assert losses[STEPS] == undisturbed[-1]
    assert [losses[step] for step in sorted(losses)] == undisturbed
    assert warden.processes_of((victim.run_dir / "run_id").read_text()) == []
