"""Records what this process does into its ring, if it has one. Without torch."""

import os
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import get_ident
from time import monotonic_ns
from types import TracebackType
from typing import Any

from mimo_role.monitoring.device_clock import DeviceClock, Mark
from mimo_role.monitoring.peak_memory import PEAK_MEMORY, PeakMemory
from mimo_role.monitoring.records import NONE, Flag, Kind
from mimo_role.monitoring.ring import Ring, What, what

_UNRECORDED = nullcontext()
_FAILED = int(Flag.FAILED)
SHORTEST_WAIT_NS = 50_000
"""Waits for collectives that take less are not recorded: of gloo on one machine, those of which all ranks are there."""
_MOST_THREADS = 2**16 - 1
"""Further threads share the last number."""
_STEPS_PER_SCHEDULE = 2**32
"""A schedule and its step are one number, which a float64 has exactly for two million schedules."""


class Recorder:
    """This process's spans, steps and scalars. Without a ring each call returns at once."""

    def __init__(
        self, ring: Ring | None, device_clock: DeviceClock | None = None, peak_memory: PeakMemory | None = None
    ) -> None:
        """
        Args:
            ring: what is written to; `None` without an agent.
            device_clock: of a device that runs what this process queues; `None` on the CPU.
            peak_memory: recorded when a step begins; `None`: not.
        """
        self._ring = ring
        self._device_clock = device_clock
        self._peak_memory = peak_memory
        self._step = NONE
        self._batch = 0.0
        self._schedules = 0
        self._new_span: type[_Span] = _Span if device_clock is None else _DeviceSpan
        self._first_thread = get_ident()
        self._threads = {self._first_thread: 0}
        """Numbers of the threads, in the order of their first records."""
        if ring is not None:
            # A child shares the memory, of which there is one writer.
            itself = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _stop(itself()))

    def begin_step(self, number: int, last: int = 0) -> None:
        """A step of the script, or of a schedule that counts them, begins; `last` is the number of the last one, if known."""
        self._step = number
        if self._ring is not None:
            now_ns = monotonic_ns()
            self._ring.add(what(Kind.STEP), now_ns, now_ns, number, float(last))
            if self._peak_memory is not None and (peak := self._peak_memory.new_gib(now_ns)) is not None:
                self.scalar(PEAK_MEMORY, peak)
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
        ring = self._ring
        if ring is None:
            return _UNRECORDED
        number = ring.names.get(name)
        about = kind, ring.name_of(name) if number is None else number, micro_batch, micro_batches, peer
        return self._new_span(self, ring, about)

    def collective(self, group: str) -> What:
        """What `begin_wait` and `end_wait` take for a collective of this group."""
        return what(Kind.COLLECTIVE, 0 if self._ring is None else self._ring.name_of(group))

    def begin_wait(self, about: What) -> int:
        """A wait for a collective begins; it is shown while it lasts.

        Returns:
            The time, for `end_wait`. A script may wait hundreds of times in a step: these two take less than a span.
        """
        begin_ns, ring = monotonic_ns(), self._ring
        if ring is not None and get_ident() == self._first_thread:
            ring.open(about, begin_ns, self._step)
        return begin_ns

    def end_wait(self, about: What, begin_ns: int, flags: int = 0) -> None:
        """It ends, and is recorded if it was long or has failed. Called in a `finally`, in the order of a stack."""
        end_ns, ring = monotonic_ns(), self._ring
        if ring is None:  # also in a child that was forked meanwhile
            return
        is_first, is_long = get_ident() == self._first_thread, end_ns - begin_ns >= SHORTEST_WAIT_NS or flags
        if is_first and not is_long:
            ring.drop()
        elif is_first:
            ring.close(about, begin_ns, end_ns, self._step, self._batch, flags)
        elif is_long:
            ring.add(about, begin_ns, end_ns, self._step, self._batch, self._thread(), flags)

    def arrival(self, name: str, micro_batch: int, peer: int) -> None:
        """What was waited for has come from this rank too."""
        if self._ring is not None:
            now_ns, number = monotonic_ns(), self._ring.name_of(name)
            self._ring.add((Kind.ARRIVAL, number, micro_batch, 1, peer), now_ns, now_ns, self._step, self._batch)

    @property
    def is_on(self) -> bool:
        """Whether anything is recorded."""
        return self._ring is not None

    @property
    def has_device_clock(self) -> bool:
        """Whether times and numbers of a device are recorded when it has reached them."""
        return self._device_clock is not None

    def lose(self) -> None:
        """Count something that could not be recorded."""
        if self._ring is not None:
            self._ring.lose()

    def scalar(self, name: str, value: float) -> None:
        """Record a number."""
        if self._ring is not None:
            now_ns, about = monotonic_ns(), what(Kind.SCALAR, self._ring.name_of(name))
            self._ring.add(about, now_ns, now_ns, self._step, value, self._thread())

    def scalar_when_done(self, name: str, read: Callable[[], float]) -> None:
        """Record a number that the device is still computing; `read` is called when it has.

        To be called where `has_device_clock`.
        """
        ring, clock = self._ring, self._device_clock
        if ring is None or clock is None:
            return
        mark, about, step = clock.mark(), what(Kind.SCALAR, ring.name_of(name)), self._step

        def write(begin_ns: int, end_ns: int) -> None:
            ring.add(about, begin_ns, end_ns, step, read())

        if mark is None or not clock.when_done(mark, mark, write):
            ring.lose()
        self._resolve()

    def _thread(self) -> int:
        identity = get_ident()
        found = self._threads.get(identity)
        return found if found is not None else self._threads.setdefault(identity, min(len(self._threads), _MOST_THREADS))

    def _resolve(self) -> None:
        if self._device_clock is not None and self._thread() == 0:
            self._device_clock.resolve()


