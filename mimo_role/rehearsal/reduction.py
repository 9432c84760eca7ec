"""What a reduction over ranks gives if all of them have the same tensor."""

from typing import Any

import torch
from torch.distributed import ReduceOp

_KEPT = (ReduceOp.AVG, ReduceOp.MIN, ReduceOp.MAX, ReduceOp.BAND, ReduceOp.BOR)


def reduce_equal(tensor: torch.Tensor, op: Any, size: int) -> None:
    """Reduce a tensor in place over `size` ranks that all have it.

    Args:
        tensor: of any shape and dtype.
        op: a `ReduceOp`.
        size: the number of ranks.

    Raises:
        NotImplementedError: a reduction that torch has added since.
    """
    if any(op == kept for kept in _KEPT):  # in this order: the two are of different types
        return
    if op == ReduceOp.SUM:
        if tensor.dtype != torch.bool:  # a sum of booleans is their disjunction
            tensor.mul_(size)
    elif op == ReduceOp.PRODUCT:
        tensor.pow_(size)
    elif op == ReduceOp.BXOR:
        tensor.mul_(size % 2)
    elif op == ReduceOp.PREMUL_SUM:
        _, factor = op.__getstate__()  # torch before 2.13 has no `factor`
        tensor.mul_(factor).mul_(size)
    else:
        raise NotImplementedError(f"a rehearsal has no reduction {op}")
