"""Real jobs over hosts of 1, 2 and 3 ranks that share a folder."""

import json
import os
import re

import pytest

from tests.launcher.jobs import ROOT, lines_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]
if os.geteuid() != 0:
    pytest.skip("hosts are network namespaces, which only root can make", allow_module_level=True)

PLACES = {"alpha": [0], "beta": [1, 2], "gamma": [3, 4, 5]}
LABELS = ["vision.dp0", "vision.dp1", "vision.dp2", "language.dp0", "language.dp1", "language.dp2"]

WHERE = """
import os, socket, torch, torch.distributed as dist, mimo_role
total = torch.tensor(mimo_role.current().rank)
dist.all_reduce(total)
print(socket.gethostname(), os.environ["MIMO_NODE"], os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"], int(total))
"""


def test_every_rank_runs_on_its_node_and_nodes_json_has_the_hosts(agents):
    found = agents.run(WHERE)
    for node, ((host, ranks), done) in enumerate(zip(PLACES.items(), found, strict=True)):
        assert (done.code, done.said) == (0, "")
        for local_rank, rank in enumerate(ranks):
            assert lines_of(done.out, f"[{LABELS[rank]} r{rank}]") == [f"{host} node{node} {local_rank} {len(ranks)} 15"]
        assert len(done.out.splitlines()) == len(ranks)
    nodes = json.loads((agents.folder / "run" / "nodes.json").read_text())
    assert [(node["name"], node["host"], node["first_rank"], node["procs"]) for node in nodes] == [
        ("node0", "alpha", 0, 1),
        ("node1", "beta", 1, 2),
        ("node2", "gamma", 3, 3),
    ]
    assert len(list((agents.folder / "run" / "logs" / "attempt0").glob("rank*.stdout.log"))) == 6


def test_a_node_can_be_named_by_its_pool(agents):
    agents.write(WHERE)
    places = zip(("one:0", "two:0", "three:0"), PLACES, strict=True)
    found = agents.finish([agents.start(node, host=host) for node, host in places])
    assert [done.code for done in found] == [0, 0, 0]
    assert [len(done.out.splitlines()) for done in found] == [1, 2, 3]


# Six samples from encoders on two hosts to language lanes on a third, and their gradients back; in the third step one
# language lane takes a batch less.
OVER_A_BRIDGE = """
import torch, mimo_role
ctx = mimo_role.current()
bridge, found = ctx.bridge("vision"), []
mine = mimo_role.lane_samples(6, 3, ctx.coords(next(iter(ctx.role.modules)))["dp"])
try:
    for step in range(3):
        if bridge.is_sender:
            held = torch.arange(mine.start, mine.stop, dtype=torch.float64).view(-1, 1).requires_grad_()
            bridge(held * 2, batch_size=6).backward()
            found.append(held.grad.view(-1).tolist() == [2.0 * 3 * (step + 1)] * len(mine))
        elif step < 2 or ctx.rank != 4:
            taken = bridge(batch_size=6, sample_shape=(1,), dtype=torch.float64)
            found.append(taken.view(-1).tolist() == [2.0 * sample for sample in mine])
            (taken * 3 * (step + 1)).sum().backward()
    mimo_role.shutdown()
except mimo_role.BridgeError as error:
    found.append("batch 2" in str(error) and "rank 4" in str(error))
print(*found)
"""


def test_batches_cross_between_hosts_and_a_missing_one_is_named_there(agents):
    found = agents.run(OVER_A_BRIDGE)
    assert [done.code for done in found] == [0, 0, 0]
    for (_, ranks), done in zip(PLACES.items(), found, strict=True):
        for rank in ranks:
            assert lines_of(done.out, f"[{LABELS[rank]} r{rank}]") == ["True True True"]


# Rank 4 fails the first time only; the others talk to it all the time.
FAILS_ONCE = """
import os, sys, torch, torch.distributed as dist, mimo_role
starts = mimo_role.RankEnviron.from_environ().restart_count
print("start", starts, os.environ["MIMO_RESTART_COUNT"], flush=True)
for step in range(20):
    dist.all_reduce(torch.ones(()))
    if starts == 0 and step == 5 and mimo_role.current().rank == 4:
        sys.exit(7)
"""


def test_a_failure_on_one_node_restarts_the_ranks_of_all(agents):
    found = agents.run(FAILS_ONCE, "runtime.max_restarts=1")
    assert [done.code for done in found] == [0, 0, 0]
    for ranks, done in zip(PLACES.values(), found, strict=True):
        for rank in ranks:
            assert lines_of(done.out, f"[{LABELS[rank]} r{rank}]") == ["start 0 0", "start 1 1"]


# The ranks of nodes 0 and 1 do not wait for those of node 2, and have ended when rank 4 fails the first time.
FAILS_LATE = """
import os, pathlib, sys, time, mimo_role
rank, starts = int(os.environ["RANK"]), mimo_role.RankEnviron.from_environ().restart_count
pathlib.Path(f"start{starts}-{rank}").write_text(str(os.getpid()))
if starts == 0 and rank == 4:
    for other in (0, 1, 2):
        started = pathlib.Path(f"start0-{other}")
        while not started.exists() or not (pid := started.read_text()) or pathlib.Path("/proc", pid).exists():
            time.sleep(0.01)
    sys.exit(7)
"""


def test_a_failure_after_other_nodes_are_done_restarts_those_too(agents):
    found = agents.run(FAILS_LATE, "runtime.max_restarts=1", "runtime.join=script", timeout_s=40)
    assert [done.code for done in found] == [0, 0, 0]
    assert len(list(agents.folder.glob("start1-*"))) == 6


def test_restarts_are_counted_over_all_nodes(agents):
    fails = FAILS_ONCE.replace(
        "starts == 0 and step == 5 and mimo_role.current().rank == 4", "step == 5 and mimo_role.current().rank == 3 * starts"
    )
    found = agents.run(fails, "runtime.max_restarts=1")
    assert [done.code for done in found] == [7, 7, 7]
    for done in found:
        assert "rank 3 (language.dp0) failed first: exit code 7" in done.said
    assert found[1].said.endswith("ended: rank 3 (language.dp0) failed first: exit code 7 on node2 (gamma)")
    assert not (agents.folder / "run" / "logs" / "attempt2").exists()


def test_a_node_that_cannot_take_its_run_directory_ends_all(agents):
    agents.write("")
    (agents.folder / "file").touch()
    found = agents.finish([agents.start(0), agents.start(1, "run_dir=file/run"), agents.start(2)], timeout_s=30)
    assert found[1].code == 2
    assert "run_dir: " in found[1].said
    for done in (found[0], found[2]):
        assert done.code != 0
        assert "node1 (beta)" in done.said
        assert "run_dir: " in done.said


def test_a_clock_that_differs_is_a_warning(agents):
    odd = agents.folder / "odd"
    odd.mkdir()
    (odd / "sitecustomize.py").write_text(
        "import socket, time\nright = time.time\nif socket.gethostname() == 'beta': time.time = lambda: right() - 100\n"
    )
    agents.environ["PYTHONPATH"] = f"{odd}:{ROOT}"
    found = agents.run("")
    assert [done.code for done in found] == [0, 0, 0]
    assert re.search(r"warning \(clocks\): node1 \(beta\) is (99|100) s behind node0 \(alpha\)", found[0].err)
    assert found[0].err.count("warning (clocks)") == 1
