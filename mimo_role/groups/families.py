"""The axis sets of a module along which process groups are created."""

from collections.abc import Iterator

from mimo_role.errors import AxisError, TopologyError
from mimo_role.groups.options import MEGATRON, GroupOptions
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY
from mimo_role.topology.dimension_names import axes_of_dimension
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

GTP_FAMILIES: tuple[tuple[str, ...], ...] = (
    ("gtp_remat",),
    ("dp", "gtp_remat"),
    ("dp", "cp", "gtp_remat"),
    ("tp", "gtp_remat", "pp"),
    ("tp", "gtp_remat", "dp"),
    ("tp", "gtp_remat", "dp", "cp"),
    ("tp", "cp", "gtp_remat", "dp", "pp"),
)
"""The same for weights that generalized tensor parallelism divides."""

EXPERT_FAMILIES: tuple[tuple[str, ...], ...] = (("ep",), ("expt_tp",), ("expt_dp",), ("expt_tp", "ep"), ("expt_tp", "ep", "pp"))
"""The same for expert layers."""

EXPERT_GTP_FAMILIES: tuple[tuple[str, ...], ...] = (
    ("expt_gtp_remat",),
    ("expt_dp", "expt_gtp_remat"),
    ("expt_tp", "ep", "expt_gtp_remat", "pp"),
)
"""The same for experts that it divides."""

FAMILIES = (*DENSE_FAMILIES, *GTP_FAMILIES, *EXPERT_FAMILIES, *EXPERT_GTP_FAMILIES)

EXPERT_AXES = ("expt_tp", "ep", "expt_dp", "pp")
"""The axes of a grid of experts, fastest first; `expt_gtp_remat` follows `ep` where its size is above one."""

EMBEDDING = "embd"
"""The family of a language module's first and last stages, which share the embedding's weights."""

SECOND_GROUPS: dict[str, tuple[str, ...]] = {"dp_cp_ag": ("dp", "cp"), "expt_dp_ag": ("expt_dp",)}
"""Second groups of the same ranks, by name: Megatron-FSDP gathers parameters over them beside the gradients' reduction."""

_IN_DENSE_AXES: dict[str, tuple[str, ...]] = {
    "ep": (),
    "expt_tp": (),
    "expt_gtp_remat": (),
    "expt_dp": ("tp", "cp", "gtp_remat", "dp"),
    "pp": ("pp",),
}
"""The dense axes of each expert axis in a module without experts: those left out here have size one."""

_GTP_AXES = ("gtp_remat", "expt_gtp_remat")
"""Axes that a dense grid, and one of experts, has only where their size is above one."""


def locate(topology: Topology, module: str, axes: tuple[str, ...]) -> tuple[RankGrid, tuple[str, ...]]:
    """The grid of the module that has these axes, its dense grid or that of its experts, and those of them that it has.

    A module without experts has their axes too: `ep` and `expt_tp` of size one, and `expt_dp` for the rest of a stage. So
    have modules without generalized tensor parallelism its axes. A second group is at the axes of the first.

    Raises:
        AxisError: the module has no grid with these axes.
    """
    for axis in axes:
        if not isinstance(axis, str):
            raise AxisError(f"axes are names, one argument each, not {axis!r}")
    if len(set(axes)) != len(axes):
        raise AxisError(f"duplicate axis: {', '.join(axes)}")
    grid, experts = topology.grids[module], topology.expert_grids.get(module)
    wanted = SECOND_GROUPS.get(axes[0], axes) if len(axes) == 1 else axes
    for view, gtp_axis in zip((grid, experts), _GTP_AXES, strict=True):
        if view is not None and set(wanted) <= {*view.dim_names, gtp_axis}:
            return view, tuple(axis for axis in wanted if axis in view.dim_names)
    if experts is None and set(wanted) <= set(_IN_DENSE_AXES):
        dense = [dense for axis in wanted for dense in _IN_DENSE_AXES[axis]]
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
        yield from (axes for axes in FAMILIES if set(axes) <= known)
        if set(grid.dim_names) not in map(set, FAMILIES):
            yield grid.dim_names
        if options.families == MEGATRON:
            yield from ((name,) for name, axes in SECOND_GROUPS.items() if set(axes) <= {*known, *_IN_DENSE_AXES})
        return
    for index, axes in enumerate(options.families):
        check_family(topology, module, axes, f"families[{index}]")
        yield axes


def has_embedding_groups(module: str, options: GroupOptions) -> bool:
    """Whether groups of the module's first and last stages are created."""
    return options.families == MEGATRON and module == MIMO_LANGUAGE_MODULE_KEY


def check_family(topology: Topology, module: str, axes: tuple[str, ...], key: str) -> None:
    """Check that a module has the axes that one of its groups' options names.

    Raises:
        TopologyError: it has not; the message begins with the option's key.
    """
    try:
        locate(topology, module, axes)
    except AxisError as error:
        parts = axes_of_dimension(axes[0]) if len(axes) == 1 else []
        hint = f"; write [{', '.join(parts)}]" if _are_axes(topology, module, parts) else ""
        raise TopologyError(f"modules.{module}.groups.{key}", f"={list(axes)}: {error}{hint}") from None


def _are_axes(topology: Topology, module: str, parts: list[str]) -> bool:
    """Whether one name is several axes of the module joined, as Megatron-Core writes them: `dp_cp`."""
    return len(parts) > 1 and set(parts) <= {*topology.grids[module].dim_names, *EXPERT_AXES, *_GTP_AXES}
