"""Megatron-Core's objects over a context's groups. No group is created here.

The only private name of Megatron-Core that is used is `HyperCommGrid._pgs`, the groups of a grid: there is no public way to
set groups that exist already. `tests/mimo_role/megatron/test_megatron.py` fails when that changes.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

import torch.distributed as dist

from mimo_role.errors import AxisError, ContextError
from mimo_role.groups.families import FAMILIES, SECOND_GROUPS, expert_grid_of, families_of
from mimo_role.groups.options import GroupOptions
from mimo_role.megatron.hyper_comm_grid import EXPERT_VIEW, shared_axes
from mimo_role.megatron.imports import imported
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.topology import Topology

FindGroup = Callable[..., dist.ProcessGroup]
"""`RoleContext.group`: this rank's group of a module along some axes."""

FIELDS: Mapping[str, tuple[str, ...]] = {
    "tp": ("tp",),
    "cp": ("cp",),
    "pp": ("pp",),
    "dp": ("dp",),
    "gtp_remat": ("gtp_remat",),
    "dp_cp": ("dp", "cp"),
    "intra_dp_cp": ("dp", "cp"),
    "dp_cp_ag": ("dp_cp_ag",),
    "dp_gtp_remat": ("dp", "gtp_remat"),
    "dp_cp_gtp_remat": ("dp", "cp", "gtp_remat"),
    "tp_cp": ("tp", "cp"),
    "tp_dp": ("tp", "gtp_remat", "dp"),
    "tp_dp_cp": ("tp", "gtp_remat", "dp", "cp"),
    "mp": ("tp", "gtp_remat", "pp"),
    "intra_dist_opt": ("tp", "cp", "gtp_remat", "dp", "pp"),
    "ep": ("ep",),
    "expt_tp": ("expt_tp",),
    "expt_gtp_remat": ("expt_gtp_remat",),
    "expt_dp": ("expt_dp",),
    "intra_expt_dp": ("expt_dp",),
    "expt_dp_ag": ("expt_dp_ag",),
    "expt_dp_gtp_remat": ("expt_dp", "expt_gtp_remat"),
    "tp_ep": ("expt_tp", "ep"),
    "tp_ep_pp": ("expt_tp", "ep", "pp"),
    "tp_ep_pp_with_egtp_remat": ("expt_tp", "ep", "expt_gtp_remat", "pp"),
}
"""The fields of `ProcessGroupCollection` and the axes of each, for one instance of the distributed optimizer.

Source: Megatron-Core 0.19.2, process_groups_config.py and parallel_state.py (`initialize_model_parallel`), and Megatron-LM,
examples/mimo/training/topology.py (2026).
"""

UNDECLARED = ("tp_dp",)
"""Fields that Megatron-Core's code reads and its collection does not declare."""


def grid_map(topology: Topology, options: Mapping[str, GroupOptions], rank: int, find: FindGroup) -> dict[str, Any]:
    """Megatron-Core's `HyperCommGrid` of every module, with this rank's groups of all of the module's families.

    Grids of versions that have views get the experts' as `expert`; grids of older versions have no experts.

    Raises:
        ContextError: Megatron-Core is not installed.
    """
    hyper_comm_grid = imported("megatron.core.hyper_comm_grid")
    found = {}
    for module, grid in topology.grids.items():
        theirs = hyper_comm_grid.HyperCommGrid(list(grid.shape), list(grid.dim_names), grid.rank_offset)
        families = set(families_of(topology, module, options.get(module, GroupOptions()))) - {(name,) for name in SECOND_GROUPS}
        experts = expert_grid_of(topology, module) if hasattr(theirs, "register_view") else None
        if experts is not None:
            shared = shared_axes(grid, experts)
            theirs.register_view(EXPERT_VIEW, list(experts.shape), list(experts.dim_names), shared_dims=shared)
            families |= {axes for axes in FAMILIES if set(axes) <= set(experts.dim_names)}
        known = {*grid.dim_names, *(experts.dim_names if experts is not None else ())}
        for axes in families:
            own = tuple(axis for axis in axes if axis in known or not axis.endswith("gtp_remat"))
            with suppress(AxisError):  # a family of experts that the options do not include
                if own:
                    theirs._pgs[_key(grid, experts, own)] = find(module, *axes) if rank in grid else None
        found[module] = theirs
    return found


