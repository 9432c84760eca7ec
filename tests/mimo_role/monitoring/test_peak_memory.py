"""When the peak of memory is read and recorded."""

import resource

from mimo_role.monitoring.peak_memory import INTERVAL_NS, PEAK_MEMORY, PeakMemory
from mimo_role.monitoring.recorder import Recorder
from mimo_role.monitoring.ring import Ring, read


def test_a_peak_is_read_once_a_second_and_returned_when_it_has_changed():
    peaks = iter([2**30, 2**30, 3 * 2**29])
    peak = PeakMemory(lambda: next(peaks))
    times = (1, INTERVAL_NS, INTERVAL_NS + 1, 3 * INTERVAL_NS, 3 * INTERVAL_NS)
    assert [peak.new_gib(now_ns) for now_ns in times] == [1.0, None, None, 1.5, None]


def test_the_peak_of_a_process_is_that_of_its_resident_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = PeakMemory.of_process().new_gib(1)
    assert before <= found * 2**20 <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_steps_record_a_peak_of_their_own(tmp_path):
    recorder = Recorder(Ring.create(tmp_path / "ring", 0, 1), None, PeakMemory(lambda: 2**31))
    for step in (4, 5):
        recorder.begin_step(step)
    recording = read(tmp_path / "ring")
    assert [(recording.names[each.name], each.step, each.value) for each in recording.records[1:]] == [
        (PEAK_MEMORY, 4, 2.0),
        ("(further names)", 5, 0.0),
    ]
