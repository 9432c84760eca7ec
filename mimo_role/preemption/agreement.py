"""A decision of all ranks, between two steps, whether the job is about to be terminated."""

import math
import time
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from mimo_role.preemption.notice import listen, notice


class PreemptionAgreement:
    """One small all-reduce over the world per step, started in one call and read in the next.

    So no step waits for another rank; on a GPU, reading the number waits for the kernels that the step has queued.
    """

    def __init__(self, device: torch.device, grace_s: float | None, warning_s: float | None, notice_file: Path | None) -> None:
        self._device = device
        self._listen_args = (grace_s, warning_s, notice_file)
        self._pending: tuple[dist.Work, torch.Tensor, float] | None = None

    def seconds_left(self) -> float | None:
        """Collective; see `RoleContext.seconds_left`."""
        listen(*self._listen_args)
        result = self._read()
        own = notice()
        left = math.inf if own is None else own.seconds_left or 0.0
        tensor = torch.tensor(left, dtype=torch.float32, device=self._device)
        work = dist.all_reduce(tensor, op=dist.ReduceOp.MIN, async_op=True)
        assert work is not None
        self._pending = work, tensor, time.monotonic()
        if result is not None:
            # A rank that exits now would break the connections of those that have not read the result yet. Once this round is
            # complete here, all have; a rank that has completed it may have exited, and its sum is not needed.
            with suppress(RuntimeError):
                work.wait()
        return result

    def close(self) -> None:
        """Wait for a pending all-reduce; ranks that know of the termination may have exited."""
        with suppress(RuntimeError):
            self._read()

    def _read(self) -> float | None:
        if self._pending is None:
            return None
        work, tensor, since = self._pending
        self._pending = None
        work.wait()
        left = tensor.item()
        return None if math.isinf(left) else max(0.0, left - (time.monotonic() - since))
