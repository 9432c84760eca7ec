"""The axis sets of a module along which process groups are created."""

from collections.abc import Iterator

from mimo_role.errors import AxisError, TopologyError
from mimo_role.groups.options import MEGATRON, GroupOptions
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.topology import Topology

DENSE_FAMILIES: tuple[tuple[str, ...], ...] = (
    ("tp",),
    ("cp",),
    ("dp",),
    ("pp",),
    ("dp", "cp"),
    ("tp", "cp"),
    ("tp", "pp"),
    ("tp", "dp"),
    ("tp", "dp", "cp"),
    ("tp", "cp", "dp", "pp"),
)
"""The axis sets of a transformer's dense layers, gradients and optimizer, in the order of Megatron-Core."""

EXPERT_FAMILIES: tuple[tuple[str, ...], ...] = (("ep",), ("expt_tp",), ("expt_dp",), ("expt_tp", "ep"), ("expt_tp", "ep", "pp"))
"""The same for expert layers."""

EXPERT_AXES = ("expt_tp", "ep", "expt_dp", "pp")
"""The axes of a grid of experts, fastest first."""

EMBEDDING = "embd"
"""The family of a language module's first and last stages, which share the embedding's weights."""

_IN_DENSE_AXES = {"ep": (), "expt_tp": (), "expt_dp": ("tp", "cp", "dp"), "pp": ("pp",)}
"""The dense axes of each expert axis in a module without experts: `ep` and `expt_tp` have size one."""


def locate(topology: Topology, module: str, axes: tuple[str, ...]) -> tuple[RankGrid, tuple[str, ...]]:
    """The grid of the module that has these axes: its dense grid, or that of its experts.

    A module without experts has their axes too: `ep` and `expt_tp` of size one, and `expt_dp` for the rest of a stage.

    Raises:
        AxisError: the module has no grid with these axes.
    """
    for axis in axes:
        if not isinstance(axis, str):
            raise AxisError(f"axes are names, one argument each, not {axis!r}")
    if len(set(axes)) != len(axes):
        raise AxisError(f"duplicate axis: {', '.join(axes)}")
    grid, experts = topology.grids[module], topology.expert_grids.get(module)
    if set(axes) <= set(grid.dim_names):
        return grid, axes
    if experts is not None and set(axes) <= set(experts.dim_names):
        return experts, axes
    if experts is None and set(axes) <= set(_IN_DENSE_AXES):
        dense = [dense for axis in axes for dense in _IN_DENSE_AXES[axis]]
        return grid, tuple(axis for axis in dense if axis in grid.dim_names)
    known = [", ".join(names) for names in (grid.dim_names, EXPERT_AXES if experts is None else experts.dim_names)]
    raise AxisError(f"module {module!r} has no grid with the axes {', '.join(axes) or '(none)'}; it has {'; or '.join(known)}")


def expert_grid_of(topology: Topology, module: str) -> RankGrid | None:
    """The grid of a module's experts; for a module without any, the one in which `ep` and `expt_tp` have size one.

    `None` for a module without experts whose stages are not runs of neighbouring ranks.
    """
    grid = topology.grids[module]
    if module in topology.expert_grids or grid.dim_names[-1] != "pp":
        return topology.expert_grids.get(module)
    stages = grid.axis_size("pp")
    return RankGrid([1, 1, grid.size // stages, stages], EXPERT_AXES, grid.rank_offset)


def families_of(topology: Topology, module: str, options: GroupOptions) -> Iterator[tuple[str, ...]]:
    """The axis sets of one module for which groups are created, single axes first; several may have equal rows.

    Raises:
        TopologyError: the options name an axis that the module does not have.
    """
    grid, experts = topology.grids[module], topology.expert_grids.get(module)
    for view in (grid, experts):
        if view is not None:
            yield from ((axis,) for axis in view.dim_names)
    if isinstance(options.families, str):
        known = {*grid.dim_names, *(experts.dim_names if experts is not None else ())}
        yield from (axes for axes in (*DENSE_FAMILIES, *EXPERT_FAMILIES) if set(axes) <= known)
        if set(grid.dim_names) not in map(set, DENSE_FAMILIES):
            yield grid.dim_names
        return
    for index, axes in enumerate(options.families):
        try:
            locate(topology, module, axes)
        except AxisError as error:
            raise TopologyError(f"modules.{module}.groups.families[{index}]", f"={list(axes)}: {error}") from None
        yield axes


def has_embedding_groups(module: str, options: GroupOptions) -> bool:
    """Whether groups of the module's first and last stages are created."""
    return options.families == MEGATRON and module == MIMO_LANGUAGE_MODULE_KEY
