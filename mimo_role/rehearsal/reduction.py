"""What a reduction over ranks gives if all of them have the same tensor."""

import torch
from torch.distributed import ReduceOp

_KEPT = (ReduceOp.AVG, ReduceOp.MIN, ReduceOp.MAX, ReduceOp.BAND, ReduceOp.BOR)


def reduce_equal(tensor: torch.Tensor, op: ReduceOp, size: int) -> None:
    """Reduce a tensor in place over `size` ranks that all have it.

    Args:
        tensor: of any shape and dtype.
        op: torch's reduction.
        size: the number of ranks.

    Raises:
        NotImplementedError: a reduction that torch has added since.
    """
    if any(op == kept for kept in _KEPT):  # in this order: the two are of different types
        return
    if op == ReduceOp.SUM:
        tensor.mul_(size) if tensor.dtype != torch.bool else None  # a sum of booleans is their disjunction
    elif op == ReduceOp.PRODUCT:
        tensor.pow_(size)
    elif op == ReduceOp.BXOR:
        tensor.mul_(size % 2)
    elif op == ReduceOp.PREMUL_SUM:
        tensor.mul_(op.factor).mul_(size)  # type: ignore[attr-defined]
    else:
        raise NotImplementedError(f"a rehearsal has no reduction {op}")
