"""Which samples a rank reads."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_role import DataError, Topology, balanced_lanes
from mimo_role.data.lane_reads import LaneReads
from mimo_role.topology.lanes import lane_count, lane_of
from tests.mimo_role.worlds import topologies

DEEP = Topology.from_modules({"vision": {"pp": 2}, "language": {"pp": 3}})


def readers(topology, needs=None):
    """By module, the ranks that read its samples."""
    reads = [LaneReads(topology, rank, needs, None).modules for rank in range(topology.world_size)]
    return {module: [rank for rank, modules in enumerate(reads) if module in modules] for module in topology.grids}


@given(topologies(max_ranks=40), st.lists(st.integers(0, 10**6), unique=True, min_size=1, max_size=20), st.booleans())
def test_the_lanes_of_each_module_divide_a_micro_batch_and_the_ranks_of_a_lane_read_the_same(topology, indices, balanced):
    assign = {"vision": balanced_lanes} if balanced else {}
    found = {module: {} for module in topology.grids}
    for rank in range(topology.world_size):
        reads = LaneReads(topology, rank, None, assign)
        for module, own in reads.of(indices, reads.assigned_lanes(indices)).items():
            lane = lane_of(topology.grids[module], rank).number
            assert found[module].setdefault(lane, own) == own
    for module, grid in topology.grids.items():
        lanes = found[module]
        assert sorted(lanes) == list(range(lane_count(grid)))
        assert sorted(chain.from_iterable(lanes.values())) == sorted(indices)
        assert all(own == sorted(own, key=indices.index) for own in lanes.values())


def test_first_stages_read_and_the_last_of_the_language_module():
    assert readers(DEEP) == {"vision": [0], "language": [2, 4]}


def test_needs_names_other_stages():
    assert readers(DEEP, {"language": "all", "vision": (-1,)}) == {"vision": [1], "language": [2, 3, 4]}
    assert readers(DEEP, {"language": ()}) == {"vision": [0], "language": []}


@pytest.mark.parametrize(
    ("needs", "assign", "message"),
    [
        ({"sound": (0,)}, None, "needs: no module 'sound'; there are vision, language"),
        ({"vision": (2,)}, None, r"needs\['vision'\]: no stage 2; there are 2, from 0, and -1 is the last"),
        (None, {"sound": balanced_lanes}, "assign_lanes: no module 'sound'"),
    ],
)
def test_unknown_modules_and_stages_are_refused(needs, assign, message):
    with pytest.raises(DataError, match=message):
        LaneReads(DEEP, 0, needs, assign)


@pytest.mark.parametrize("assigned", [[0], [0, 1], [0, -1], [0, 0.5]])
def test_an_assignment_that_is_not_one_lane_for_each_sample_is_refused(assigned):
    reads = LaneReads(DEEP, 0, None, {"vision": lambda *_: assigned})
    with pytest.raises(DataError, match=r"assign_lanes\['vision'\] returned .* for 2 samples; one lane for each, 0 to 0"):
        reads.assigned_lanes([7, 8])
