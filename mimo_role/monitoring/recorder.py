"""Records what this process does into its ring, if it has one. Without torch."""

import os
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from threading import get_ident
from types import TracebackType
from typing import Any

from mimo_role.monitoring.device_clock import DeviceClock
from mimo_role.monitoring.records import NONE, Flag, Kind
from mimo_role.monitoring.ring import Ring

_UNRECORDED = nullcontext()
_STEPS_PER_SCHEDULE = 2**32
"""A schedule and its step are one number, which a float64 has exactly for two million schedules."""


class Recorder:
    """This process's spans, steps and scalars. Without a ring each call returns at once."""

    def __init__(self, ring: Ring | None, device_clock: DeviceClock | None = None) -> None:
        """
        Args:
            ring: what is written to; `None` without an agent.
            device_clock: of a device that runs what this process queues; `None` on the CPU.
        """
        self._ring = ring
        self._device_clock = device_clock
        self._step = NONE
        self._batch = 0.0
        self._schedules = 0
        self._threads = {get_ident(): 0}
        """Numbers of the threads, in the order of their first records."""
        if ring is not None:
            # A child shares the memory, of which there is one writer.
            itself = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _stop(itself()))

    def begin_step(self, number: int) -> None:
        """A step of the script, or of a schedule that counts them, begins."""
        self._step = number
        if self._ring is not None:
            now_ns = time.monotonic_ns()
            self._ring.add(Kind.STEP, 0, now_ns, now_ns, number)
            self._resolve()

    def count_schedule(self) -> int:
        """The number of a new schedule, the same on all ranks, which make them in the same order."""
        self._schedules += 1
        return self._schedules - 1

    def begin_batch(self, schedule: int, step: int) -> None:
        """A schedule begins a step: messages between stages are known by both numbers and their micro-batch."""
        self._batch = float(schedule * _STEPS_PER_SCHEDULE + step)

    def span(
        self, kind: Kind, name: str, micro_batch: int = NONE, micro_batches: int = 0, peer: int = NONE
    ) -> AbstractContextManager[Any]:
        """Record the time that a block takes.

        Args:
            kind: of the span.
            name: a stage such as `language.1`, a link between stages, or what the script calls it.
            micro_batch: the first one, if it is about some.
            micro_batches: their number.
            peer: the rank that sends what is waited for.
        """
        if self._ring is None:
            return _UNRECORDED
        return _Span(self, self._ring, kind, name, micro_batch, micro_batches, peer)

    def arrival(self, name: str, micro_batch: int, peer: int) -> None:
        """What was waited for has come from this rank too."""
        if self._ring is not None:
            now_ns, number = time.monotonic_ns(), self._ring.name_of(name)
            self._ring.add(
                Kind.ARRIVAL, number, now_ns, now_ns, self._step, value=self._batch, micro_batch=micro_batch, peer=peer
            )

    def scalar(self, name: str, value: float) -> None:
        """Record a number."""
        if self._ring is not None:
            now_ns = time.monotonic_ns()
            self._ring.add(
                Kind.SCALAR, self._ring.name_of(name), now_ns, now_ns, self._step, value=value, thread=self._thread()
            )

    def scalar_when_done(self, name: str, read: Callable[[], float]) -> None:
        """Record a number that the device is still computing; `read` is called when it has. On the thread of the context only.

        Without a clock of the device it is read now.
        """
        if self._ring is None:
            return
        if self._device_clock is None:
            self.scalar(name, read())
            return
        mark = self._device_clock.mark()
        number, step = self._ring.name_of(name), self._step

        def write(begin_ns: int, end_ns: int) -> None:
            if self._ring is not None:
                self._ring.add(Kind.SCALAR, number, begin_ns, end_ns, step, value=read())

        if mark is None or not self._device_clock.when_done(mark, mark, write):
            self._ring.lose()
        self._resolve()

    def _thread(self) -> int:
        identity = get_ident()
        found = self._threads.get(identity)
        return found if found is not None else self._threads.setdefault(identity, len(self._threads))

    def _resolve(self) -> None:
        if self._device_clock is not None and self._thread() == 0:
            self._device_clock.resolve()


def _stop(recorder: Recorder | None) -> None:
    if recorder is not None:
        recorder._ring = None


class _Span:
    """A block that is recorded with the host's times, and with the device's once they are known."""

    __slots__ = ("_begin_ns", "_kind", "_mark", "_micro", "_name", "_peer", "_recorder", "_ring", "_thread")

    def __init__(
        self, recorder: Recorder, ring: Ring, kind: Kind, name: str, micro_batch: int, micro_batches: int, peer: int
    ) -> None:
        self._recorder = recorder
        self._ring = ring
        self._kind = kind
        self._name = ring.name_of(name)
        self._micro = micro_batch, micro_batches
        self._peer = peer

    def __enter__(self) -> None:
        recorder = self._recorder
        self._thread = recorder._thread()
        self._mark = recorder._device_clock.mark() if recorder._device_clock is not None and self._thread == 0 else None
        self._begin_ns = time.monotonic_ns()
        if self._thread == 0:
            self._ring.open(self._kind, self._name, self._begin_ns, recorder._step, *self._micro)

    def __exit__(self, error: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        recorder, flags = self._recorder, Flag.FAILED if error is not None else 0
        if recorder._ring is None:  # in a child that was forked within the span
            return
        self._write(recorder._step, recorder._batch, flags, self._begin_ns, time.monotonic_ns())
        if self._thread == 0:
            self._ring.close()
        clock = recorder._device_clock
        if clock is not None and self._mark is not None:
            end = clock.mark()
            write = partial(self._write, recorder._step, recorder._batch, flags | Flag.DEVICE)
            if end is None or not clock.when_done(self._mark, end, write):
                self._ring.lose()
            clock.resolve()

    def _write(self, step: int, batch: float, flags: int, begin_ns: int, end_ns: int) -> None:
        self._ring.add(*(self._kind, self._name, begin_ns, end_ns, step, batch, *self._micro, self._peer, self._thread, flags))
