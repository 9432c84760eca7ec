"""The plain part of DTensors and other tensor subclasses, for transfer over a bridge."""

from collections.abc import Callable
from typing import Any

import torch

from mimo_role.errors import BridgeError
from mimo_role.resharding.endpoint import Endpoint
from mimo_role.topology.dimension_names import axes_of_dimension
from mimo_role.topology.lanes import LANE_AXES

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def plain(tensor: torch.Tensor, shape: tuple[int, ...] | None, end: Endpoint, describe: Callable[[], str]) -> torch.Tensor:
    """The local part of a DTensor that is placed as `end` divides tokens; the data of other subclasses; in the same graph.

    Args:
        tensor: any tensor.
        shape: of the part that this rank sends, if it does.
        end: the stage that sends it, and how its ranks divide tokens.
        describe: returns what the tensor is, for messages.

    Raises:
        BridgeError: a DTensor that is placed otherwise, or a subclass that keeps its data in other tensors.
    """
    if type(tensor) in _PLAIN:
        return tensor
    where = describe()
    if not isinstance(tensor, torch.Tensor):
        raise BridgeError(f"{where}, not a {type(tensor).__name__}; pass one tensor")
    if hasattr(tensor, "device_mesh") and hasattr(tensor, "placements"):
        return _local_part(tensor, shape, end, describe)
    if hasattr(tensor, "trigger_wait"):  # the result of a functional collective that may still be running
        return plain(tensor.trigger_wait(), shape, end, describe)
    if hasattr(tensor, "__tensor_flatten__"):
        raise BridgeError(f"{where}, but a {type(tensor).__name__} keeps its data in other tensors; convert it to a plain one")
    return tensor.as_subclass(torch.Tensor)


def _local_part(tensor: Any, shape: tuple[int, ...] | None, end: Endpoint, describe: Callable[[], str]) -> torch.Tensor:
    where = describe()
    names = tensor.device_mesh.mesh_dim_names or (None,) * len(tensor.placements)
    divides = dict.fromkeys(LANE_AXES, end.lanes > 1)
    divides |= {"cp": end.cp > 1, "tp": end.tp > 1 and end.split.sequence_parallel}
    for name, placement in zip(names, tensor.placements, strict=True):
        if placement.is_partial():
            problem = "is a partial sum: redistribute it to Replicate() or Shard() first"
        elif placement.is_shard() and not any(divides.get(axis, False) for axis in axes_of_dimension(name or "")):
            problem = (
                f"is sharded over the mesh dimension {name!r}, over which {end.module}'s ranks hold equal copies of their "
                "tokens; redistribute it to Replicate(), or pass a TokenSplit that says how they divide them"
            )
        else:
            continue
        raise BridgeError(f"{where}, but the DTensor with placements {list(tensor.placements)} {problem}")
    local: torch.Tensor = tensor.to_local()
    if shape is not None and tuple(local.shape) != shape:
        raise BridgeError(
            f"{where} of shape {list(shape)} on this rank, but the DTensor with placements {list(tensor.placements)} has a "
            f"local part of {list(local.shape)}"
        )
    return plain(local, shape, end, describe)
