"""The parameters of this rank's modules: each once, with its marks and its place on a device mesh."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from mimo_role.errors import GradientError
from mimo_role.topology.topology import Topology
from mimo_role.training.replicas import Marks, Placed

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement

Modules: TypeAlias = Mapping[str, nn.Module] | nn.ModuleDict
"""The modules of this rank's role, or its parts of them, by name."""

Place: TypeAlias = "tuple[DeviceMesh, tuple[Placement, ...]]"
"""How a DTensor is divided."""


def each_parameter(modules: Modules) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Module, full name and parameter; each parameter once in a module."""
    for module, held in modules.items():
        for name, parameter in held.named_parameters(prefix=module):
            yield module, name, parameter


def each_owned_parameter(topology: Topology, modules: Modules) -> Iterator[tuple[str, str, nn.Parameter]]:
    """The same, each parameter once: with the first of the modules that have it.

    Raises:
        GradientError: two modules have it whose grids differ.
    """
    owners: dict[int, str] = {}
    for module, name, parameter in each_parameter(modules):
        owner = owners.setdefault(id(parameter), module)
        if owner == module:
            yield module, name, parameter
        elif topology.grids[owner] != topology.grids[module]:
            raise GradientError(f"{name} is a parameter of {owner!r} too, which has another grid; remove it from one of them")


def place_gradients(modules: Modules) -> None:
    """Give gradients that are DTensors the placements of their parameters. Collective over their meshes.

    Those of replicated parameters in sequence-parallel regions are partial, those of embeddings over a vocabulary that is
    divided are whole on each rank.
    """
    for _, _, parameter in each_parameter(modules):
        gradient = parameter.grad
        if _is_dtensor(gradient) and _is_dtensor(parameter) and gradient.placements != parameter.placements:
            parameter.grad = gradient.redistribute(placements=parameter.placements)


def check_dense(name: str, gradient: torch.Tensor) -> None:
    """
    Raises:
        GradientError: the gradient is sparse.
    """
    if gradient.layout != torch.strided:
        raise GradientError(f"{name}: its gradient is {gradient.layout}; use a dense one (nn.Embedding: sparse=False)")


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor: of a DTensor the local one, without a copy. Call it without gradients."""
    return tensor.to_local() if _is_dtensor(tensor) else tensor


def place_of(tensor: torch.Tensor) -> "Place | None":
    """How a tensor is divided; `None` if it is not a DTensor."""
    return (tensor.device_mesh, tensor.placements) if _is_dtensor(tensor) else None


def _is_dtensor(tensor: torch.Tensor | None) -> "TypeGuard[DTensor]":
    """DTensor is imported only where there may be one: that takes a third of the time of the import of torch."""
    if tensor is None or type(tensor) in (torch.Tensor, nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def marks_of(parameter: nn.Parameter) -> Marks:
    """The attributes that Megatron-Core sets on parameters."""
    return Marks(
        tensor_model_parallel=bool(getattr(parameter, "tensor_model_parallel", False)),
        is_expert=not getattr(parameter, "allreduce", True),
        is_gtp_weight_remat=bool(getattr(parameter, "is_gtp_weight_remat", False)),
        shared=bool(getattr(parameter, "shared", False)),
        shared_embedding=bool(getattr(parameter, "shared_embedding", False)),
    )


def placed(place: "Place | None") -> Placed | None:
    """The ranks of a place."""
    if place is None:
        return None
    mesh, placements = place
    ranks, at = mesh.mesh, mesh.get_coordinate() or [-1] * mesh.ndim
    replicating = [dimension for dimension, placement in enumerate(placements) if placement.is_replicate()]
    rows = [ranks[(*at[:dimension], slice(None), *at[dimension + 1 :])] for dimension in replicating]
    return Placed(
        ranks=frozenset(ranks.flatten().tolist()),
        is_first_replica=all(at[dimension] == 0 for dimension in replicating),
        replicas=tuple(frozenset(row.tolist()) for row in rows),
    )
