"""What a process records, and what of it another one reads."""

import math
import os
import threading
from types import SimpleNamespace

import pytest
import torch

from mimo_role.errors import RecordingError
from mimo_role.monitoring.device_clock import DeviceClock
from mimo_role.monitoring.recorder import SHORTEST_WAIT_NS, Recorder
from mimo_role.monitoring.records import Flag, Kind
from mimo_role.monitoring.ring import Ring, read
from mimo_role.monitoring.script_records import ScriptSpan, log_scalars


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rank0.recording"


@pytest.fixture
def recorder(path):
    return Recorder(Ring.create(path, 0, 1))


def found(path):
    """Kind, name and step of each record."""
    recording = read(path)
    return [(Kind(each.kind).name, recording.names[each.name], each.step) for each in recording.records]


def test_spans_are_recorded_as_they_end_with_their_step(recorder, path):
    recorder.begin_step(4)
    with ScriptSpan(recorder, "data"), ScriptSpan(recorder, "decode"):
        assert [read(path).names[each.name] for each in read(path).open] == ["data", "decode"]
    assert found(path)[1:] == [("SPAN", "decode", 4), ("SPAN", "data", 4)]
    inner, outer = read(path).records[1:]
    assert outer.begin_ns <= inner.begin_ns <= inner.end_ns <= outer.end_ns


def test_a_step_has_the_number_of_the_last_one_if_the_script_states_it(recorder, path):
    recorder.begin_step(4, 100)
    recorder.begin_step(5)
    assert [(each.step, each.value) for each in read(path).records] == [(4, 100.0), (5, 0.0)]


def test_a_span_around_a_function_is_one_for_each_call(recorder, path):
    @ScriptSpan(recorder, "factorial")
    def factorial(number):
        """Of a number."""
        return number * factorial(number - 1) if number else 1

    assert (factorial(3), factorial.__doc__) == (6, "Of a number.")
    assert found(path) == [("SPAN", "factorial", -1)] * 4


def test_a_span_that_an_exception_ends_is_marked_and_closed(recorder, path):
    with pytest.raises(KeyError), ScriptSpan(recorder, "data"):
        raise KeyError
    assert (read(path).records[0].flags, read(path).open) == (Flag.FAILED, [])


def test_short_waits_for_collectives_are_not_recorded(recorder, path, monkeypatch):
    now_ns = 0
    monkeypatch.setattr("mimo_role.monitoring.recorder.monotonic_ns", lambda: now_ns)
    with recorder.span(Kind.FORWARD, "language.0"):
        for took_ns in (SHORTEST_WAIT_NS - 1, SHORTEST_WAIT_NS):
            begin_ns = recorder.begin_wait(recorder.collective("language.tp"))
            assert [read(path).names[each.name] for each in read(path).open] == ["language.0", "language.tp"]
            now_ns += took_ns
            recorder.end_wait(recorder.collective("language.tp"), begin_ns)
    assert found(path) == [("COLLECTIVE", "language.tp", -1), ("FORWARD", "language.0", -1)]
    assert read(path).open == []


def test_threads_have_numbers_and_do_not_show_as_running(recorder, path):
    def work():
        with ScriptSpan(recorder, "reader"):
            assert read(path).open == []

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    recorder.begin_step(0)
    threads = [each.thread for each in read(path).records]
    assert threads[0] >= 1
    assert threads[2] == 0


def test_a_forked_child_does_not_write_into_the_memory_that_it_shares(recorder, path):
    with ScriptSpan(recorder, "data"):
        child = os.fork()
        if child == 0:
            with ScriptSpan(recorder, "child"):
                recorder.begin_step(7)
            recorder.scalar("loss", 1.0)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert [read(path).names[each.name] for each in read(path).open] == ["data"]
    assert found(path) == [("SPAN", "data", -1)]


def test_without_an_agent_nothing_is_recorded():
    recorder = Recorder(None)
    recorder.begin_step(0)
    with ScriptSpan(recorder, "data"):
        log_scalars(recorder, {"loss": 1.0})
    recorder.arrival("vision stage 0 -> language stage 0", 0, 1)
    about = recorder.collective("language.tp")
    recorder.end_wait(about, recorder.begin_wait(about))


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3.0), (0.5, 0.5), (True, 1.0), (torch.tensor(2.5), 2.5), (torch.tensor(7), 7.0), (math.inf, math.inf)],
)
def test_numbers_and_scalar_tensors_are_logged(recorder, path, value, expected):
    recorder.begin_step(2)
    log_scalars(recorder, {"loss": value})
    assert found(path)[1:] == [("SCALAR", "loss", 2)]
    assert read(path).records[1].value == expected


def test_a_parameter_is_logged_as_its_value(recorder, path):
    log_scalars(recorder, {"scale": torch.nn.Parameter(torch.tensor(2.0)) * 2})
    assert read(path).records[0].value == 4.0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0.5", r"ctx.log\(loss=...\): str is no number"),
        (torch.zeros(2), r"ctx.log\(loss=...\): a tensor of shape \[2\] and torch.float32; pass a real one of no dimensions"),
        (torch.tensor(1j), "pass a real one"),
    ],
)
def test_other_values_are_refused_with_and_without_an_agent(recorder, value, message):
    for each in (recorder, Recorder(None)):
        with pytest.raises(RecordingError, match=message):
            log_scalars(each, {"loss": value})


def test_a_device_has_times_of_its_own_once_it_is_there(path):
    done = []
    event = SimpleNamespace(record=lambda: None, query=lambda: bool(done), elapsed_time=lambda _: 0.0)
    recorder = Recorder(Ring.create(path, 0, 1), DeviceClock(lambda: event, lambda: True))
    with ScriptSpan(recorder, "optimizer"):
        pass
    recorder.scalar_when_done("loss", lambda: 0.25)
    assert found(path) == [("SPAN", "optimizer", -1)]
    done.append(True)
    recorder.begin_step(0)
    assert found(path) == [
        ("SPAN", "optimizer", -1),
        ("STEP", "(further names)", 0),
        ("SPAN", "optimizer", -1),
        ("SCALAR", "loss", -1),
    ]
    assert [each.flags for each in read(path).records] == [0, 0, Flag.DEVICE, 0]
    assert read(path).records[3].value == 0.25
