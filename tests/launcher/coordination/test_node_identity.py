"""Which node of the plan this machine is. 127.0.0.1 stands for no host: nodes of a job cannot meet there."""

import os
import re
import socket

import pytest

from launcher.config.loader import load
from launcher.coordination.node_identity import Endpoint, LocalNode, by_pool, resolve_local_node
from launcher.errors import LaunchError
from launcher.plan.placement import Node
from launcher.plan.planner import make_plan
from mimo_role import EnvironError, MimoError
from mimo_role.host.network import address_towards

CONFIG = """
name: nodes
layout: non_colocated
modules:
  vision:   {dp: 2, pool: encoders}
  language: {dp: 6, pool: llm}
pools:
  encoders: {nodes: 2, procs_per_node: 1}
  llm:      {nodes: 3, procs_per_node: 2}
entry: {command: ["true"]}
"""

MIXED = """
name: mixed
layout: non_colocated
modules:
  first:    {pool: a}
  second:   {pool: b}
  language: {pool: a}
pools:
  a: {nodes: 2, procs_per_node: 1}
  b: {nodes: 1, procs_per_node: 1}
entry: {command: ["true"]}
"""

OWN = address_towards("192.0.2.1")
"""An address of this machine by which others could reach it; `None` on a machine without a network."""

OTHER = "192.0.2.1"
"""An address for documents, which no machine has (RFC 5737)."""

needs_network = pytest.mark.skipif(OWN is None, reason="this machine has no address that others could reach")


@pytest.fixture(autouse=True)
def outside_of_slurm(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MIMO_DETECT")):
            monkeypatch.delenv(name)


@pytest.fixture
def plan(tmp_path):
    return plan_of(tmp_path)


def plan_of(folder, *overrides, config=CONFIG):
    path = folder / "job.yaml"
    path.write_text(config)
    return make_plan(load(path, list(overrides))[0], path, [])


def task(**changes):
    """Task 1 of a step over five nodes, one task on each."""
    values = {
        "JOB_ID": "77",
        "STEP_ID": "0",
        "PROCID": "1",
        "NTASKS": "5",
        "NODEID": "1",
        "NNODES": "5",
        "LOCALID": "0",
        "STEP_NODELIST": f"{OTHER},n[2-5]",
    }
    return {f"SLURM_{name}": str(value) for name, value in (values | changes).items()}


@pytest.fixture
def in_slurm(monkeypatch):
    def enter(**changes):
        for name, value in task(**changes).items():
            monkeypatch.setenv(name, value)

    return enter


def test_a_plan_with_one_node_is_this_machine(tmp_path):
    alone = plan_of(tmp_path, "pools=null", "modules.vision.pool=null", "modules.language.pool=null")
    assert resolve_local_node(alone, None, None) == LocalNode(0, None, None)
    assert resolve_local_node(alone, "0", None) == LocalNode(0, None, None)
    assert (
        resolve_local_node(alone, "0", "anywhere:1")
        == resolve_local_node(alone, None, "anywhere:1")
        == LocalNode(0, None, None)
    )


@pytest.mark.parametrize(
    ("node_rank", "index"),
    [("1", 1), ("4", 4), ("encoders:1", 1), ("llm:0", 2), ("llm:2", 4), ("01", 1)],
)
def test_a_node_is_named_by_its_number_in_the_plan_or_in_its_pool(plan, node_rank, index):
    assert resolve_local_node(plan, node_rank, f"{OTHER}:29500") == LocalNode(index, Endpoint(OTHER, 29500))


@needs_network
@pytest.mark.parametrize("node_rank", ["0", "encoders:0"])
def test_node_0_is_where_the_nodes_meet(plan, node_rank):
    assert resolve_local_node(plan, node_rank, f"{OWN}:29500") == LocalNode(0, Endpoint(OWN, 29500))


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        (f"{OTHER}:1", Endpoint(OTHER, 1)),
        (f"{OTHER}:65535", Endpoint(OTHER, 65535)),
        ("[2001:db8::1]:29500", Endpoint("2001:db8::1", 29500)),
    ],
)
def test_an_endpoint_is_a_host_and_a_port(plan, text, endpoint):
    found = resolve_local_node(plan, "1", text).endpoint
    assert found == endpoint
    assert str(found) == text


