"""Gradient clipping by the norm over all modules of a world."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement

from mimo_role.errors import GradientError, MimoError
from mimo_role.topology.topology import Topology
from mimo_role.training.replicas import Marks, Placed, is_counted

logger = logging.getLogger(__name__)

_MARGIN = 1e-6
"""Added to the norm before `max_norm` is divided by it, as in `torch.nn.utils.clip_grad_norm_`."""

_Place = tuple[DeviceMesh, tuple[Placement, ...]]
"""How a DTensor is divided."""


@dataclass(frozen=True)
class _Gradient:
    """This rank's part of one parameter's gradient."""

    name: str
    parameter: nn.Parameter
    local: torch.Tensor
    is_counted: bool
    """Whether this rank is the first of those that have the same part."""


class GradientClipper:
    """Clips the gradients of all modules by their norm over the world."""

    def __init__(self, topology: Topology, rank: int, device: torch.device, check_module: Callable[[str], object]) -> None:
        """
        Args:
            topology: the world.
            rank: this process's.
            device: for the tensors of collectives.
            check_module: raises a `MimoError` for the name of a module that this rank does not run.
        """
        self._topology = topology
        self._rank = rank
        self._device = device
        self._check_module = check_module
        # A mesh of thousands of ranks is searched once, not for every parameter at every step.
        self._counted: dict[tuple[str, Marks, _Place | None], bool] = {}

    @torch.no_grad()
    def clip(
        self,
        modules: Mapping[str, nn.Module] | nn.ModuleDict,
        max_norm: float,
        norm_type: float,
        *,
        error_if_nonfinite: bool,
    ) -> torch.Tensor:
        """`RoleContext.clip_grad_norm_`, which documents the arguments. Collective over the world."""
        gradients: list[_Gradient] = []
        own_error: MimoError | None = None
        _reduce_partial_gradients(modules)
        try:
            _check_numbers(max_norm, norm_type)
            gradients = self._collect(modules)
        except MimoError as error:
            own_error = error  # raised after the all-reduce, in which the other ranks wait for this one
        norms = self._norms(gradients, norm_type)
        counted = norms[: 1 + sum(gradient.is_counted for gradient in gradients)]
        norm = _over_the_world(counted, norms.isfinite().all(), norm_type, own_error)
        if not math.isfinite(norm):
            self._report_nonfinite(gradients, norms, error=error_if_nonfinite)
            for gradient in gradients:
                gradient.parameter.grad = None
        elif gradients and (coefficient := max_norm / (norm + _MARGIN)) < 1:
            torch._foreach_mul_([gradient.local for gradient in gradients], coefficient)
        return torch.tensor(norm, dtype=torch.float64, device=self._device)

    def _collect(self, modules: Mapping[str, nn.Module] | nn.ModuleDict) -> list[_Gradient]:
        """This rank's gradients, each parameter once; first those that this rank counts.

        Raises:
            MimoError: a module or a gradient that cannot be part of the norm.
        """
        owners: dict[int, str] = {}
        found = []
        for module in modules:
            self._check_module(module)
        for module, name, parameter in _parameters(modules):
            owner = owners.setdefault(id(parameter), module)
            if owner != module and self._topology.grids[owner] != self._topology.grids[module]:
                raise GradientError(
                    f"{name} is a parameter of {owner!r} too, which has another grid; remove it from one of them"
                )
            if owner == module and parameter.grad is not None:
                found.append(self._gradient(module, name, parameter))
        return sorted(found, key=lambda gradient: not gradient.is_counted)

    def _gradient(self, module: str, name: str, parameter: nn.Parameter) -> _Gradient:
        gradient = parameter.grad
        assert gradient is not None
        if gradient.layout != torch.strided:
            raise GradientError(f"{name}: its gradient is {gradient.layout}; use a dense one (nn.Embedding: sparse=False)")
        place: _Place | None = None
        if isinstance(gradient, DTensor):
            place, gradient = (gradient.device_mesh, gradient.placements), gradient.to_local()
        key = (module, _marks_of(parameter), place)
        if key not in self._counted:
            try:
                self._counted[key] = is_counted(self._topology, module, self._rank, key[1], _placed(place))
            except GradientError as error:
                raise GradientError(f"{name}: {error}") from None
        return _Gradient(name, parameter, gradient, self._counted[key])

    def _norms(self, gradients: Sequence[_Gradient], norm_type: float) -> torch.Tensor:
        """0, then the norm of each gradient. In float64: on a CPU, torch's float32 norm of 10^8 elements is off by 1 %."""
        zero = torch.zeros((), dtype=torch.float64, device=self._device)
        held = [gradient.local for gradient in gradients if gradient.local.numel()]
        found = iter(torch._foreach_norm(held, norm_type, dtype=torch.float64) if held else ())
        return torch.stack([zero, *(next(found).to(self._device) if each.local.numel() else zero for each in gradients)])

    def _report_nonfinite(self, gradients: Sequence[_Gradient], norms: torch.Tensor, *, error: bool) -> None:
        """
        Raises:
            GradientError: `error` is set.
        """
        here = [each.name for each, norm in zip(gradients, norms[1:].tolist(), strict=True) if not math.isfinite(norm)]
        where = f"; on this rank: {here[0]}" if here else ""
        if len(here) > 1:
            where += f" and {len(here) - 1} more"
        if error:
            raise GradientError(f"the norm of the gradients is not finite{where}")
        if here or self._rank == 0:
            logger.warning("the norm of the gradients is not finite, so all are set to None: no rank updates%s", where)


