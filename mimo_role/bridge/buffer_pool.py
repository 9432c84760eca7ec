"""Memory for received data, reused when nothing refers to it any more."""

import math
import weakref
from collections import defaultdict

import torch

_SMALLEST = 1 << 18
"""Bytes from which memory is reused. New memory costs a page fault for every 4 KiB, in all more than the transfer itself."""

_KEPT = 4
"""Free blocks of one size that are kept."""


class BufferPool:
    """Returns tensors whose memory is reused when no tensor uses it any more, including those of an autograd graph.

    For CPU tensors; on a GPU torch's caching allocator does the same.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free: defaultdict[int, list[bytearray]] = defaultdict(list)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous tensor of any content, not a view of another."""
        count = math.prod(shape)
        size = count * dtype.itemsize
        if size < _SMALLEST or self._device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=self._device)
        # Powers of two, so that batches of different sizes use the same memory; pages that are never touched need none.
        size = 1 << (size - 1).bit_length()
        memory = self._free[size].pop() if self._free[size] else bytearray(size)
        view = memoryview(memory)
        storage = torch.frombuffer(view, dtype=dtype, count=count).untyped_storage()
        # The storage keeps the view alive; when the storage is freed, so is the view, and the memory is reused.
        weakref.finalize(view, self._reuse, size, memory).atexit = False
        return torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload,no-any-return]

    def _reuse(self, size: int, memory: bytearray) -> None:
        if len(self._free[size]) < _KEPT:
            self._free[size].append(memory)
