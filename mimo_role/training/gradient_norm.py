"""Gradient clipping by the norm over all modules of a world."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from mimo_role.errors import GradientError, MimoError
from mimo_role.topology.topology import Topology
from mimo_role.training.parameters import (
    Modules,
    Place,
    check_dense,
    each_owned_parameter,
    local_part,
    marks_of,
    place_gradients,
    place_of,
    placed,
)
from mimo_role.training.replicas import Marks, is_counted

logger = logging.getLogger(__name__)

_MARGIN = 1e-6
"""Added to the norm before `max_norm` is divided by it, as in `torch.nn.utils.clip_grad_norm_`."""


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
        self._counted: dict[tuple[str, Marks, Place | None], bool] = {}

    @torch.no_grad()
    def clip(
        self,
        modules: Modules,
        max_norm: float,
        norm_type: float,
        *,
        error_if_nonfinite: bool,
    ) -> torch.Tensor:
        """`RoleContext.clip_grad_norm_`, which documents the arguments. Collective over the world."""
        gradients: list[_Gradient] = []
        own_error: MimoError | None = None
        place_gradients(modules)
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

    def _collect(self, modules: Modules) -> list[_Gradient]:
        """This rank's gradients, each parameter once; first those that this rank counts.

        Raises:
            MimoError: a module or a gradient that cannot be part of the norm.
        """
        for module in modules:
            self._check_module(module)
        found = [
            self._gradient(module, name, parameter)
            for module, name, parameter in each_owned_parameter(self._topology, modules)
            if parameter.grad is not None
        ]
        return sorted(found, key=lambda gradient: not gradient.is_counted)

    def _gradient(self, module: str, name: str, parameter: nn.Parameter) -> _Gradient:
        gradient = parameter.grad
        assert gradient is not None
        check_dense(name, gradient)
        place = place_of(gradient)
        key = (module, marks_of(parameter), place)
        if key not in self._counted:
            try:
                self._counted[key] = is_counted(self._topology, module, self._rank, key[1], placed(place))
            except GradientError as error:
                raise GradientError(f"{name}: {error}") from None
        return _Gradient(name, parameter, local_part(gradient), self._counted[key])

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
