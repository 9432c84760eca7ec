"""Device meshes of real numbers in a process whose other tensors are fake or counted.

A mesh computes coordinates and groups from a tensor with the number of each of its ranks. These are known, on the CPU, and
no part of a model's memory. As fake tensors they took half of the time of a rehearsal at 1,024 ranks: FSDP2 makes a mesh
for each parameter that is already sharded by tensor parallelism.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_map_only

ValueOf = Callable[[torch.Tensor], torch.Tensor | None]
"""The real tensor beside a fake one, if it is known."""

_WITH_TENSORS = (
    "__init__",
    "mesh",
    "_compute_coordinates_from_mesh",
    "_concatenate",
    "_create_flatten_mesh",
    "_create_sub_mesh",
    "_create_unflatten_mesh",
    "_get_all_submeshes",
    "_get_mesh_tensor_from_full_mesh",
    "from_group",
)
"""The methods of a mesh that compute with its tensor; releases of torch have different ones."""


@contextmanager
def real_meshes(value_of: ValueOf) -> Iterator[None]:
    """Within a block, meshes compute without the modes that are active."""
    originals = {name: vars(DeviceMesh)[name] for name in _WITH_TENSORS if name in vars(DeviceMesh)}
    for name, original in originals.items():
        setattr(DeviceMesh, name, _member_without_modes(original, value_of))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(DeviceMesh, name, original)


def _member_without_modes(member: Any, value_of: ValueOf) -> Any:
    """A method, static method or property that runs without modes."""
    if isinstance(member, staticmethod):
        return staticmethod(_without_modes(member.__func__, value_of))
    if isinstance(member, property):
        assert member.fget is not None
        return property(_without_modes(member.fget, value_of))
    return _without_modes(member, value_of)


def _without_modes(function: Callable[..., Any], value_of: ValueOf) -> Callable[..., Any]:
    def real(tensor: torch.Tensor) -> torch.Tensor:
        known = value_of(tensor)
        return tensor if known is None else known

    @wraps(function)
    def run(*arguments: Any, **settings: Any) -> Any:
        arguments, settings = tree_map_only(torch.Tensor, real, (arguments, settings))
        with no_dispatch():
            return function(*arguments, **settings)

    return run
