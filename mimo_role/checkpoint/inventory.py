"""What each rank is about to save, and whether all of it together is one model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from mimo_role.checkpoint.model_state import form_of
from mimo_role.checkpoint.optimizer_state import Settings
from mimo_role.errors import CheckpointError

_NAMED = 5
_WHOLE_NUMBERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of an element."""

Place = tuple[Any, ...]
"""Which part of a parameter a rank has. Ranks with equal places have copies of one part."""


@dataclass(frozen=True)
class Inventory:
    """What one rank is about to save."""

    step: int
    forms: Mapping[str, tuple[tuple[int, ...], str]]
    """Global shape and type of each tensor."""
    digests: Mapping[tuple[str, Place], int]
    """Of this rank's part of each parameter."""
    settings: Mapping[str, Settings]
    """Those of each parameter's group in the optimizer."""
    extra_digest: str


def forms_of(weights: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Global shape and type of each tensor."""
    return {name: form for name, value in weights.items() if (form := form_of(value)) is not None}


def digests_of(names: Mapping[nn.Parameter, Sequence[str]]) -> dict[tuple[str, Place], int]:
    """The sum of the bits of this rank's part of each parameter, with one wait for the device."""
    parts = {parameter: _local(parameter) for parameter in names}
    held = {parameter: part for parameter, part in parts.items() if part.numel()}
    if not held:
        return {}
    sums = [part.sum(dtype=torch.int64) for part in held.values()]
    numbers = torch.stack([each.to(sums[0].device) for each in sums]).tolist()
    return {
        (name, _place_of(parameter)): number
        for parameter, number in zip(held, numbers, strict=True)
        for name in names[parameter]
    }


def _local(parameter: nn.Parameter) -> torch.Tensor:
    """This rank's part, its bits as whole numbers: their sum is the same in any order, and that of equal ones is not 0."""
    part = parameter.detach()
    part = part.to_local() if isinstance(part, DTensor) else part
    part = torch.view_as_real(part) if part.is_complex() else part
    return part.view(_WHOLE_NUMBERS[part.element_size()])


def _place_of(parameter: nn.Parameter) -> Place:
    if not isinstance(parameter, DTensor):
        return ()
    mesh, placements = parameter.device_mesh, parameter.placements
    at = mesh.get_coordinate() or ()
    divided = [coordinate for coordinate, placement in zip(at, placements, strict=False) if not placement.is_replicate()]
    return tuple(mesh.shape), tuple(map(str, placements)), tuple(divided)


def settings_of(inventories: Sequence[Inventory], label_of: Callable[[int], str]) -> dict[str, Settings]:
    """Compare what all ranks save, and put their optimizers' settings together.

    Raises:
        CheckpointError: what ranks have under one name differs; the message has the names and ranks.
    """
    _check_equal(inventories, label_of, "", lambda each: {"the step": each.step})
    _check_equal(inventories, label_of, ": one name has to be one tensor", lambda each: each.forms)
    _check_copies(inventories, label_of)
    _check_equal(inventories, label_of, ": settings of the optimizer", lambda each: each.settings)
    return {name: settings for each in inventories for name, settings in each.settings.items()}


def _check_equal(
    inventories: Sequence[Inventory],
    label_of: Callable[[int], str],
    meaning: str,
    values_of: Callable[[Inventory], Mapping[str, Any]],
) -> None:
    first: dict[str, tuple[int, Any]] = {}
    for rank, each in enumerate(inventories):
        for name, value in values_of(each).items():
            of, expected = first.setdefault(name, (rank, value))
            if value != expected:
                raise CheckpointError(f"{name} is {expected} on {label_of(of)} and {value} on {label_of(rank)}{meaning}")


def _check_copies(inventories: Sequence[Inventory], label_of: Callable[[int], str]) -> None:
    first: dict[tuple[str, Place], tuple[int, int]] = {}
    different: dict[str, tuple[int, int]] = {}
    for rank, each in enumerate(inventories):
        for part, digest in each.digests.items():
            of, expected = first.setdefault(part, (rank, digest))
            if digest != expected:
                different.setdefault(part[0], (of, rank))
    if not different:
        return
    shown = "; ".join(
        f"{name} on {label_of(one)} and {label_of(other)}" for name, (one, other) in list(different.items())[:_NAMED]
    )
    more = f" and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
    raise CheckpointError(
        f"parameters of one name differ: {shown}{more}. A checkpoint has one of them only. Parts of a tensor have to be "
        "DTensors on ctx.mesh, layers of different stages need different names, and copies have to be kept equal; if they may "
        "differ, check_copies=False saves one of them"
    )
