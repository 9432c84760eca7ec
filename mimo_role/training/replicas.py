"""Which of the ranks that have replicas of a gradient counts it in a sum over the world. Pure arithmetic.

Gradients have been summed over the lanes of their module, so ranks with the same part of a parameter have equal gradients. Of
these ranks, the one with coordinate 0 along every axis of replicas is the first.
"""

from collections.abc import Collection
from dataclasses import dataclass

from mimo_role.errors import GradientError
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Attributes of a parameter, with Megatron-Core's names."""

    tensor_model_parallel: bool = False
    """Each tp rank has a different part."""
    is_expert: bool = False
    """Each ep rank has different experts: the attribute `allreduce` is false."""
    shared: bool = False
    """It is a second copy of a weight that another rank counts."""
    shared_embedding: bool = False
    """The module's first and last stages have a copy each."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """How a device mesh divides one tensor."""

    ranks: frozenset[int]
    """The mesh's."""
    is_first_replica: bool
    """This rank's coordinate is 0 along each dimension of the mesh that replicates the tensor."""


def is_counted(topology: Topology, module: str, rank: int, marks: Marks, placed: Placed | None = None) -> bool:
    """Whether a rank is the first of those that have the same part of a parameter of one of its modules.

    Args:
        topology: the world.
        module: one of the rank's modules.
        rank: any rank.
        marks: attributes of the parameter.
        placed: for a tensor that is divided over a device mesh, how.

    Raises:
        GradientError: the mesh's ranks are not a whole row of the module's grid or of its experts' grid.
    """
    grid, experts = topology.grids[module], topology.expert_grids.get(module)
    if marks.shared or (marks.shared_embedding and grid.coords(rank)["pp"] > 0):
        return False
    if marks.is_expert and experts is not None:
        views, distinct = [experts], {"pp", "ep"} | ({"expt_tp"} if marks.tensor_model_parallel else set())
    else:
        views, distinct = [grid], {"pp"} | ({"tp"} if marks.tensor_model_parallel else set())
        views += [experts] if experts is not None and placed is not None else []
    if placed is None:
        return _is_first(views[0], rank, distinct)
    for view in views:
        covered = axes_of_row(view, placed.ranks)
        if covered is not None:
            return placed.is_first_replica and _is_first(view, rank, distinct | covered)
    raise GradientError(
        f"the {len(placed.ranks)} ranks of its device mesh, {min(placed.ranks)} to {max(placed.ranks)}, are not all ranks of "
        f"{module!r} along some of its axes ({'; or '.join(', '.join(view.dim_names) for view in views)}); make the mesh with "
        f"ctx.mesh({module!r})"
    )


def axes_of_row(grid: RankGrid, ranks: Collection[int]) -> frozenset[str] | None:
    """The axes along which these ranks are one whole row of the grid; `None` if they are not."""
    if not all(rank in grid for rank in ranks):
        return None
    coords = [grid.coords(rank) for rank in ranks]
    axes = frozenset(axis for axis in grid.dim_names if len({at[axis] for at in coords}) > 1)
    return axes if grid.row_size(axes) == len(ranks) else None


def _is_first(grid: RankGrid, rank: int, distinct: Collection[str]) -> bool:
    return all(coordinate == 0 for axis, coordinate in grid.coords(rank).items() if axis not in distinct)
