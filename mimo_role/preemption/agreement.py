"""All ranks agree, between two steps, whether the job is about to be ended."""

import math
import time
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from mimo_role.preemption.notice import listen, notice


class EndAgreement:
    """One small all-reduce over the world per step, started at one call and read at the next.

    So no step waits for another rank; on a GPU reading the number waits for what the step has queued there.
    """

    def __init__(self, device: torch.device, grace_s: float | None, warning_s: float | None, notice_file: Path | None) -> None:
        self._device = device
        self._how = (grace_s, warning_s, notice_file)
        self._going: tuple[dist.Work, torch.Tensor, float] | None = None

    def seconds_left(self) -> float | None:
        """Collective; see `RoleContext.seconds_left`."""
        listen(*self._how)
        answer = self._read()
        heard = notice()
        left = math.inf if heard is None else heard.seconds_left or 0.0
        tensor = torch.tensor(left, dtype=torch.float32, device=self._device)
        work = dist.all_reduce(tensor, op=dist.ReduceOp.MIN, async_op=True)
        assert work is not None
        self._going = work, tensor, time.monotonic()
        if answer is not None:
            # A rank that ended now would break the connections of those that have not read the answer yet. Once this round is
            # done here, all have; a rank that has done it may be gone, and nobody needs its sum.
            with suppress(RuntimeError):
                work.wait()
        return answer

    def close(self) -> None:
        """Wait for what has been started; ranks that have heard of the end may be gone."""
        with suppress(RuntimeError):
            self._read()

    def _read(self) -> float | None:
        if self._going is None:
            return None
        work, tensor, since = self._going
        self._going = None
        work.wait()
        left = tensor.item()
        return None if math.isinf(left) else max(0.0, left - (time.monotonic() - since))
