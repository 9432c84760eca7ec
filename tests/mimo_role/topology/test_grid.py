from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_role import AxisError, RankGrid, RankNotInGridError

AXES = ["tp", "cp", "ep", "dp", "pp"]


@st.composite
def grids(draw):
    names = draw(st.permutations(AXES))[: draw(st.integers(1, 5))]
    shape = draw(st.lists(st.integers(1, 4), min_size=len(names), max_size=len(names)))
    return RankGrid(shape, names, draw(st.integers(0, 100)))


@st.composite
def grids_with_axes(draw):
    grid = draw(grids())
    return grid, draw(st.lists(st.sampled_from(grid.dim_names), unique=True))


def brute_force_rows(grid, axes):
    """Group all ranks by the coordinates that are not among the axes."""
    rows = {}
    for index, slowest_first in enumerate(product(*(range(size) for size in reversed(grid.shape)))):
        coords = dict(zip(reversed(grid.dim_names), slowest_first, strict=True))
        rows.setdefault(tuple((axis, at) for axis, at in coords.items() if axis not in axes), []).append(
            grid.rank_offset + index
        )
    return sorted(tuple(row) for row in rows.values())


def test_the_first_axis_varies_fastest():
    grid = RankGrid([2, 2, 2], ["tp", "cp", "dp"])
    assert grid.row_of(0, ["tp"]) == (0, 1)
    assert grid.row_of(0, ["cp"]) == (0, 2)
    assert grid.row_of(0, "dp") == (0, 4)
    assert grid.coords(5) == {"tp": 1, "cp": 0, "dp": 1}


@given(grids_with_axes())
def test_rows_equal_an_enumeration_of_all_coordinates(case):
    grid, axes = case
    assert list(grid.rows(axes)) == brute_force_rows(grid, axes)
    assert grid.row_count(axes) * grid.row_size(axes) == grid.size


@given(grids_with_axes(), st.data())
def test_a_ranks_row_contains_it_and_is_one_of_the_rows(case, data):
    grid, axes = case
    rank = data.draw(st.sampled_from(grid.ranks))
    row = grid.row_of(rank, axes)
    assert rank in row
    assert row in list(grid.rows(axes))


@given(grids(), st.data())
def test_coordinates_and_ranks_are_inverse(grid, data):
    rank = data.draw(st.sampled_from(grid.ranks))
    assert grid.rank_at(grid.coords(rank)) == rank
    assert all(0 <= at < grid.axis_size(axis) for axis, at in grid.coords(rank).items())


def test_a_million_ranks_cost_no_more_than_one_row():
    grid = RankGrid([8, 1, 1024, 128], ["tp", "cp", "dp", "pp"])
    assert grid.row_of(1_000_000, ["tp"]) == tuple(range(1_000_000, 1_000_008))
    assert grid.row("tp", 131_071)[-1] == grid.size - 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([2], ["tp", "dp"]), r"len\(shape\) 1 != len\(dim_names\) 2"),
        (([2, 2], ["tp", "tp"]), "an axis twice"),
        (([0], ["tp"]), "not a positive integer"),
        (([True], ["tp"]), "not a positive integer"),
        (([2], ["tp"], -1), "rank_offset -1 is negative"),
    ],
)
def test_impossible_grids_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RankGrid(*arguments)


def test_ranks_axes_and_coordinates_outside_of_the_grid_are_named():
    grid = RankGrid([2, 3], ["tp", "dp"], rank_offset=4)
    assert 9 in grid
    assert 10 not in grid
    with pytest.raises(RankNotInGridError, match="rank 10 is not among ranks 4-9"):
        grid.coords(10)
    with pytest.raises(AxisError, match="no axis 'pp'; the grid has tp, dp"):
        grid.row_of(4, ["pp"])
    with pytest.raises(AxisError, match="duplicate axis"):
        grid.row_of(4, ["tp", "tp"])
    with pytest.raises(IndexError, match="row 3 of 3 rows along tp"):
        grid.row(["tp"], 3)
    with pytest.raises(ValueError, match="dp=3 is outside its axis of size 3"):
        grid.rank_at({"dp": 3})


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")  # megatron-core's imports, not ours
@given(case=grids_with_axes())
def test_rows_are_megatrons(case):
    grid, axes = case
    if not axes:
        return
    peer = _megatron_grid(grid)
    assert [list(row) for row in grid.rows(axes)] == _megatron_rows(peer, axes)


def _megatron_grid(grid):
    from megatron.core.hyper_comm_grid import HyperCommGrid

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", str(grid.ranks.stop))
        return HyperCommGrid(list(grid.shape), list(grid.dim_names), rank_offset=grid.rank_offset)


def _megatron_rows(peer, axes):
    if hasattr(peer, "get_rank_enum"):
        return peer.get_rank_enum(axes)
    ordered, _ = peer._order_dims(axes)
    return peer._gen_rank_enum(ordered)
