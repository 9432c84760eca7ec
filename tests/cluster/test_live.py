"""The steps of ranks on three hosts, and one of them that becomes slow."""

import json
import os
import re

import pytest

from launcher.live.view import LiveView
from launcher.steps.metrics import read_metrics

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
if os.geteuid() != 0:
    pytest.skip("hosts are network namespaces, which only root can make", allow_module_level=True)

SLOW_RANK, SLOW_FROM, WITHIN = 5, 41, 20
STEPS = SLOW_FROM + WITHIN - 1
"""The last one by which the slow rank has to be found."""
SLEEP_S, RATIO = 0.08, 1.3
"""Of a forward: long beside the milliseconds that other load of the machine adds."""
SCRIPT = f"""
import time, torch, mimo_role
from mimo_role import ActivationSpec, Schedule1F1B

ctx = mimo_role.current()
weight = torch.ones(2, requires_grad=True)

def run(module, batch, inputs):
    time.sleep({SLEEP_S} * ({RATIO} if ctx.rank == {SLOW_RANK} and step >= {SLOW_FROM} else 1))
    return weight * next(iter(inputs.values()), torch.ones(2, 2))

schedule = Schedule1F1B(
    ctx,
    run=run,
    spec_of=lambda *_: ActivationSpec.of(6, (2,), torch.float32),
    loss_of=lambda output, _: output.sum(),
)
for step in range(1, {STEPS} + 1):
    ctx.step(step, of={STEPS})
    schedule.step([0, 1])
    ctx.log(rank=float(ctx.rank))
"""


def test_node_0_collects_the_steps_of_all_hosts_and_finds_a_1_3x_slower_rank_within_20_steps(agents):
    agents.ahead_s |= {"beta": 5_000}
    done = agents.run(SCRIPT, timeout_s=120)
    assert [each.code for each in done] == [0, 0, 0], done
    metrics = read_metrics((agents.folder / "run/metrics.jsonl").read_text().splitlines())
    assert [each.step for each in metrics] == list(range(1, STEPS + 1))
    assert all(each.scalars["rank"] == 2.5 for each in metrics)
    assert all(each.modules["language"].bridge_wait_s > 0 for each in metrics)
    times = [each.time for each in metrics]
    assert times == sorted(times)
    view = LiveView.from_json((agents.folder / "run/live.json").read_text())
    assert (view.step, view.recording, view.world_size, view.is_last) == (STEPS, 6, 6, True)
    assert {view.modules[name].slowest.node for name in view.modules} <= {"node0 (alpha)", "node1 (beta)", "node2 (gamma)"}
    line = r"rank 5 \(language.dp2, node2 \(gamma\)\) computes 1\.[23]\dx its peers' median since step (\d+);"
    found = re.search(line, done[0].said)
    assert found is not None, done[0].err
    assert abs(int(found[1]) - SLOW_FROM) <= 5
    assert [each.said for each in done[1:]] == ["", ""]
    stragglers = json.loads((agents.folder / "run/report.json").read_text())["stragglers"]
    assert SLOW_RANK in [each["rank"] for each in stragglers if each["until_step"] is None]
