"""Megatron-Core's objects over a context's groups. No group is created here.

The only private name of Megatron-Core that is used is `HyperCommGrid._pgs`, the groups of a grid: there is no public way to
set groups that exist already. `tests/mimo_role/megatron/test_megatron.py` fails when that changes.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

import torch.distributed as dist

from mimo_role.errors import AxisError
from mimo_role.groups.families import EXPERT_FAMILIES, expert_grid_of, families_of
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
    "dp_cp": ("dp", "cp"),
    "intra_dp_cp": ("dp", "cp"),
    "tp_cp": ("tp", "cp"),
    "tp_dp": ("tp", "dp"),
    "tp_dp_cp": ("tp", "dp", "cp"),
    "mp": ("tp", "pp"),
    "intra_dist_opt": ("tp", "cp", "dp", "pp"),
    "ep": ("ep",),
    "expt_tp": ("expt_tp",),
    "expt_dp": ("expt_dp",),
    "intra_expt_dp": ("expt_dp",),
    "tp_ep": ("expt_tp", "ep"),
    "tp_ep_pp": ("expt_tp", "ep", "pp"),
}
"""The fields of `ProcessGroupCollection` and the axes of each, for one instance of the distributed optimizer.

Source: Megatron-LM, examples/mimo/training/topology.py and megatron/core/models/mimo/optimizer.py (2026).
"""


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
        families = list(families_of(topology, module, options.get(module, GroupOptions())))
        experts = expert_grid_of(topology, module) if hasattr(theirs, "register_view") else None
        if experts is not None:
            shared = shared_axes(grid, experts)
            theirs.register_view(EXPERT_VIEW, list(experts.shape), list(experts.dim_names), shared_dims=shared)
            families += EXPERT_FAMILIES
        for axes in families:
            key: Any = None
            if set(axes) <= set(grid.dim_names):
                key = "-".join(_slowest_first(grid, axes))
            elif experts is not None:
                key = (EXPERT_VIEW, tuple(_slowest_first(experts, axes)))
            if key is not None:
                with suppress(AxisError):  # an expert family that the options do not include
                    theirs._pgs[key] = find(module, *axes) if rank in grid else None
        found[module] = theirs
    return found


def process_groups(
    topology: Topology, module: str, rank: int, find: FindGroup, find_ends: Callable[[str], dist.ProcessGroup]
) -> Any:
    """Megatron-Core's `ProcessGroupCollection` of one module on this rank, with the fields that the installed version has.

    `embd` and `pos_embd` are the language module's, on its first and last stages and its first stage; `None` elsewhere.

    Raises:
        ContextError: Megatron-Core is not installed.
        AxisError: the module's options do not include a group that a field needs.
    """
    collection = imported("megatron.core.process_groups_config").ProcessGroupCollection
    known = {field.name for field in fields(collection)}
    try:
        made = collection(**{name: find(module, *axes) for name, axes in FIELDS.items() if name in known})
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


def multi_module_process_groups(collections: Mapping[str, Any]) -> Any:
    """Megatron-Core's `MultiModuleProcessGroupCollection` of one rank's modules."""
    made = imported("megatron.core.process_groups_config").MultiModuleProcessGroupCollection
    language = MIMO_LANGUAGE_MODULE_KEY if MIMO_LANGUAGE_MODULE_KEY in collections else None
    return made(dict(collections), language_model_module_name=language)


def _slowest_first(grid: RankGrid, axes: tuple[str, ...]) -> list[str]:
    return [axis for axis in reversed(grid.dim_names) if axis in axes]
