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

    So no step waits for another rank. On a GPU the number is read when the kernels have run that were queued before the
    all-reduce, those of the step before.
    """

    def __init__(self, device: torch.device, grace_s: float | None, warning_s: float | None, notice_file: Path | None) -> None:
        self._device = device
        self._listen_args = (grace_s, warning_s, notice_file)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._pending: _Minimum | None = None

    def seconds_left(self) -> float | None:
        """Collective; see `RoleContext.seconds_left`."""
        listen(*self._listen_args)
        result = self._read()
        own = notice()
        self._pending = _Minimum(math.inf if own is None else own.seconds_left or 0.0, self._device, self._stream)
        if result is not None:
            # A rank that exits now would break the connections of those that have not read the result yet. Once this round is
            # complete here, all have; a rank that has completed it may have exited, and its result is not needed.
            with suppress(RuntimeError):
                self._pending.read()
        return result

    def close(self) -> None:
        """Wait for a pending all-reduce; ranks that know of the termination may have exited."""
        with suppress(RuntimeError):
            self._read()

    def _read(self) -> float | None:
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        left = pending.read()
        return None if math.isinf(left) else max(0.0, left - (time.monotonic() - pending.since))


class _Minimum:
    """The least of one number per rank, on its way. Collective over the world."""

    def __init__(self, own: float, device: torch.device, stream: torch.cuda.Stream | None) -> None:
        self.since = time.monotonic()
        # torch.full queues a kernel; torch.tensor would copy from the host, and wait for that.
        self._number = torch.full((), own, dtype=torch.float32, device=device)
        work = dist.all_reduce(self._number, op=dist.ReduceOp.MIN, async_op=True)
        assert work is not None
        self._work: dist.Work | None = work
        self._copied: torch.cuda.Event | None = None
        if stream is not None:
            # On a stream of its own, so that reading the number does not wait for what the script queues after this.
            with torch.cuda.stream(stream):
                work.wait()
                self._work = None
                self._host = torch.empty((), dtype=torch.float32, pin_memory=True).copy_(self._number, non_blocking=True)
                self._copied = stream.record_event()

    def read(self) -> float:
        """Wait until the all-reduce is complete on this rank. Under NCCL, `Work.wait()` does not: it makes a stream wait."""
        if self._copied is not None:
            self._copied.synchronize()
            return self._host.item()
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._number.item()
