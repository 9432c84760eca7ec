"""Sums instead of means in FSDP2."""

from torch import nn


def set_gradient_sum(module: nn.Module) -> None:
    """Make each FSDP2 module in a module, and the module itself, add up gradients over its ranks; the default is their mean.

    For a loss that is divided by the count of the whole batch. Call it after `fully_shard`, on all ranks of the mesh. It sets
    `set_gradient_divide_factor(1.0)` and, since gloo cannot scale while it reduces, `set_force_sum_reduction_for_comms(True)`.
    A module without FSDP2 stays as it is.
    """
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
