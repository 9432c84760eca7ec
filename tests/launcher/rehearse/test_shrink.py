"""The smallest world that has every kind of rank."""

import re

from hypothesis import given

from launcher.rehearse.kinds import kinds_of
from launcher.rehearse.shrink import overrides_of, smaller_sizes
from mimo_role import Topology
from tests.mimo_role.worlds import topologies


def shrunk(topology):
    """The topology with smaller dp; only for modules that have ranks of their own."""
    dp = smaller_sizes(topology)
    modules = {
        name: {axis: grid.axis_size(axis) for axis in grid.dim_names} | {"dp": dp[name]}
        for name, grid in topology.grids.items()
    }
    for name, grid in topology.expert_grids.items():
        modules[name] |= {axis: grid.axis_size(axis) for axis in ("ep", "expt_tp")}
    return Topology.from_modules(modules)


def positions(topology):
    """The kinds, without the numbers of other modules' lanes."""
    return {re.sub(r", \d+ of \w+'s lanes", "", kind.name) for kind in kinds_of(topology)}


def test_a_large_world_keeps_first_middle_and_last_lanes():
    large = Topology.from_modules({"vision": {"dp": 1024}, "language": {"tp": 8, "dp": 144, "pp": 8}})
    assert smaller_sizes(large) == {"vision": 4, "language": 3}
    small = shrunk(large)
    assert small.world_size == 4 + 3 * 64
    assert positions(small) == positions(large)


def test_experts_still_divide_a_stage():
    large = Topology.from_modules({"vision": {"dp": 1024}, "language": {"tp": 8, "dp": 144, "pp": 8, "ep": 16}})
    assert smaller_sizes(large)["language"] == 4
    assert {kind.stage for kind in kinds_of(shrunk(large))} == {kind.stage for kind in kinds_of(large)}


def test_multiples_stay_multiples():
    large = Topology.from_modules({"vision": {"dp": 1024}, "language": {"dp": 512}})
    assert smaller_sizes(large) == {"vision": 6, "language": 3}


def test_modules_on_the_same_ranks_shrink_together():
    large = Topology.from_modules({"vision": {"dp": 512}, "language": {"tp": 4, "dp": 128}}, layout="colocated")
    assert smaller_sizes(large) == {"vision": 12, "language": 3}


@given(topologies(experts=True))
def test_no_module_grows_and_none_loses_a_position(topology):
    sizes = smaller_sizes(topology)
    for name, grid in topology.grids.items():
        assert 1 <= sizes[name] <= grid.axis_size("dp")
        assert (sizes[name] >= 3) or grid.axis_size("dp") < 3 or "gtp_remat" in grid.dim_names


def test_overrides_put_the_world_on_this_machine():
    topology = Topology.from_modules({"vision": {"dp": 8}, "language": {"dp": 8}})
    assert overrides_of(topology, has_pools=False) == ["modules.vision.dp=3", "modules.language.dp=3"]
    assert overrides_of(topology, has_pools=True)[2:] == [
        "pools=null",
        "modules.vision.pool=null",
        "modules.language.pool=null",
    ]