def _parameters(modules: Mapping[str, nn.Module] | nn.ModuleDict) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Module, full name and parameter."""
    for module, held in modules.items():
        for name, parameter in held.named_parameters(prefix=module):
            yield module, name, parameter


def _reduce_partial_gradients(modules: Mapping[str, nn.Module] | nn.ModuleDict) -> None:
    """Reduce partial gradients: those of replicated parameters in sequence-parallel regions."""
    for _, _, parameter in _parameters(modules):
        gradient = parameter.grad
        if isinstance(gradient, DTensor) and any(placement.is_partial() for placement in gradient.placements):
            assert isinstance(parameter, DTensor)
            parameter.grad = gradient.redistribute(placements=parameter.placements)


def _over_the_world(counted: torch.Tensor, all_finite: torch.Tensor, norm_type: float, own_error: MimoError | None) -> float:
    """The norm over all ranks from their parts' norms; infinite if any rank has a gradient that is not finite.

    The same bits on all ranks: gloo and NCCL complete each element of an all-reduce on one rank and copy it from there
    (https://github.com/NVIDIA/nccl/issues/855), and the rest is arithmetic in Python.

    Raises:
        MimoError: this rank's error, or a `GradientError` if other ranks have one.
    """
    is_largest = norm_type == math.inf
    part = counted.max() if is_largest else counted.pow(norm_type).sum()
    part = torch.where(all_finite, part, math.inf)  # MAX may drop a NaN
    numbers = torch.stack([part, torch.full_like(part, own_error is not None)])
    dist.all_reduce(numbers, op=dist.ReduceOp.MAX if is_largest else dist.ReduceOp.SUM)
    total, errors = map(float, numbers.tolist())
    if own_error is not None:
        raise own_error
    if errors:
        raise GradientError("clip_grad_norm_ failed on other ranks; their errors name the cause")
    if is_largest:
        return total
    return math.sqrt(total) if norm_type == 2 else math.pow(total, 1 / norm_type)


def _check_numbers(max_norm: float, norm_type: float) -> None:
    if not max_norm >= 0:
        raise GradientError(f"max_norm={max_norm}; use 0 or more (math.inf leaves the gradients as they are)")
    if not norm_type > 0:
        raise GradientError(f"norm_type={norm_type}; use a number above 0, or math.inf")


def _marks_of(parameter: nn.Parameter) -> Marks:
    return Marks(
        tensor_model_parallel=bool(getattr(parameter, "tensor_model_parallel", False)),
        is_expert=not getattr(parameter, "allreduce", True),
        shared=bool(getattr(parameter, "shared", False)),
        shared_embedding=bool(getattr(parameter, "shared_embedding", False)),
    )


def _placed(place: _Place | None) -> Placed | None:
    if place is None:
        return None
    mesh, placements = place
    at = mesh.get_coordinate() or [-1] * mesh.ndim
    first = all(coordinate == 0 or not placement.is_replicate() for coordinate, placement in zip(at, placements, strict=True))
    return Placed(ranks=frozenset(mesh.mesh.flatten().tolist()), is_first_replica=first)
