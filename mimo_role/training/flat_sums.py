"""All-reduces of many tensors in few flat buffers."""

from collections import deque
from collections.abc import Sequence

import torch
import torch.distributed as dist

BUCKET_BYTES = 25 << 20
"""A bucket is closed before it gets larger than this: DistributedDataParallel's default."""

IN_FLIGHT = 4
"""Buckets that are reduced at the same time, and so the number of copies in memory."""


def buckets(sizes: Sequence[int], limit: int) -> list[range]:
    """Consecutive runs of items whose sizes add up to at most `limit`; a larger item is alone. Pure arithmetic."""
    found, start, total = [], 0, 0
    for item, size in enumerate(sizes):
        if item > start and total + size > limit:
            found.append(range(start, item))
            start, total = item, 0
        total += size
    return [*found, range(start, len(sizes))] if sizes else []


class FlatSums:
    """Adds up tensors over groups. The order of calls is the same on all ranks of a group."""

    def __init__(self, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._bucket_bytes = bucket_bytes
        self._running: deque[tuple[list[torch.Tensor], torch.Tensor | None, dist.Work]] = deque()

    def start(self, tensors: Sequence[torch.Tensor], group: dist.ProcessGroup) -> None:
        """Start to add up tensors of one dtype and device over a group, in place."""
        for bucket in buckets([tensor.numel() * tensor.element_size() for tensor in tensors], self._bucket_bytes):
            self._start_one([tensors[item] for item in bucket], group)

    def finish(self) -> None:
        """Wait for all sums."""
        while self._running:
            self._finish_oldest()

    def _start_one(self, tensors: list[torch.Tensor], group: dist.ProcessGroup) -> None:
        if len(self._running) == IN_FLIGHT:
            self._finish_oldest()
        if len(tensors) == 1 and tensors[0].is_contiguous():
            self._running.append((tensors, None, dist.all_reduce(tensors[0], group=group, async_op=True)))
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        self._running.append((tensors, flat, dist.all_reduce(flat, group=group, async_op=True)))

    def _finish_oldest(self) -> None:
        tensors, flat, work = self._running.popleft()
        if work is not None:
            work.wait()
        if flat is not None:
            parts = torch.split(flat, [tensor.numel() for tensor in tensors])
            torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])
