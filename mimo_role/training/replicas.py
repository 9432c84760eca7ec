"""Which ranks have replicas of a parameter, and which of them counts it in a sum over the world. Pure arithmetic.

Gradients have been summed over the lanes of their module, so ranks with the same part of a parameter have equal gradients. Of
these ranks, the one with coordinate 0 along every axis of replicas is the first.
"""

from collections.abc import Collection
from dataclasses import dataclass

from mimo_role.errors import GradientError
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.topology import Topology

LANES = ("dp", "gtp_remat", "cp")
"""The axes over which the gradients of dense parameters are summed."""

EXPERT_LANES = ("expt_dp", "expt_gtp_remat")
"""The same for experts."""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Attributes of a parameter, with Megatron-Core's names."""

    tensor_model_parallel: bool = False
    """Each tp rank has a different part."""
    is_expert: bool = False
    """Each ep rank has different experts: the attribute `allreduce` is false."""
    is_gtp_weight_remat: bool = False
    """Each rank along `gtp_remat`, or `expt_gtp_remat` of experts, has a different part."""
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
    replicas: tuple[frozenset[int], ...] = ()
    """For each of these dimensions, the ranks that differ from this one only along it."""


@dataclass(frozen=True)
class Replicas:
    """The axes along which ranks have replicas of one parameter."""

    axes: frozenset[str]
    """Including those over which a device mesh has reduced its gradient."""
    lanes: tuple[str, ...]
    """Those over which gradients are still to be summed."""
    is_expert: bool
    """Whether these are axes of the experts' grid."""


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
    if marks.shared or (marks.shared_embedding and topology.grids[module].coords(rank)["pp"] > 0):
        return False
    grid, distinct = _view(topology, module, marks, placed)
    return (placed is None or placed.is_first_replica) and _is_first(grid, rank, distinct)


def replicas_of(topology: Topology, module: str, marks: Marks, placed: Placed | None = None) -> Replicas:
    """The axes of replicas of a parameter, with the arguments of `is_counted`; `shared_embedding` is not considered.

    Raises:
        GradientError: the ranks of the mesh, or of one of its dimensions, are not a whole row of a grid.
    """
    grid, distinct = _view(topology, module, marks, placed)
    axes = frozenset(axis for axis in grid.dim_names if axis not in distinct and grid.axis_size(axis) > 1)
    is_expert = "expt_dp" in grid.dim_names
    lanes = tuple(axis for axis in (EXPERT_LANES if is_expert else LANES) if axis in axes)
    for row in placed.replicas if placed is not None else ():
        covered = axes_of_row(grid, row)
        if covered is None:
            raise GradientError(f"a dimension of its device mesh, ranks {sorted(row)}, is no row of {module!r}")
        axes |= covered
    return Replicas(axes, lanes, is_expert)


def axes_of_row(grid: RankGrid, ranks: Collection[int]) -> frozenset[str] | None:
    """The axes along which these ranks are one whole row of the grid; `None` if they are not."""
    if not all(rank in grid for rank in ranks):
        return None
    coords = [grid.coords(rank) for rank in ranks]
    axes = frozenset(axis for axis in grid.dim_names if len({at[axis] for at in coords}) > 1)
    return axes if grid.row_size(axes) == len(ranks) else None


def _view(topology: Topology, module: str, marks: Marks, placed: Placed | None) -> tuple[RankGrid, frozenset[str]]:
    """The grid in which a parameter has replicas, and the axes along which it has none or belongs to a mesh.

    Raises:
        GradientError: the mesh's ranks are not a whole row of the module's grid or of its experts' grid.
    """
    grid, experts = topology.grids[module], topology.expert_grids.get(module)
    if marks.is_expert and experts is not None:
        views, distinct = [experts], {"pp", "ep"}
        parts = {"expt_tp": marks.tensor_model_parallel, "expt_gtp_remat": marks.is_gtp_weight_remat}
    else:
        views, distinct = [grid], {"pp"}
        parts = {"tp": marks.tensor_model_parallel, "gtp_remat": marks.is_gtp_weight_remat}
        views += [experts] if experts is not None and placed is not None else []
    distinct |= {axis for axis, is_divided in parts.items() if is_divided}
    if placed is None:
        return views[0], frozenset(distinct)
    for view in views:
        covered = axes_of_row(view, placed.ranks)
        if covered is not None:
            return view, frozenset(distinct | covered)
    raise GradientError(
        f"the {len(placed.ranks)} ranks of its device mesh, {min(placed.ranks)} to {max(placed.ranks)}, are not all ranks of "
        f"{module!r} along some of its axes ({'; or '.join(', '.join(view.dim_names) for view in views)}); make the mesh with "
        f"ctx.mesh({module!r})"
    )


def _is_first(grid: RankGrid, rank: int, distinct: Collection[str]) -> bool:
    return all(coordinate == 0 for axis, coordinate in grid.coords(rank).items() if axis not in distinct)
