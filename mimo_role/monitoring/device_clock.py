"""When a device ran what a rank has queued, on the host's clock, without waiting for it."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

MOST_PENDING = 4096
"""Spans that wait for the device. A rank is rarely more than a step ahead of it."""


class Event(Protocol):
    """What is used of `torch.cuda.Event`."""

    def record(self) -> Any:
        """Queue it on the current stream."""

    def query(self) -> bool:
        """Whether the device has reached it."""

    def elapsed_time(self, later: Any) -> float:
        """Milliseconds to another one; the device has reached both."""


class Mark(NamedTuple):
    """An event on the device's stream."""

    event: Event
    queued_ns: int
    """When it was queued: the device cannot have reached it earlier."""


class _Pending(NamedTuple):
    begin: Mark
    end: Mark
    write: Callable[[int, int], None]


class DeviceClock:
    """Turns pairs of events into times of the host, once the device has reached them. Used by one thread.

    Each time is the last one plus the time that the device has measured since. The sum is kept between two bounds: the device
    has not reached an event before it was queued, nor after it was seen to be complete. So neither the unknown difference of
    the clocks nor their drift adds up, and nothing is synchronized. Where the device waits for work, times are exact to some
    microseconds; where it never does, they may be late or early by the time that the host was ahead at its closest.
    """

    def __init__(
        self, new_event: Callable[[], Event], is_usable: Callable[[], bool], now_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """
        Args:
            new_event: makes an event with timing.
            is_usable: whether events may be recorded now; not while a graph is captured.
            now_ns: the host's clock.
        """
        self._new_event = new_event
        self._is_usable = is_usable
        self._now_ns = now_ns
        self._pending: deque[_Pending] = deque()
        self._last: tuple[Event, int] | None = None
        """An event that the device has reached, and when."""

    @classmethod
    def of_cuda(cls) -> "DeviceClock":
        """Of the current CUDA device."""
        import torch

        def new_event() -> Event:
            event: Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            return event

        return cls(new_event, lambda: not torch.cuda.is_current_stream_capturing())

    def mark(self) -> Mark | None:
        """Queue an event on the current stream; `None` while that is not possible."""
        try:
            if not self._is_usable():
                return None
            event = self._new_event()
            event.record()
            return Mark(event, self._now_ns())
        except RuntimeError:  # an error of the device, which the script meets by itself
            return None

    def when_done(self, begin: Mark, end: Mark, write: Callable[[int, int], None]) -> bool:
        """Call `write(begin_ns, end_ns)` once both are known, in a later call of this or of `resolve`.

        Returns:
            Whether there was a place: too many may wait already.
        """
        if len(self._pending) >= MOST_PENDING:
            return False
        self._pending.append(_Pending(begin, end, write))
        return True

    def resolve(self) -> None:
        """Write all that is known by now. What has no time, such as a span from one stream to another, is dropped."""
        while self._pending and self._is_reached(self._pending[0].end):
            begin, end, write = self._pending.popleft()
            seen_ns = self._now_ns()
            try:
                begin_ns = self._time_of(begin, seen_ns)
                end_ns = max(begin_ns, self._time_of(end, seen_ns))
            except RuntimeError:
                self._last = None
                continue
            write(begin_ns, end_ns)

    def _is_reached(self, mark: Mark) -> bool:
        try:
            return self._is_usable() and mark.event.query()
        except RuntimeError:
            return False

    def _time_of(self, mark: Mark, seen_ns: int) -> int:
        if self._last is None:
            found = mark.queued_ns
        else:
            event, at_ns = self._last
            found = at_ns + round(1e6 * event.elapsed_time(mark.event))
        found = min(max(found, mark.queued_ns), seen_ns)
        self._last = mark.event, found
        return found
