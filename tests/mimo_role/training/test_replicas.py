import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_role import GradientError, Topology
from mimo_role.topology.grid import RankGrid
from mimo_role.training.replicas import Marks, Placed, axes_of_row, is_counted, replicas_of
from tests.mimo_role.worlds import topologies

LANGUAGE = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "dp": 2, "pp": 2}})
EXPERTS = Topology.from_modules({"vision": {}, "language": {"tp": 2, "dp": 4, "ep": 2}})


def counting(topology, marks=None, placed_at=lambda _: None):
    """The ranks of the language module that count a parameter which all of them hold."""
    return [
        rank
        for rank in topology.grids["language"].ranks
        if is_counted(topology, "language", rank, marks or Marks(), placed_at(rank))
    ]


def test_a_plain_parameter_is_counted_once_on_each_stage():
    assert counting(LANGUAGE) == [2, 6]


def test_a_tensor_parallel_part_is_counted_on_each_tp_rank():
    assert counting(LANGUAGE, Marks(tensor_model_parallel=True)) == [2, 3, 6, 7]


def test_a_tied_embedding_is_counted_on_the_first_stage():
    assert counting(LANGUAGE, Marks(shared_embedding=True)) == [2]
    assert counting(LANGUAGE, Marks(shared=True)) == []


def test_experts_are_counted_on_each_expert_parallel_rank():
    assert counting(EXPERTS, Marks(is_expert=True)) == [1, 2]
    assert counting(EXPERTS, Marks(is_expert=True, tensor_model_parallel=True)) == [1, 2]
    assert counting(EXPERTS) == [1]


def test_a_mesh_along_dp_leaves_replicas_along_tp():
    def along_dp(rank):
        return Placed(ranks=frozenset(LANGUAGE.grids["language"].row_of(rank, ["dp"])), is_first_replica=True)

    assert counting(LANGUAGE, placed_at=along_dp) == [2, 4, 6, 8]


@pytest.mark.parametrize(
    "ranks", [pytest.param({2, 4, 6}, id="a part of two axes"), pytest.param({1, 2}, id="ranks of another module")]
)
def test_a_mesh_that_is_not_a_row_of_the_grid_is_refused(ranks):
    message = (
        r"the \d ranks of its device mesh, \d to \d, are not all ranks of 'language' along some of its axes \(tp, cp, dp, pp\)"
    )
    with pytest.raises(GradientError, match=message):
        is_counted(LANGUAGE, "language", 2, Marks(), Placed(ranks=frozenset(ranks), is_first_replica=True))


@given(st.data())
def test_axes_of_row_is_the_inverse_of_row_of(data):
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    grid = RankGrid(shape, ["tp", "cp", "dp", "pp"][: len(shape)], data.draw(st.integers(0, 3)))
    axes = data.draw(st.sets(st.sampled_from(grid.dim_names)))
    row = grid.row_of(data.draw(st.sampled_from(grid.ranks)), axes)

    assert axes_of_row(grid, row) == {axis for axis in axes if grid.axis_size(axis) > 1}
    if len(row) > 2:
        assert axes_of_row(grid, row[1:]) != axes


@given(st.data())
def test_every_part_of_a_parameter_is_counted_exactly_once(data):
    """A mesh along any axes of either grid, each of which shards or replicates, under any marks."""
    topology = data.draw(topologies(experts=True))
    module = data.draw(st.sampled_from(list(topology.grids)))
    is_expert = module in topology.expert_grids and data.draw(st.booleans())
    grid = topology.expert_grids[module] if is_expert else topology.grids[module]
    is_divided = {mark: data.draw(st.booleans()) for mark in ("tensor_model_parallel", "is_gtp_weight_remat")}
    marks = Marks(is_expert=is_expert, **is_divided)
    axes = data.draw(st.sets(st.sampled_from([axis for axis in grid.dim_names if axis != "pp"])))
    sharded = {axis for axis in axes if data.draw(st.booleans())}
    distinct = {"pp", "ep"} | ({"tp", "expt_tp"} if marks.tensor_model_parallel else set())
    distinct |= {"gtp_remat", "expt_gtp_remat"} if marks.is_gtp_weight_remat else set()
    lanes = {"expt_dp", "expt_gtp_remat"} if is_expert else {"dp", "gtp_remat", "cp"}
    replicas = (set(grid.dim_names) - distinct - axes) | (axes - sharded)

    counted = []
    for rank in grid.ranks:
        coords = grid.coords(rank)
        first = all(coords[axis] == 0 for axis in axes - sharded)
        rows = tuple(frozenset(grid.row_of(rank, [axis])) for axis in axes - sharded)
        ranks = frozenset(grid.row_of(rank, axes))
        placed = Placed(ranks=ranks, is_first_replica=first, replicas=rows) if axes else None
        found = replicas_of(topology, module, marks, placed)
        assert found.axes == {axis for axis in replicas if grid.axis_size(axis) > 1}
        assert set(found.lanes) == (found.axes - axes) & lanes
        if is_counted(topology, module, rank, marks, placed):
            counted.append(tuple(coords[axis] for axis in grid.dim_names if axis not in replicas))

    parts = itertools.product(*(range(grid.axis_size(axis)) for axis in grid.dim_names if axis not in replicas))
    assert sorted(counted) == sorted(parts)
    assert len(counted) == grid.size // math.prod(grid.axis_size(axis) for axis in replicas)