def _stop(recorder: Recorder | None) -> None:
    if recorder is not None:
        recorder._ring = None


class _Span:
    """A block that is recorded with the host's times. A script enters many in a step: it calls and looks up little."""

    __slots__ = ("_begin_ns", "_is_first_thread", "_recorder", "_ring", "_what")

    def __init__(self, recorder: Recorder, ring: Ring, about: What) -> None:
        self._recorder = recorder
        self._ring = ring
        self._what = about

    def __enter__(self) -> None:
        recorder = self._recorder
        self._is_first_thread = is_first = get_ident() == recorder._first_thread
        self._begin_ns = begin_ns = monotonic_ns()
        if is_first and recorder._ring is not None:
            self._ring.open(self._what, begin_ns, recorder._step)

    def __exit__(self, error: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        end_ns, recorder = monotonic_ns(), self._recorder
        if recorder._ring is None:  # in a child that was forked within the span
            return
        flags, step, batch = _FAILED if error is not None else 0, recorder._step, recorder._batch
        if self._is_first_thread:
            self._ring.close(self._what, self._begin_ns, end_ns, step, batch, flags)
        else:
            self._ring.add(self._what, self._begin_ns, end_ns, step, batch, recorder._thread(), flags)


class _DeviceSpan(_Span):
    """A block that is recorded with the host's times, and in the first thread with the device's once they are known."""

    __slots__ = ("_mark",)

    def __enter__(self) -> None:
        recorder, clock = self._recorder, self._recorder._device_clock
        is_marked = clock is not None and recorder._ring is not None and get_ident() == recorder._first_thread
        self._mark = clock.mark() if clock is not None and is_marked else None
        super().__enter__()

    def __exit__(self, error: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(error, value, trace)
        if self._recorder._ring is not None and self._mark is not None:
            self._add_when_done(self._mark, (_FAILED if error is not None else 0) | Flag.DEVICE)

    def _add_when_done(self, begin: Mark, flags: int) -> None:
        recorder, ring, clock, about = self._recorder, self._ring, self._recorder._device_clock, self._what
        assert clock is not None
        step, batch, end = recorder._step, recorder._batch, clock.mark()

        def write(begin_ns: int, end_ns: int) -> None:
            ring.add(about, begin_ns, end_ns, step, batch, 0, flags)

        if end is None or not clock.when_done(begin, end, write):
            ring.lose()
        clock.resolve()
