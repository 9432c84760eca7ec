"""Memory for what arrives, used again as soon as nobody has it any more."""

import weakref
from collections import defaultdict

import torch

_SMALLEST = 1 << 18
"""Bytes from which memory is kept. Fresh memory costs a page fault for every 4 KiB, together more than the transfer itself."""

_KEPT = 4
"""Free pieces of one size that are kept."""


class BufferPool:
    """Hands out tensors whose memory returns when the last tensor over it is gone, an autograd graph's among them.

    For CPU tensors; on a GPU torch's caching allocator does the same.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free: defaultdict[int, list[bytearray]] = defaultdict(list)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous tensor of any content, not a view of another."""
        tensor = torch.empty(0 if self._device.type == "cpu" else shape, dtype=dtype, device=self._device)
        count = torch.Size(shape).numel()
        size = count * tensor.element_size()
        if self._device.type != "cpu" or size < _SMALLEST:
            return torch.empty(shape, dtype=dtype, device=self._device)
        # Powers of two, so that batches of varying size find each other's memory; pages never touched take none.
        size = 1 << (size - 1).bit_length()
        memory = self._free[size].pop() if self._free[size] else bytearray(size)
        loan = memoryview(memory)
        storage = torch.frombuffer(loan, dtype=dtype, count=count).untyped_storage()
        # The storage keeps the loan alive; when it goes, so does the loan, and the memory is free again.
        weakref.finalize(loan, self._give_back, size, memory).atexit = False
        return tensor.set_(storage, 0, shape)  # type: ignore[call-overload,no-any-return]

    def _give_back(self, size: int, memory: bytearray) -> None:
        if len(self._free[size]) < _KEPT:
            self._free[size].append(memory)