@pytest.mark.parametrize(
    ("node_rank", "endpoint", "message"),
    [
        pytest.param(
            None,
            None,
            "the plan has 5 nodes: start it on each node with --node-rank I --rdzv-endpoint HOST:PORT, or with srun inside a "
            "SLURM job; pools=null puts all ranks on this machine",
            id="neither",
        ),
        pytest.param(
            "1",
            None,
            "--node-rank without --rdzv-endpoint: where do the nodes meet? Give the host of node 0 and a free port",
            id="no endpoint",
        ),
        pytest.param(
            None,
            "host:1",
            "--rdzv-endpoint without --node-rank: which of the plan's 5 nodes is this?",
            id="no rank",
        ),
        pytest.param("5", "host:1", "--node-rank 5: the plan has 5 nodes; use 0 to 4", id="rank too large"),
        pytest.param("llm:3", "host:1", "--node-rank llm:3: pool llm has 3 nodes; use 0 to 2", id="rank too large in pool"),
        pytest.param("vision:0", "host:1", "--node-rank vision:0: no pool 'vision'; there is encoders, llm", id="no pool"),
        pytest.param(":0", "host:1", "--node-rank :0: no pool ''; there is encoders, llm", id="empty pool"),
        pytest.param("-1", "host:1", "--node-rank -1: not a number from 0, nor POOL:NUMBER", id="negative"),
        pytest.param("llm", "host:1", "--node-rank llm: not a number from 0, nor POOL:NUMBER", id="pool alone"),
        pytest.param("llm:", "host:1", "--node-rank llm:: not a number from 0, nor POOL:NUMBER", id="pool without number"),
        pytest.param("\u0663", "host:1", "--node-rank \u0663: not a number from 0, nor POOL:NUMBER", id="foreign digit"),
        *[
            pytest.param(
                "1",
                text,
                f"--rdzv-endpoint {text}: not HOST:PORT with a port from 1 to 65535",
                id=f"endpoint {text or 'empty'}",
            )
            for text in (
                "",
                "host",
                "host:",
                ":29500",
                "host:0",
                "host:65536",
                "host:1e3",
                "::1:29500",
                "[::1]",
                "a b:1",
                "host:-1",
            )
        ],
    ],
)
def test_options_that_do_not_tell_are_refused(plan, node_rank, endpoint, message):
    with pytest.raises(LaunchError, match=f"^{re.escape(message)}$"):
        resolve_local_node(plan, node_rank, endpoint)


@pytest.mark.parametrize("node_rank", ["0", "1"])
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.1.1", "localhost"])
def test_a_loopback_address_is_refused_on_every_node(plan, node_rank, host):
    message = rf"{re.escape(host)} is (127\.0\.\d\.1|::1) on this machine, a loopback address: .* name the host of node 0 by"
    with pytest.raises(LaunchError, match=message):
        resolve_local_node(plan, node_rank, f"{host}:29500")


def test_node_0_on_another_machine_is_refused(plan):
    with pytest.raises(LaunchError, match=rf"this is node 0, but {OTHER} \({OTHER}\) is another machine; give all nodes the"):
        resolve_local_node(plan, "0", f"{OTHER}:29500")


def test_a_host_that_cannot_be_resolved_is_named_with_where(plan):
    with pytest.raises(MimoError, match=f"'no-such-host.invalid' cannot be resolved on {socket.gethostname()}"):
        resolve_local_node(plan, "1", "no-such-host.invalid:29500")


def test_a_task_of_srun_is_the_node_with_its_number_and_meets_at_the_first(plan, in_slurm):
    in_slurm()
    found = resolve_local_node(plan, None, None)
    assert (found.node_rank, found.endpoint.host, found.slurm_job) == (1, OTHER, "77")
    assert 15000 <= found.endpoint.port < 32000


