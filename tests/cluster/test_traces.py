"""One trace of the ranks of three hosts whose clocks differ by hours."""

import json
import os
import subprocess
import sys

import pytest

from tests.launcher.jobs import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]
if os.geteuid() != 0:
    pytest.skip("hosts are network namespaces, which only root can make", allow_module_level=True)

AHEAD_S = {"beta": 5_000, "gamma": 90_000}
SCRIPT = """
import torch, mimo_role
from mimo_role import ActivationSpec, Schedule1F1B

ctx = mimo_role.current()
weight = torch.ones(2, requires_grad=True)
schedule = Schedule1F1B(
    ctx,
    run=lambda module, _, inputs: weight * next(iter(inputs.values()), torch.ones(2, 2)),
    spec_of=lambda *_: ActivationSpec.of(6, (2,), torch.float32),
    loss_of=lambda output, _: output.sum(),
)
for step in range(3):
    ctx.step(step)
    schedule.step([0, 1])
"""


def test_times_of_hosts_whose_clocks_differ_agree_to_a_millisecond(agents):
    agents.ahead_s |= AHEAD_S
    assert [done.code for done in agents.run(SCRIPT)] == [0, 0, 0]
    for node, host in enumerate(agents.hosts.names):
        found = json.loads((agents.folder / f"run/logs/attempt0/node{node}.clock.json").read_text())
        off_ns = abs(found["offset_ns"] + AHEAD_S.get(host, 0) * 10**9)
        assert off_ns <= found["error_ns"]
        assert off_ns < 10**6
    command = [sys.executable, "-m", "launcher", "trace", "run"]
    subprocess.run(command, cwd=agents.folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=60)
    trace = json.loads((agents.folder / "run/mimo_trace.json").read_text())
    assert {event["pid"] for event in trace["traceEvents"]} == set(range(6))
    assert list(trace["metadata"]["clock_error_ms"]) == ["node0", "node1", "node2"]
    arrows = {}
    for event in trace["traceEvents"]:
        if event["ph"] in "sf":
            arrows.setdefault(event["id"], {})[event["ph"]] = event["ts"]
    # What was sent has not arrived before, but for the clocks' error.
    errors_us = 1000 * sum(trace["metadata"]["clock_error_ms"].values())
    assert len(arrows) >= 3 * 2 * 2 * 3
    assert all(arrow["s"] <= arrow["f"] + errors_us for arrow in arrows.values())
