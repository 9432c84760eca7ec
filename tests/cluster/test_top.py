"""A run on three hosts, watched from a fourth process that asks node 0."""

import json
import os
import sys

import pytest

from tests.cluster.agents import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
if os.geteuid() != 0:
    pytest.skip("hosts are network namespaces, which only root can make", allow_module_level=True)

SCRIPT = """
import time, mimo_role
from pathlib import Path

ctx = mimo_role.current()
for step in range(1, 3000):
    ctx.step(step, of=2999)
    ctx.log(loss=2.5)
    time.sleep(0.02)
    if Path("stop").exists():
        break
"""


def test_a_run_is_watched_through_node_0_until_it_ends(agents):
    agents.write(SCRIPT)
    started = agents.start_all()
    wait_until((agents.folder / "run/live.json").exists, "live.json", started, timeout_s=90)
    host = agents.hosts.names[1]
    command = [sys.executable, "-m", "launcher", "top", agents.endpoint]
    watching = agents.popen(host, [*command, "--json", "--interval", "0.2"])
    while (view := json.loads(watching.stdout.readline()))["step"] is None or view["recording"] < 6:
        pass
    assert (view["run"], view["scalars"]["loss"], view["total_steps"]) == ("nodes", 2.5, 2999)
    assert {name: module["ranks"] for name, module in view["modules"].items()} == {"vision": 3, "language": 3}
    once = agents.finish([agents.popen(host, [*command, "--once"])])[0]
    assert (once.code, once.err) == (0, "")
    assert once.out.startswith("nodes | 6 ranks | ")
    (agents.folder / "stop").touch()
    assert [done.code for done in agents.finish(started)] == [0, 0, 0]
    ended = agents.finish([watching])[0]
    assert (ended.code, ended.err) == (0, "")
