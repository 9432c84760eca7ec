"""Jobs of mimo-launch whose ranks use the GPU; without a GPU, over gloo on the CPU.

mimo-launch refuses more ranks than GPUs, and sets the same environment on all of them. So in jobs of several ranks the scripts
join, by `tests.gpu.shared_gpu`, and the config has `backend: gloo`.
"""

import json

import pytest

from tests.examples.digits_runs import EXAMPLE, metrics, start
from tests.gpu.shared_gpu import BACKEND, DEVICE
from tests.launcher.jobs import lines_of

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(180)]

LIMIT_S = 150.0

ALONE = f"""\
name: alone
layout: colocated
modules: {{vision: {{}}, language: {{}}}}
entry: {{script: script.py}}
runtime: {{backend: {BACKEND}, timeout_s: 60}}
"""

SEVERAL = """\
name: several
layout: non_colocated
modules: {vision: {}, language: {dp: 3}}
entry: {script: script.py}
runtime: {backend: gloo, join: script, timeout_s: 60}
"""
LABELS = ["[vision r0]", "[language.dp0 r1]", "[language.dp1 r2]", "[language.dp2 r3]"]

JOIN = """\
import os, signal, sys, time, torch
import torch.distributed as dist
from tests.gpu.shared_gpu import join
ctx = join()
"""

JOINED = """\
import os, torch, mimo_role
import torch.distributed as dist
ctx = mimo_role.current()
"""

CRASHES_ONCE = """
total = torch.full((), ctx.rank + 1.0, device=ctx.device)
dist.all_reduce(total)
print(total.item(), ctx.device, dist.get_backend(), flush=True)
if ctx.rank == ctx.world_size - 1 and os.environ["MIMO_RESTART_COUNT"] == "0":
    raise RuntimeError("the first attempt")
dist.all_reduce(total)
print(total.item(), flush=True)
"""


def test_a_rank_that_mimo_launch_joins_is_restarted_on_the_device(job):
    job.config = ALONE
    done = job.run(JOINED + CRASHES_ONCE, "runtime.max_restarts=1", timeout_s=LIMIT_S)
    assert done.returncode == 0, done.stderr
    place = f"1.0 {DEVICE} {BACKEND}"
    assert lines_of(done.stdout, "[vision+language r0]")[-3:] == [place, place, "1.0"]


def test_ranks_that_share_the_device_are_restarted(job, several_ranks):
    job.config = SEVERAL
    done = job.run(JOIN + CRASHES_ONCE, "runtime.max_restarts=1", timeout_s=LIMIT_S)
    assert done.returncode == 0, done.stderr
    assert "RuntimeError: the first attempt" in done.stderr
    place = f"10.0 {DEVICE} {BACKEND}"
    assert [lines_of(done.stdout, label)[-2:] for label in LABELS] == [[place, "40.0"]] * 4


# Rank 0 waits in the bridge for the gradients of all lanes, ranks 1 and 2 in an all-reduce, rank 3 is asleep.
HANGS = """
bridge = ctx.bridge("vision")
def forward():
    if ctx.rank:
        return bridge(batch_size=3, sample_shape=(8,), dtype=torch.float32)
    return bridge(torch.ones(3, 8, device=ctx.device, requires_grad=True), batch_size=3)
ctx.step(3)
forward().sum().backward()
output = forward()
if ctx.rank == 3:
    time.sleep(1000)
if ctx.rank:
    total = torch.ones((), device=ctx.device)
    dist.all_reduce(total, group=ctx.group("language", "dp"))
    total.item()
output.sum().backward()
"""


def test_the_report_of_a_hang_names_the_rank_that_sleeps(job, several_ranks):
    job.config = SEVERAL
    done = job.run(JOIN + HANGS, "runtime.stall_timeout_s=5", timeout_s=LIMIT_S)
    assert done.returncode == 124, done.stderr
    report = json.loads((job.folder / "runs" / "several" / "report.json").read_text(encoding="utf-8"))
    assert report["headline"].startswith("no progress in step 3 for 5 s: rank 3 (language.dp2) held up the others")


# Rank 3 comes late to the last all-reduce of the agreement, and saves; the others leave as soon as they may.
REQUEUES = """
assert ctx.seconds_left() is None
if ctx.rank == 1:
    os.kill(os.getpid(), signal.SIGUSR1)
assert ctx.seconds_left() is None
if ctx.rank == 3:
    time.sleep(2)
    open("last", "x").close()
assert ctx.seconds_left() is not None
if ctx.rank == 3:
    print("saved", torch.full((1 << 20,), 2.0, device=ctx.device).sum().item(), flush=True)
else:
    print("the last is there:", os.path.exists("last"), flush=True)
os._exit(75)
"""


def test_a_slow_rank_saves_after_the_others_have_left(job, several_ranks):
    job.config = SEVERAL
    done = job.run(JOIN + REQUEUES, timeout_s=LIMIT_S)
    assert done.returncode == 75, done.stderr
    expected = ["the last is there: True"]
    assert [lines_of(done.stdout, label)[-1:] for label in LABELS] == [*[expected] * 3, ["saved 2097152.0"]]


STEPS = 20

DIGITS = f"""\
import sys
from tests.gpu.shared_gpu import join
join()
sys.path.insert(0, {str(EXAMPLE)!r})
import train
train.main()
"""


def losses_in(run_dir):
    return [record["loss"] for record in metrics(run_dir) if "loss" in record]


@pytest.mark.timeout(340)
def test_the_example_has_the_losses_of_a_cpu_on_the_device(job, several_ranks):
    pytest.importorskip("sklearn")
    arguments = ["--steps", str(STEPS), "--dtype", "float64", "--eval-every", "0"]
    on_cpu = start("non_colocated", job.folder / "cpu", *arguments, overrides=["runtime.backend=gloo"], timeout_s=LIMIT_S)
    assert on_cpu.returncode == 0, on_cpu.stderr
    job.config = SEVERAL
    grids = ["modules.vision.dp=2", "modules.language.dp=2"]
    on_device = job.run(DIGITS, *grids, "run_dir=device", "--", *arguments, timeout_s=LIMIT_S)
    assert on_device.returncode == 0, on_device.stderr
    expected = losses_in(job.folder / "cpu")
    assert len(expected) == STEPS
    assert losses_in(job.folder / "device") == pytest.approx(expected, rel=1e-5)
