"""What megatron-core 0.19's checkpoints need where its optimizer is torch's Adam, without Transformer Engine and Apex."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.mimo import MimoOptimizer
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer


def without_empty_parts(optimizer: MimoOptimizer) -> MimoOptimizer:
    """The same without parts for parameters that a module does not have: of experts, or all if it is frozen.

    Megatron-Core gives each module the parts that any module of the world has, and asks each for its number of steps.
    """
    infos = {}
    for name, info in optimizer.module_infos.items():
        parts = info.optimizer.chained_optimizers if info.optimizer else []
        parts = [part for part in parts if _any_has(part.buffers, info.pg_collection.intra_dist_opt)]
        infos[name] = replace(info, optimizer=ChainedOptimizer(parts) if parts else None)
    return MimoOptimizer(infos, optimizer.config)


def prepare_loading(optimizer: MimoOptimizer) -> None:
    """Make one step that changes no parameter: Adam's states, into which a checkpoint is read, exist from the first step on.

    The number of steps is one of these states, but is kept elsewhere in checkpoints.
    """
    for part in _parts_of_torch(optimizer):
        part._set_main_param_and_optimizer_states = partial(_set_states, part._set_main_param_and_optimizer_states)
        adam = part.optimizer
        rates = [group["lr"] for group in adam.param_groups]
        for group in adam.param_groups:
            group["lr"] = 0.0
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        adam.step()
        adam.zero_grad()
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = rate


def separate_steps(optimizer: MimoOptimizer) -> None:
    """Give each parameter a count of its own: after loading all share one tensor, which each would increment."""
    for part in _parts_of_torch(optimizer):
        for state in part.optimizer.state.values():
            state["step"] = state["step"].clone()


def _set_states(set_states: Callable[..., None], parameter: torch.Tensor, states: dict[str, Any]) -> None:
    set_states(parameter, {"step": None, **states})


def _parts_of_torch(optimizer: MimoOptimizer) -> Iterator[DistributedOptimizer]:
    for info in optimizer.module_infos.values():
        for part in info.optimizer.chained_optimizers if info.optimizer else []:
            if isinstance(part.optimizer, torch.optim.Adam | torch.optim.AdamW):
                yield part


def _any_has(buffers: list[Any], group: dist.ProcessGroup) -> bool:
    """Whether one of the ranks of a group has trained parameters, which are in buffers."""
    found = torch.tensor(len(buffers), device="cuda")
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=group)
    return bool(found)
