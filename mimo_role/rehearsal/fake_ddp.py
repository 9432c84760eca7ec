"""What DistributedDataParallel does with the memory of tensors in compiled code, for tensors that have none.

Its `Reducer` makes buckets, copies gradients into them and all-reduces them by operators, which fake tensors have. Three parts
read memory: the comparison of parameters' shapes between ranks, the broadcast of a module's state, and the new order of the
buckets after the first backward pass, which changes neither their bytes nor, much, their number.
"""
# mypy: disable-error-code="no-untyped-call,attr-defined"

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch._utils import _flatten_dense_tensors


def _broadcast_coalesced(group: Any, tensors: Sequence[torch.Tensor], buffer_size: int, source: int = 0) -> None:
    """Broadcast tensors in flat copies of at most `buffer_size` bytes, unless one tensor is larger."""
    for parts in _buckets(tensors, buffer_size):
        dist.broadcast(_flatten_dense_tensors(parts), group=group, group_src=source)


def _buckets(tensors: Sequence[torch.Tensor], size: int) -> Iterator[list[torch.Tensor]]:
    by_type: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        bucket = by_type.setdefault(tensor.dtype, [])
        if bucket and sum(each.nbytes for each in bucket) + tensor.nbytes > size:
            yield by_type.pop(tensor.dtype)
            bucket = by_type.setdefault(tensor.dtype, [])
        bucket.append(tensor)
    yield from by_type.values()


REPLACED: Sequence[tuple[Any, str, Any]] = (
    (dist, "_verify_params_across_processes", lambda *_, **__: None),
    (dist, "_broadcast_coalesced", _broadcast_coalesced),
    (dist.Reducer, "_rebuild_buckets", lambda _reducer: False),
)
"""Objects, names of their attributes, and what replaces these."""