def _key(grid: RankGrid, experts: RankGrid | None, axes: tuple[str, ...]) -> str | tuple[str, tuple[str, ...]]:
    """Megatron-Core's key of a group: of the grid's own, its axes joined; of experts, behind the view's name.

    Raises:
        AxisError: these versions' grids have no such axes.
    """
    if set(axes) <= set(grid.dim_names):
        return "-".join(_slowest_first(grid, axes))
    if experts is None:
        raise AxisError(f"no view of experts with the axes {', '.join(axes)}")
    return EXPERT_VIEW, tuple(_slowest_first(experts, axes))


def process_groups(
    topology: Topology, module: str, rank: int, find: FindGroup, find_ends: Callable[[str], dist.ProcessGroup]
) -> Any:
    """Megatron-Core's `ProcessGroupCollection` of one module on this rank, with the fields that the installed version has.

    `embd` and `pos_embd` are the language module's, on its first and last stages and its first stage; `None` elsewhere.
    `dp_cp_ag` and `expt_dp_ag` are `None` where the module's options do not include these second groups.

    Raises:
        ContextError: Megatron-Core is not installed.
        AxisError: the module's options do not include a group that a field needs.
    """
    collection = imported("megatron.core.process_groups_config").ProcessGroupCollection
    known = {field.name for field in fields(collection)} | set(UNDECLARED)
    made = collection()
    try:
        for name in FIELDS.keys() & known:
            setattr(made, name, _group_of_field(module, name, find))
    except AxisError as error:
        hint = f"Megatron-Core's collection needs it; modules.{module}.groups.families: megatron has all that it needs"
        raise AxisError(f"{str(error).partition(';')[0]}; {hint}") from None
    made.embd = made.pos_embd = None
    if module == MIMO_LANGUAGE_MODULE_KEY:
        stage = topology.role_of(rank)
        if stage.is_first_stage(module) or stage.is_last_stage(module):
            made.embd = find_ends(module)
        if stage.is_first_stage(module):
            made.pos_embd = find(module)
    return made


def multi_module_process_groups(role_modules: Iterable[str], collection_of: Callable[[str], Any]) -> Any:
    """Megatron-Core's `MultiModuleProcessGroupCollection`: the collections of this rank's modules, for its schedules.

    Args:
        role_modules: the rank's modules.
        collection_of: a module's `ProcessGroupCollection`.

    Raises:
        ContextError: the installed Megatron-Core has no such class, or none is installed.
        AxisError: as for `process_groups`.
    """
    config = imported("megatron.core.process_groups_config")
    if not hasattr(config, "MultiModuleProcessGroupCollection"):
        raise ContextError(
            "the installed Megatron-Core has no MultiModuleProcessGroupCollection; 0.19 has it, for Python 3.12 and later"
        )
    modules = {name: collection_of(name) for name in role_modules}
    language = MIMO_LANGUAGE_MODULE_KEY if MIMO_LANGUAGE_MODULE_KEY in modules else None
    return config.MultiModuleProcessGroupCollection(module_pgs=modules, language_model_module_name=language)


def _group_of_field(module: str, name: str, find: FindGroup) -> dist.ProcessGroup | None:
    """The group of a field; `None` for a second group that the module's options do not include.

    Raises:
        AxisError: they do not include a first one.
    """
    try:
        return find(module, *FIELDS[name])
    except AxisError:
        if name not in SECOND_GROUPS:
            raise
        return None


def _slowest_first(grid: RankGrid, axes: tuple[str, ...]) -> list[str]:
    return [axis for axis in reversed(grid.dim_names) if axis in axes]
