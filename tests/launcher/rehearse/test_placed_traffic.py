"""What of a kind's traffic crosses nodes and pools."""

import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.schema import PoolConfig
from launcher.plan.placement import place
from launcher.rehearse.bridge_peers import BridgePeers
from launcher.rehearse.kinds import kinds_of
from launcher.rehearse.placed_traffic import PlacedTraffic, Sent
from mimo_role import Topology


def placed(modules, pools, pool_of=None):
    topology = Topology.from_modules(modules, layout="non_colocated")
    nodes = place(topology, pools, dict.fromkeys(modules) | (pool_of or {}))
    plan = SimpleNamespace(topology=topology, nodes=nodes, groups={})
    return PlacedTraffic(plan, BridgePeers(topology)), kinds_of(topology)


def entry(group, ranks, operation, size=1200):
    run = [ranks.start, ranks.stop, ranks.step]
    return {"group": group, "size": len(ranks), "operation": operation, "step_bytes": size, "ranks": [run]}


ONE_POOL = {"gpus": PoolConfig(nodes=3, procs_per_node=2)}
ROW = {"vision": {"dp": 2}, "language": {"tp": 4}}
"""Ranks 2 to 5, on two nodes."""


@pytest.mark.parametrize(
    ("operation", "sent", "crossing"),
    [
        # Two of the four connections of the ring cross nodes.
        pytest.param("all_reduce", 1800, 900, id="all-reduce"),
        pytest.param("all_gather", 3600, 1800, id="all-gather"),
        pytest.param("reduce_scatter", 900, 450, id="reduce-scatter"),
        pytest.param("broadcast", 900, 450, id="broadcast"),
        pytest.param("reduce", 900, 450, id="reduce"),
        # Two of three peers are on the other node.
        pytest.param("all_to_all", 900, 600, id="all-to-all"),
        pytest.param("barrier", 0, 0, id="barrier"),
    ],
)
def test_an_operation_of_a_row_on_two_nodes(operation, sent, crossing):
    traffic, kinds = placed(ROW, ONE_POOL)
    found = traffic.sent(kinds[-1], entry("language.tp", range(2, 6), operation))
    assert found == Sent(sent, pytest.approx(crossing), 0)


def test_rows_of_a_kind_that_cross_nodes_are_averaged_with_those_that_do_not():
    # language.tp: ranks 1-2 on one node, 3-4 on two, 5-6 on one.
    pools = {"a": PoolConfig(nodes=1, procs_per_node=1), "b": PoolConfig(nodes=3, procs_per_node=3)}
    modules = {"vision": {"dp": 1}, "language": {"tp": 2, "dp": 3}}
    traffic, kinds = placed(modules, pools, {"vision": "a", "language": "b"})
    found = [
        traffic.sent(kind, entry("language.tp", range(first, first + 2), "all_reduce"))
        for kind in kinds
        if kind.stage == "language"
        for first in [kind.representative - (kind.representative + 1) % 2]
    ]
    assert sum(sent.across_nodes for sent in found) == 2 * 1200  # both ranks of the torn row send 1,200 bytes
    assert sum(sent.bytes for sent in found) == 6 * 1200


def test_a_group_that_is_not_in_the_plan_is_placed_by_the_ranks_that_were_recorded():
    traffic, kinds = placed(ROW, ONE_POOL)
    assert traffic.sent(kinds[-1], entry("mine", range(0, 6, 2), "all_reduce")).across_nodes == pytest.approx(1600)
    assert traffic.sent(kinds[-1], entry("mine", range(2, 4), "all_reduce")).across_nodes == 0


def test_messages_cross_where_sender_and_receiver_are_apart():
    pools = {"a": PoolConfig(nodes=2, procs_per_node=2), "b": PoolConfig(nodes=4, procs_per_node=2)}
    modules = {"vision": {"dp": 4}, "language": {"dp": 4, "pp": 2}}
    traffic, kinds = placed(modules, pools, {"vision": "a", "language": "b"})
    first = kinds[0]
    assert traffic.sent(first, entry("bridge 1 forward", range(4, 5), "send")) == Sent(1200, 1200, 1200)
    stage = next(kind for kind in kinds if kind.stage == "language.pp0")
    assert traffic.sent(stage, entry("bridge 0 forward", range(8, 9), "send")) == Sent(1200, 1200, 0)


@given(
    st.fixed_dictionaries({"tp": st.integers(1, 4), "dp": st.integers(1, 6), "pp": st.integers(1, 3)}),
    st.integers(1, 9),
    st.sampled_from(["tp", "dp", "pp"]),
)
def test_the_sum_over_all_kinds_is_that_of_all_rings(sizes, procs, axis):
    traffic, kinds = placed({"vision": {}, "language": sizes}, {"gpus": PoolConfig(nodes=99, procs_per_node=procs)})
    topology = Topology.from_modules({"vision": {}, "language": sizes}, layout="non_colocated")
    grid = topology.grids["language"]
    if grid.axis_size(axis) == 1:
        return
    found = 0.0
    for kind in kinds:
        if kind.stage != "vision":
            row = grid.row_of(kind.representative, [axis])
            ranks = range(row[0], row[-1] + 1, row[1] - row[0])
            found += traffic.sent(kind, entry(f"language.{axis}", ranks, "all_gather")).across_nodes * len(kind.ranks)
    rings = [list(zip(row, (*row[1:], row[0]), strict=True)) for row in grid.rows([axis])]
    crossing = sum(own // procs != other // procs for ring in rings for own, other in ring)
    assert found == pytest.approx(crossing * 1200 * (grid.axis_size(axis) - 1))


def test_ten_thousand_ranks_take_little_time():
    modules = {"vision": {"dp": 1024}, "language": {"tp": 4, "dp": 1152, "pp": 2}}
    pools = {"a": PoolConfig(nodes=128, procs_per_node=8), "b": PoolConfig(nodes=1152, procs_per_node=8)}
    began = time.process_time()
    traffic, kinds = placed(modules, pools, {"vision": "a", "language": "b"})
    middle = next(kind for kind in kinds if kind.stage == "language.pp0" and "middle lanes" in kind.name)
    first = middle.representative % 4
    for group, ranks in (("language.tp", range(4)), ("language.dp", range(first, 4608, 4)), ("world", range(10240))):
        shifted = range(ranks.start + 1024, ranks.stop + 1024, ranks.step) if group != "world" else ranks
        traffic.sent(middle, entry(group, shifted, "all_reduce"))
    traffic.sent(middle, entry("bridge 1 back", range(1, 2), "send"))
    assert time.process_time() - began < 5
