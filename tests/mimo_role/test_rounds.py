import pytest
from hypothesis import given, settings

from mimo_role import Topology
from mimo_role.rounds import RowSet, families, schedule
from tests.mimo_role.test_topology import topologies


@given(topologies())
@settings(max_examples=50)
def test_in_every_round_the_ranks_of_the_world_fall_into_disjoint_rows(topology):
    for round_ in schedule(topology):
        for rank in range(topology.world_size):
            row = round_.row_of(rank)
            assert rank in row
            assert all(round_.row_of(other) == row for other in row)


@given(topologies())
@settings(max_examples=50)
def test_every_row_along_every_axes_is_made_exactly_once_or_is_the_world(topology):
    rounds = schedule(topology)
    for rank in range(topology.world_size):
        made = [row for round_ in rounds if len(row := round_.row_of(rank)) > 1]
        assert len(made) == len(set(made))
        needed = {
            grid.row_of(rank, axes) for name in topology.modules_of(rank) for grid, axes in families(topology.grids[name])
        }
        assert set(made) == {row for row in needed if len(row) not in (1, topology.world_size)}


@given(topologies())
@settings(max_examples=50)
def test_a_row_set_gives_the_grids_own_rows(topology):
    for grid in topology.grids.values():
        for axes in [(), ("tp",), ("tp", "dp"), ("cp", "pp"), grid.dim_names]:
            for rank in (grid.ranks.start, grid.ranks.stop - 1):
                assert RowSet.of(grid, axes).row_of(rank) == grid.row_of(rank, axes)


@pytest.mark.parametrize(
    ("modules", "layout", "rounds"),
    [
        ({"vision": {"dp": 4}, "language": {"dp": 4}}, "colocated", 1),
        ({"vision": {"dp": 2}, "language": {"dp": 2}}, "non_colocated", 2),
        ({"vision": {"dp": 2}, "language": {"tp": 2, "dp": 2}}, "non_colocated", 4),
        ({"vision": {"dp": 1024}, "language": {"tp": 8, "dp": 144, "pp": 8}}, "non_colocated", 8),
    ],
)
def test_modules_on_ranks_of_their_own_share_rounds(modules, layout, rounds):
    assert len(schedule(Topology.from_modules(modules, layout=layout))) == rounds
