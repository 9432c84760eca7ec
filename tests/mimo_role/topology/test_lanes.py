"""Lanes are the ranks with the same samples, numbered by their first ranks."""

import pytest
from hypothesis import given

from mimo_role import RankGrid, RankNotInGridError
from mimo_role.topology.lanes import lane_coords, lane_count, lane_of
from tests.mimo_role.worlds import topologies


@given(topologies())
def test_lanes_divide_the_ranks_and_ascend(topology):
    for grid in topology.grids.values():
        same = [axis for axis in grid.dim_names if axis not in ("dp", "gtp_remat")]
        lanes = list(grid.rows(same))
        assert lanes == sorted(lanes)
        assert lane_count(grid) == len(lanes)
        for number, ranks in enumerate(lanes):
            assert {lane_of(grid, rank) for rank in ranks} == {(number, len(lanes))}
            assert grid.rank_at(lane_coords(grid, number)) == ranks[0]


def test_a_grid_without_axes_of_lanes_is_one_lane():
    grid = RankGrid([4], ["tp"], 2)
    assert lane_of(grid, 3) == (0, 1)
    assert lane_coords(grid, 0) == {}
    with pytest.raises(RankNotInGridError):
        lane_of(grid, 0)
