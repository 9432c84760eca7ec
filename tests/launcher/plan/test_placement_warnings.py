import pytest

from launcher.config.schema import PoolConfig
from launcher.plan.placement import Node, place
from launcher.plan.placement_warnings import gpus_per_node, review
from mimo_role import Topology


def found(modules, pools, pool_of=None, **more):
    topology = Topology.from_modules(modules, **more)
    pool_of = dict.fromkeys(modules) | (pool_of or {})
    return {warning.code: warning.message for warning in review(topology, place(topology, pools, pool_of), pools)}


def test_idle_nodes_and_slots_are_counted():
    pools = {"small": PoolConfig(nodes=2, procs_per_node=2), "large": PoolConfig(nodes=2, procs_per_node=8)}
    warnings = found({"vision": {"dp": 4}, "language": {"dp": 5}}, pools)
    assert warnings["unused_nodes"] == "pool large: 1 of 2 nodes get no rank"
    assert warnings["idle_slots"] == "pool large: 3 of the 8 slots on its used nodes get no rank"


def test_the_warning_about_tp_rows_across_nodes_names_the_first_one():
    pools = {"gpu": PoolConfig(nodes=3, procs_per_node=4)}
    warnings = found({"vision": {"dp": 2}, "language": {"tp": 4, "dp": 2}}, pools)
    assert warnings == {
        "tp_across_nodes": "modules.language.tp=4: 2 of 2 tp rows cross nodes, the first (ranks 2-5) from node0 to node1; "
        "these ranks communicate in every layer",
        "idle_slots": "pool gpu: 2 of the 12 slots on its used nodes get no rank",
    }


def test_a_cp_row_in_another_order_is_followed_by_its_stride():
    pools = {"gpu": PoolConfig(nodes=2, procs_per_node=4)}
    modules = {"vision": {"dp": 8}, "language": {"cp": 2, "dp": 4, "order": ["dp", "cp", "tp", "pp"]}}
    warnings = found(modules, pools, layout="colocated")
    assert warnings["cp_across_nodes"].startswith("modules.language.cp=2: 4 of 4 cp rows cross nodes, the first (ranks 0, 4)")


def test_rows_within_a_node_give_no_warning():
    pools = {"gpu": PoolConfig(nodes=3, procs_per_node=4)}
    assert found({"vision": {"dp": 4}, "language": {"tp": 4, "dp": 2}}, pools) == {}


def test_the_warning_about_a_module_on_two_pools_names_its_shares():
    pools = {"a": PoolConfig(nodes=1, procs_per_node=4), "b": PoolConfig(nodes=1, procs_per_node=4)}
    warnings = found({"vision": {"dp": 2}, "language": {"dp": 6}}, pools)
    assert warnings["module_across_pools"] == (
        "modules.language: its 6 ranks lie on 2 pools (2 on a, 4 on b); modules.language.pool puts it on one"
    )
    assert warnings["bridge_across_pools"].startswith("bridge vision -> language: 2 ranks on a to 6 ranks on a and b;")


def test_the_warning_about_a_bridge_between_pools_counts_the_ranks_of_its_stages():
    pools = {"a": PoolConfig(nodes=1, procs_per_node=4), "b": PoolConfig(nodes=1, procs_per_node=8)}
    modules = {"vision": {"dp": 2, "pp": 2}, "language": {"tp": 2, "pp": 4}}
    warnings = found(modules, pools, {"vision": "a", "language": "b"})
    assert warnings == {
        "bridge_across_pools": "bridge vision -> language: 2 ranks on a to 2 ranks on b; all of its data crosses between "
        "the pools"
    }


@pytest.mark.parametrize("late_pool", ["a", None])
def test_modules_without_a_pool_do_not_take_nodes_that_later_modules_need(late_pool):
    topology = Topology.from_modules({"vision": {"dp": 2}, "language": {"dp": 2}})
    pools = {"a": PoolConfig(nodes=1, procs_per_node=2), "b": PoolConfig(nodes=1, procs_per_node=2)}
    nodes = place(topology, pools, {"vision": None, "language": late_pool})
    first, second = ("b", "a") if late_pool else ("a", "b")
    assert nodes == [Node("node0", first, 0, 2), Node("node1", second, 2, 2)]


@pytest.mark.parametrize(
    ("slurm", "gpus"),
    [
        ({}, None),
        ({"gres": "gpu:4"}, 4),
        ({"gres": "gpu"}, 1),
        ({"gres": "gpu:h100:8"}, 8),
        ({"gres": "gpu:h100"}, 1),
        ({"gres": "nvme:1,gpu:a:2,gpu:b:3"}, 5),
        ({"gres": "gpu:4(S:0-1)"}, 4),
        ({"gres": "nvme:2"}, None),
        ({"gpus-per-node": 4}, 4),
        ({"gpus-per-node": "h100:8"}, 8),
    ],
)
def test_gpus_are_read_from_a_pools_options(slurm, gpus):
    assert gpus_per_node(PoolConfig(procs_per_node=8, slurm=slurm)) == gpus


def test_more_ranks_than_gpus_give_a_warning():
    pools = {"gpu": PoolConfig(nodes=1, procs_per_node=8, slurm={"gres": "gpu:4"})}
    assert found({"vision": {"dp": 2}, "language": {"dp": 6}}, pools) == {
        "fewer_gpus_than_ranks": "pools.gpu: 8 ranks on a node, but slurm requests 4 GPUs per node"
    }
