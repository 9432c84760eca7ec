"""What real runs leave of their steps."""

import json
import re

import pytest

from launcher.live.view import LiveView
from launcher.steps.metrics import read_metrics

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(180)]

SCRIPT = """
import json, pathlib, sys, time, torch, torch.distributed as dist, mimo_role
from mimo_role import ActivationSpec, Schedule1F1B

ctx = mimo_role.current()
steps, slow_rank, slow_from, ratio = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
weight = torch.ones(2, requires_grad=True)

def run(module, batch, inputs):
    time.sleep(0.02 * (ratio if ctx.rank == slow_rank and step >= slow_from else 1.0))
    if "tp" in ctx.name:  # within the forward, the others wait for the slow one
        dist.all_reduce(torch.ones(1), group=ctx.group(module, "tp"))
    return weight * next(iter(inputs.values()), torch.ones(12 // ctx.lane(module)[1], 2))

schedule = Schedule1F1B(
    ctx,
    run=run,
    spec_of=lambda *_: ActivationSpec.of(12, (2,), torch.float32),
    loss_of=lambda output, _: output.sum(),
)
def is_reported():
    found = torch.tensor(0.0)
    if ctx.rank == 0:
        found += len(json.loads(pathlib.Path(ctx.run_dir, "live.json").read_text())["stragglers"])
    dist.all_reduce(found)
    return found.item() > 0

last = steps if slow_rank < 0 else 5 * steps  # beside other load it takes longer until a rank is known to be slow
for step in range(1, last + 1):
    ctx.step(step, of=last)
    losses = schedule.step([0, 1])
    ctx.log(samples=6.0, rank=float(ctx.rank))
    if losses:
        ctx.log(loss=losses[0])
    if steps <= step < last and step % 10 == 5 and is_reported():
        break
"""
STEPS = 65


def files_of(job):
    folder = job.folder / "runs" / "small"
    metrics = read_metrics((folder / "metrics.jsonl").read_text().splitlines())
    return metrics, LiveView.from_json((folder / "live.json").read_text()), json.loads((folder / "report.json").read_text())


def test_a_run_leaves_every_step_and_its_last_view(job):
    job.config = job.config.replace("vision: {}\n  language: {tp: 2}", "vision: {dp: 2}\n  language: {pp: 2}")
    done = job.run(SCRIPT, "--", "12", "-1", "0", "1")
    assert (done.returncode, done.stderr) == (0, "")
    metrics, view, report = files_of(job)
    assert [each.step for each in metrics] == list(range(1, 13))
    assert report["stragglers"] == []
    for each in metrics:
        assert {"rank": 1.5, "loss": 24.0}.items() <= each.scalars.items()
        vision, language = each.modules["vision"], each.modules["language"]
        # Sleeps of 20 ms in each forward of two micro-batches.
        assert min(vision.compute_s, language.compute_s) >= 0.04
        assert vision.bridge_wait_s > 0
        assert (vision.bubble_s, language.bubble_s > 0) == (0, True)
        assert (vision.samples, language.samples) == (12.0, 6.0)
        assert each.seconds >= 0.02
    assert (view.run, view.step, view.total_steps, view.eta_s, view.recording, view.is_last) == ("small", 12, 12, 0.0, 4, True)
    assert view.scalars == {"rank": 1.5, "loss": 24.0}
    vision = view.modules["vision"]
    assert vision.peak_gib > 0
    assert (vision.ranks, vision.slowest.rank in (0, 1), vision.slowest.compute_s >= 0.02) == (2, True, True)
    assert 0 < vision.compute + vision.bridge_wait <= 1
    assert vision.samples_per_s == pytest.approx(12 * vision.steps_per_s, rel=0.5)


def test_every_attempt_writes_its_steps(job):
    script = SCRIPT + "\nimport os\nif os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n    raise SystemExit(3)\n"
    done = job.run(script, "runtime.max_restarts=1", "--", "3", "-1", "0", "1")
    assert done.returncode == 0, done.stderr
    metrics, view, _ = files_of(job)
    assert ([(each.step, each.attempt) for each in metrics], view.attempt) == ([(1, 1), (2, 1), (3, 1)], 1)
    lines = (job.folder / "runs/small/metrics.jsonl").read_text().splitlines()
    # The ranks of the first attempt fail in their last step.
    assert [json.loads(line)["attempt"] for line in lines] == [0, 0, 1, 1, 1]


def test_very_fast_steps_are_all_written(job):
    count = 6000
    script = (
        f"import mimo_role\nctx = mimo_role.current()\nfor step in range({count}):\n    ctx.step(step)\n    ctx.log(at=step)\n"
    )
    done = job.run(script)
    assert done.returncode == 0, done.stderr
    metrics, *_ = files_of(job)
    assert [each.step for each in metrics] == list(range(count))
    assert ([each.seconds for each in metrics].count(None), metrics[-1].scalars["at"]) == (1, count - 1)


@pytest.mark.parametrize(
    ("layout", "modules", "slow"),
    [
        pytest.param("non_colocated", "vision: {dp: 3}\n  language: {}", "1 (vision.dp1", id="dp"),
        pytest.param("non_colocated", "vision: {}\n  language: {tp: 2}", "1 (language.tp0", id="tp"),
        pytest.param("non_colocated", "vision: {}\n  language: {pp: 2, dp: 2}", "4 (language.pp1.dp1", id="pp"),
        pytest.param("colocated", "vision: {dp: 2}\n  language: {dp: 2}", "1 (vision.dp1+language.dp1", id="colocated"),
    ],
)
def test_a_rank_that_becomes_slow_is_found_and_reported(job, layout, modules, slow):
    job.config = job.config.replace("vision: {}\n  language: {tp: 2}", modules).replace("non_colocated", layout)
    rank = slow.partition(" ")[0]
    done = job.run(SCRIPT, "--", str(STEPS), rank, "31", "3")
    assert done.returncode == 0, done.stderr
    *_, view, report = files_of(job)
    line = rf"rank ({rank} \(\S+), .*\) computes ([\d.]+)x its peers' median since step (\d+); (\d+) % of each step"
    found = re.search(line, done.stderr)
    assert found is not None, done.stderr
    assert found[1] == slow
    assert float(found[2]) == pytest.approx(3, abs=0.6)
    assert abs(int(found[3]) - 31) <= 5
    assert int(found[4]) > 5
    # On a machine with too few cores for its load, another one may be slow for a while.
    straggler = next(each for each in report["stragglers"] if each["rank"] == int(rank))
    assert (straggler["attempt"], straggler["since_step"], straggler["until_step"]) == (0, int(found[3]), None), done.stderr
    assert int(rank) in [each.rank for each in view.stragglers]