@needs_network
def test_all_tasks_of_a_step_meet_at_one_port(plan, in_slurm):
    found = []
    for node in range(5):
        in_slurm(PROCID=node, NODEID=node, STEP_NODELIST=f"{OWN},n[2-5]")
        found.append(resolve_local_node(plan, None, None))
    assert [place.node_rank for place in found] == [0, 1, 2, 3, 4]
    assert len({place.endpoint for place in found}) == 1


def test_options_go_before_slurms_numbers_and_leave_it_the_job(plan, in_slurm):
    in_slurm()
    assert resolve_local_node(plan, "3", f"{OTHER}:29500") == LocalNode(3, Endpoint(OTHER, 29500), "77")


def test_slurm_counts_nodes_pool_by_pool(tmp_path, in_slurm):
    """The plan has nodes of pool a, b, a; SLURM's components are a with two nodes and b with one."""
    mixed = plan_of(tmp_path, config=MIXED)
    assert [node.pool for node in mixed.nodes] == ["a", "b", "a"]
    places = []
    for number in (1, 2):
        in_slurm(NTASKS=3, NNODES=3, PROCID=number, NODEID=number, STEP_NODELIST=f"{OTHER},n[2-3]")
        places.append(resolve_local_node(mixed, None, None).node_rank)
    assert places == [2, 1]


@pytest.mark.parametrize(
    ("pools", "order"),
    [
        ("", []),
        ("a", [0]),
        ("aab", [0, 1, 2]),
        ("aba", [0, 2, 1]),
        ("bacab", [0, 4, 1, 3, 2]),
    ],
)
def test_pools_are_counted_in_the_order_in_which_they_appear(pools, order):
    nodes = tuple(Node(f"node{index}", pool, index, 1) for index, pool in enumerate(pools))
    assert by_pool(nodes) == order


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"NTASKS": 8},
            "srun started 8 tasks on 5 nodes, and mimo-launch starts the ranks of a node itself: use srun --ntasks-per-node=1 "
            "(MIMO_DETECT=off ignores SLURM)",
            id="a task per rank",
        ),
        pytest.param(
            {"NTASKS": 2, "NNODES": 2, "STEP_NODELIST": "n[1-2]"},
            "srun started mimo-launch on 2 nodes, but the plan has 5: use srun --nodes=5, or change pools "
            "(MIMO_DETECT=off ignores SLURM)",
            id="other nodes",
        ),
        pytest.param(
            {"STEP_NODELIST": "n[1-4]"},
            "SLURM's node list names 4 nodes for a step on 5; give --node-rank and --rdzv-endpoint",
            id="a list that is too short",
        ),
    ],
)
def test_a_step_that_does_not_fit_the_plan_is_refused(plan, in_slurm, changes, message):
    in_slurm(**changes)
    with pytest.raises(LaunchError, match=f"^{re.escape(message)}$"):
        resolve_local_node(plan, None, None)


def test_a_malformed_variable_of_slurms_is_named(plan, in_slurm):
    in_slurm(NODEID="x")
    with pytest.raises(EnvironError, match="SLURM_NODEID: 'x' is not a whole number; MIMO_DETECT=off"):
        resolve_local_node(plan, None, None)


def test_a_job_script_is_told_to_use_srun(plan, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    message = "the plan has 5 nodes, and inside SLURM job 77 srun starts one task on each: srun --ntasks-per-node=1 mimo-launch"
    with pytest.raises(LaunchError, match=message):
        resolve_local_node(plan, None, None)


def test_without_detection_slurm_is_not_there(plan, in_slurm, monkeypatch):
    in_slurm()
    monkeypatch.setenv("MIMO_DETECT", "off")
    with pytest.raises(LaunchError, match="the plan has 5 nodes: start it on each node with --node-rank"):
        resolve_local_node(plan, None, None)


def test_a_plan_with_one_node_is_a_task_of_slurm_too(tmp_path, in_slurm):
    alone = plan_of(tmp_path, "pools=null", "modules.vision.pool=null", "modules.language.pool=null")
    in_slurm(NTASKS=1, NNODES=1, NODEID=0, PROCID=0, STEP_NODELIST=OTHER)
    assert resolve_local_node(alone, None, None) == LocalNode(0, None, "77")
