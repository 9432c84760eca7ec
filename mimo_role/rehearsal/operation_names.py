"""What of an operation has to be the same on all members of a group, as text."""

from collections.abc import Sequence
from typing import Any

import torch


def of_tensors(tensors: Sequence[torch.Tensor], *, sizes: bool = True) -> str:
    """`6 float32`, `6 float32 + 2 int64`: elements and dtypes, without shapes, which members may have flattened.

    Args:
        tensors: of one rank.
        sizes: whether members need equal numbers of elements.
    """
    return " + ".join(f"{tensor.numel():,} {_name_of(tensor.dtype)}" if sizes else _name_of(tensor.dtype) for tensor in tensors)


def of_parts(parts: Sequence[Sequence[torch.Tensor]], own: Sequence[torch.Tensor]) -> str:
    """The same of lists with a tensor for each member.

    Parts of one size are named by this rank's own tensor, since that of a member may be the one which differs.
    """
    return " + ".join(_of_part(of_all, tensor) for of_all, tensor in zip(parts, own, strict=True))


def of_reduction(opts: Any) -> str:
    """`sum`, `max`."""
    operation = opts.reduceOp
    return str(getattr(operation, "op", operation)).rpartition(".")[2].lower()


def _of_part(parts: Sequence[torch.Tensor], own: torch.Tensor) -> str:
    sizes = sorted({part.numel() for part in parts})
    if len(sizes) <= 1:
        return of_tensors([own])
    return f"{sum(part.numel() for part in parts):,} {_name_of(own.dtype)} in parts of {sizes[0]:,} to {sizes[-1]:,}"


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
