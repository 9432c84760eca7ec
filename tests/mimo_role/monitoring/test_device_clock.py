"""The clock of a device, with a simulated device in place of CUDA."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_role.monitoring import device_clock
from mimo_role.monitoring.device_clock import DeviceClock


class Device:
    """A stream that runs work in order; its own clock differs from the host's by an offset and a rate."""

    def __init__(self, offset_ns=0, rate=1.0):
        self.now_ns = 1_000_000
        self.free_at_ns = 0
        self.offset_ns, self.rate = offset_ns, rate
        self.can_record = True

    def work(self, ns):
        self.free_at_ns = max(self.free_at_ns, self.now_ns) + ns

    def clock(self):
        return DeviceClock(lambda: Event(self), lambda: self.can_record, lambda: self.now_ns)


class Event:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.at_ns = max(self.device.free_at_ns, self.device.now_ns)

    def query(self):
        return self.device.now_ns >= self.at_ns

    def elapsed_time(self, later):
        assert self.query()
        assert later.query()
        return (later.at_ns - self.at_ns) * self.device.rate / 1e6


def test_a_span_has_the_times_of_the_device_and_not_of_the_host():
    device, found = Device(), []
    clock = device.clock()
    begin = clock.mark()
    device.work(5000)
    end = clock.mark()
    assert clock.when_done(begin, end, lambda *times: found.append(times))
    device.now_ns += 100
    clock.resolve()
    assert found == []
    device.now_ns += 10_000
    clock.resolve()
    assert found == [(1_000_000, 1_005_000)]


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 3000)), min_size=1, max_size=60), st.floats(0.999, 1.001))
def test_times_stay_near_the_host_whatever_the_clocks_do(steps, rate):
    """A host that is at most one step ahead: it waits for the device before it queues more."""
    device, found, true = Device(rate=rate), [], []
    clock = device.clock()
    for pause_ns, work_ns in steps:
        device.now_ns += pause_ns
        begin = clock.mark()
        device.work(work_ns)
        end = clock.mark()
        true.append((begin.event.at_ns, end.event.at_ns))
        clock.when_done(begin, end, lambda *times: found.append(times))
        device.now_ns = max(device.now_ns, device.free_at_ns)
        clock.resolve()
    assert len(found) == len(true)
    for (begin_ns, end_ns), (true_begin_ns, true_end_ns) in zip(found, true, strict=True):
        assert abs(begin_ns - true_begin_ns) <= 10
        assert abs(end_ns - true_end_ns) <= 10


def test_what_the_device_never_reaches_is_dropped_beyond_a_limit(monkeypatch):
    monkeypatch.setattr(device_clock, "MOST_PENDING", 2)
    device = Device()
    clock = device.clock()
    device.work(10**12)
    mark = clock.mark()
    assert [clock.when_done(mark, mark, print) for _ in range(3)] == [True, True, False]


def test_nothing_is_recorded_or_asked_while_a_graph_is_captured():
    device = Device()
    clock = device.clock()
    mark = clock.mark()
    clock.when_done(mark, mark, pytest.fail)
    device.can_record = False
    assert clock.mark() is None
    clock.resolve()
