"""The tensors of a rank's modules under names that no layout changes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mimo_role.errors import CheckpointError
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.topology import Topology

Modules = Mapping[str, nn.Module] | nn.ModuleDict
_OPTIONS = StateDictOptions(strict=False)  # names are compared by us; torch refuses modules without tensors otherwise
_WRAPPED = ("_orig_mod.", "_checkpoint_wrapped_module.")
"""What `torch.compile` and activation checkpointing add to names, and torch takes out of them in a state dict."""


def root_of(modules: Modules, topology: Topology, rank: int) -> nn.ModuleDict:
    """The modules of this rank in one container, which gives names such as `vision.blocks.0.weight`.

    Raises:
        CheckpointError: a module that this rank does not run, or parameters that cannot be saved or loaded.
    """
    if unknown := sorted(set(modules) - set(topology.modules_of(rank))):
        raise CheckpointError(f"{unknown[0]!r} is no module of this rank, which runs {', '.join(topology.modules_of(rank))}")
    root = nn.ModuleDict(dict(modules.items()))
    if any(isinstance(module, FullyShardedDataParallel) for module in root.modules()):
        raise CheckpointError("a module is wrapped in FullyShardedDataParallel; use fully_shard, whose parameters are DTensors")
    for name, parameter in root.named_parameters():
        _check(name, parameter, topology, name.partition(".")[0])
    return root


def _check(name: str, parameter: nn.Parameter, topology: Topology, module: str) -> None:
    if parameter.is_meta:
        raise CheckpointError(f"{name} is on the meta device; call to_empty() first")
    gtp_axis = "gtp_remat" if getattr(parameter, "allreduce", True) else "expt_gtp_remat"
    for mark, axis in (("tensor_model_parallel", "tp"), ("is_gtp_weight_remat", gtp_axis)):
        is_divided = any(axis in grid.dim_names and grid.axis_size(axis) > 1 for grid in _views_of(topology, module))
        if is_divided and getattr(parameter, mark, False) and not isinstance(parameter, DTensor):
            raise CheckpointError(
                f"{name} is marked {mark}, but is a plain tensor, of which a checkpoint takes one rank's part for "
                f"the whole; make it a DTensor on ctx.mesh(module)[{axis!r}]"
            )


def _views_of(topology: Topology, module: str) -> list[RankGrid]:
    """The module's grid, and its experts' if it has any."""
    experts = topology.expert_grids.get(module)
    return [topology.grids[module], *([experts] if experts is not None else [])]


def weights_of(root: nn.ModuleDict) -> dict[str, Any]:
    """Parameters and persistent buffers by name, not copied; and what modules return from `get_extra_state`."""
    return get_model_state_dict(root, options=_OPTIONS)


def set_weights(root: nn.ModuleDict, weights: dict[str, Any]) -> None:
    """Have the modules take loaded values; of tensors that were loaded in place this is no change."""
    set_model_state_dict(root, weights, options=_OPTIONS)


def names_of(root: nn.ModuleDict) -> dict[nn.Parameter, list[str]]:
    """Every parameter's names, as `weights_of` has them: several for one that is used in several places."""
    wrappers = [name for name, module in root.named_modules() if isinstance(module, DistributedDataParallel)]
    found: dict[nn.Parameter, list[str]] = {}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        for wrapper in sorted(wrappers, key=len, reverse=True):
            if name.startswith(f"{wrapper}.module."):
                name = f"{wrapper}.{name.removeprefix(f'{wrapper}.module.')}"  # noqa: PLW2901
        for added in _WRAPPED:
            name = name.replace(added, "")  # noqa: PLW2901
        found.setdefault(parameter, []).append(name)
    return found


def form_of(value: Any) -> tuple[tuple[int, ...], str] | None:
    """Global shape and type of a tensor; `None` of another value."""
    return (tuple(value.shape), str(value.dtype)) if isinstance(value, torch.Tensor) else None
