"""Real runs of examples/digits_vlm in tests."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.launcher.jobs import without_slow_ranks

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "digits_vlm"
LEFT_OUT = ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS")


def start(
    layout: str, run_dir: Path, *script_args: str, overrides: Sequence[str] = (), timeout_s: float = 110
) -> subprocess.CompletedProcess[str]:
    """Run a layout under mimo-launch and wait for its end."""
    config = str(EXAMPLE / f"{layout}.yaml")
    return subprocess.run(
        [sys.executable, "-m", "launcher", "run", config, f"run_dir={run_dir}", *overrides, "--", *script_args],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in LEFT_OUT and not name.startswith("MIMO_")},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def train(layout: str, run_dir: Path, *script_args: str, overrides: Sequence[str] = ()) -> list[float]:
    """Run a layout to its end and return the loss of every step."""
    ended = start(layout, run_dir, *script_args, overrides=overrides)
    assert ended.returncode == 0, ended.stderr
    assert without_slow_ranks(ended.stderr) == ""
    losses = [record for record in metrics(run_dir) if "loss" in record]
    assert [record["step"] for record in losses] == list(range(1, len(losses) + 1))
    return [record["loss"] for record in losses]


def metrics(run_dir: Path) -> list[dict[str, float]]:
    """What the run recorded."""
    return [json.loads(line) for line in (run_dir / "losses.jsonl").read_text(encoding="utf-8").splitlines()]
