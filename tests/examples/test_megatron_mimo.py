"""examples/megatron_mimo on real gloo ranks: Megatron-Core's GPT over our groups."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[2] / "examples" / "megatron_mimo" / "one_node.yaml"

pytestmark = [pytest.mark.ranks, pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(240)]


def losses(folder, vision_dp, tp, dp):
    sizes = [f"modules.vision.dp={vision_dp}", f"modules.language.tp={tp}", f"modules.language.dp={dp}"]
    command = [sys.executable, "-m", "launcher", "run", str(CONFIG), *sizes, "--", "--steps", "11", "--batch-size", "12"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [float(loss) for loss in re.findall(r"loss ([\d.]+)", done.stdout)]


def test_the_losses_do_not_depend_on_how_the_modules_are_laid_out(tmp_path):
    alone = losses(tmp_path, vision_dp=1, tp=1, dp=1)
    assert len(alone) == 2
    assert alone[1] < alone[0]
    assert losses(tmp_path, vision_dp=2, tp=2, dp=1) == pytest.approx(alone, abs=2e-4)
