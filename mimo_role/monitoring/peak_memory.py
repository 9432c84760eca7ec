"""The largest memory that a rank has used: of the process on the CPU, of torch's allocator on a GPU. Without torch."""

import resource
from collections.abc import Callable

PEAK_MEMORY = "memory/peak_gib"
"""The name of the scalar."""
INTERVAL_NS = 1_000_000_000
"""torch takes tens of microseconds to collect its allocator's statistics."""
_GIB = 2**30


class PeakMemory:
    """Reads the peak, at most once a second."""

    def __init__(self, peak_bytes: Callable[[], int]) -> None:
        """`peak_bytes` returns the largest memory so far, without waiting for a device."""
        self._peak_bytes = peak_bytes
        self._due_ns = 0
        self._last = 0

    @classmethod
    def of_process(cls) -> "PeakMemory":
        """The resident memory of this process: `ru_maxrss`, which Linux has in KiB."""
        return cls(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    @classmethod
    def of_cuda(cls) -> "PeakMemory":
        """What torch's allocator has given out on the current CUDA device."""
        import torch

        return cls(torch.cuda.max_memory_allocated)

    def new_gib(self, now_ns: int) -> float | None:
        """The peak in GiB, if it is another one than the last time and a second has passed."""
        if now_ns < self._due_ns:
            return None
        self._due_ns = now_ns + INTERVAL_NS
        peak = self._peak_bytes()
        if peak == self._last:
            return None
        self._last = peak
        return peak / _GIB
