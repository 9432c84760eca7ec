"""examples/hf_vlm in several layouts: equal losses, resume, and answers by transformers alone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "hf_vlm"
SHORT = ("--dtype", "float64", "--batch-size", "6", "--log-every", "1")
NUMBERS = re.compile(r"step (\d+): loss (\S+), norm (\S+),")


def run(config, run_dir, *script_args, overrides=(), code=0):
    """Run a layout and return what the script printed."""
    environ = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "run", EXAMPLE / config, f"run_dir={run_dir}", *overrides, "--", *script_args],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def steps_in(text):
    """By step, loss and gradient norm."""
    return {int(step): (float(loss), float(norm)) for step, loss, norm in NUMBERS.findall(text)}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for step, numbers in found.items():
        assert numbers == pytest.approx(expected[step], rel=2e-7)  # of the digits that are printed


@pytest.mark.ranks
@pytest.mark.timeout(360)
def test_qwen_trains_alike_in_two_layouts_and_a_resumed_run_continues_it(tmp_path):
    arguments = (*SHORT, "--steps", "4", "--every", "2")
    whole = run("pipeline.yaml", tmp_path / "whole", *arguments, "--micro-batches", "2")
    assert list(steps_in(whole)) == [1, 2, 3, 4]
    assert "exact answers to held-out questions with 3 pictures: " in whole
    (tmp_path / "whole" / "checkpoints" / "step_000004").rename(tmp_path / "step 4")
    again = run("tp_fsdp.yaml", tmp_path / "whole", *arguments, overrides=["modules.language.dp=1"])
    assert_equal(steps_in(again), {step: numbers for step, numbers in steps_in(whole).items() if step > 2})
    first = run("non_colocated.yaml", tmp_path / "other", *arguments)
    assert_equal(steps_in(first), steps_in(whole))
