"""The trace of recordings that are made here."""

import json
import math
from dataclasses import replace

import pytest

from launcher.config.loader import load
from launcher.coordination.clock_offset import ClockOffset
from launcher.errors import LaunchError
from launcher.plan.planner import make_plan
from launcher.trace.chrome import trace_of
from launcher.trace.recordings import Recordings
from launcher.trace.writer import steps_from
from mimo_role.monitoring.records import Flag, Kind, Record, Recording

CONFIG = """
name: two
layout: non_colocated
modules: {vision: {}, language: {}}
pools: {all: {nodes: 2, procs_per_node: 1}}
entry: {script: train.py}
"""
NAMES = ["(further names)", "vision.0", "language.0", "link", "loss", "data"]
SECOND = 10**9


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "job.yaml").write_text(CONFIG)
    (tmp_path / "train.py").touch()
    return make_plan(load(tmp_path / "job.yaml", [])[0], tmp_path / "job.yaml", ())


def record(kind, name, begin_ns, end_ns, **more):
    values = {"step": 0, "value": 0.0, "micro_batch": -1, "peer": -1, "micro_batches": 0, "thread": 0, "flags": 0, "number": 0}
    return Record(begin_ns=begin_ns, end_ns=end_ns, name=NAMES.index(name), kind=kind, **(values | more))


def recording(rank, *records, running=()):
    return Recording(rank, NAMES, records, running, overwritten=0, lost=0, lost_names=0, wall_offset_ns=0)


def found(*recordings, clocks=None):
    return Recordings(0, {each.rank: each for each in recordings}, clocks or {0: ClockOffset.none(0)})


SENT = record(Kind.SEND_ACTIVATIONS, "link", 1000, 3000, value=5.0, micro_batch=2)
AWAITED = record(Kind.WAIT_ACTIVATIONS, "link", 500, 4000, value=5.0, micro_batch=2, peer=0)


def of_phase(trace, *phases):
    return [event for event in trace["traceEvents"] if event["ph"] in phases]


def test_a_rank_is_a_process_with_its_role_and_node(plan):
    trace = trace_of(plan, found(recording(1, record(Kind.FORWARD, "language.0", 2000, 5000, micro_batch=3))))
    names = {event["name"]: event["args"] for event in of_phase(trace, "M")}
    assert names["process_name"] == {"name": f"rank 1 language on {plan.nodes[1].name}"}
    (span,) = of_phase(trace, "X")
    assert (span["name"], span["ts"], span["dur"], span["pid"]) == ("forward language.0", 0.0, 3.0, 1)
    assert span["args"] == {"step": 0, "micro_batch": 3}
    assert trace["metadata"]["ranks_without_recording"] == [0]


def test_an_arrow_leads_from_a_send_to_the_wait_for_it(plan):
    start, end = of_phase(trace_of(plan, found(recording(0, SENT), recording(1, AWAITED))), "s", "f")
    assert (start["pid"], start["ts"], end["pid"], end["ts"], end["bp"]) == (0, 0.5, 1, 3.499, "e")
    assert start["id"] == end["id"]


@pytest.mark.parametrize(
    "other",
    [{"value": 6.0}, {"micro_batch": 1}, {"peer": 1}, {"kind": Kind.WAIT_GRADIENTS}, {"name": NAMES.index("data")}],
    ids=["step", "micro-batch", "sender", "direction", "link"],
)
def test_no_arrow_leads_to_the_wait_for_another_message(plan, other):
    assert of_phase(trace_of(plan, found(recording(0, SENT), recording(1, AWAITED._replace(**other)))), "s", "f") == []


def test_a_message_that_was_sent_twice_has_no_arrow(plan):
    assert of_phase(trace_of(plan, found(recording(0, SENT, SENT), recording(1, AWAITED))), "s", "f") == []


def test_what_came_from_a_second_rank_has_an_arrow_to_the_same_wait(plan):
    arrival = record(Kind.ARRIVAL, "link", 4100, 4100, value=5.0, micro_batch=2, peer=1)
    receiver = recording(1, AWAITED._replace(peer=1), arrival._replace(peer=0))
    ends = of_phase(trace_of(plan, found(recording(0, SENT), receiver)), "f")
    assert [(event["pid"], event["ts"]) for event in ends] == [(1, 3.499)]


def test_times_of_other_nodes_are_on_the_clock_of_node_0(plan):
    clocks = {0: ClockOffset.none(0), 1: ClockOffset(offset_ns=-7 * SECOND, error_ns=2000, measured_ns=7 * SECOND)}
    there = AWAITED._replace(begin_ns=7 * SECOND + 500, end_ns=7 * SECOND + 4000)
    trace = trace_of(plan, found(recording(0, SENT), recording(1, there), clocks=clocks))
    assert [(event["pid"], event["ts"]) for event in of_phase(trace, "X")] == [(0, 0.5), (1, 0.0)]
    assert trace["metadata"]["clock_error_ms"] == {plan.nodes[0].name: 0.0, plan.nodes[1].name: pytest.approx(0.002, rel=0.01)}


def test_where_a_clock_is_unknown_the_times_of_day_decide(plan):
    day = 86_400 * SECOND
    there = AWAITED._replace(begin_ns=day + AWAITED.begin_ns, end_ns=day + AWAITED.end_ns)
    receiver = replace(recording(1, there), wall_offset_ns=recording(0, SENT).wall_offset_ns - day)
    trace = trace_of(plan, found(recording(0, SENT), receiver), last_s=1.0)
    assert [(event["pid"], event["ts"]) for event in of_phase(trace, "X")] == [(0, 0.5), (1, 0.0)]


def test_of_several_tensors_the_arrow_leads_to_the_last_wait(plan):
    second = AWAITED._replace(begin_ns=AWAITED.end_ns, end_ns=AWAITED.end_ns + 1000)
    ends = of_phase(trace_of(plan, found(recording(0, SENT), recording(1, AWAITED, second))), "f")
    assert [event["ts"] for event in ends] == [4.499]


def test_an_unknown_clock_has_an_unknown_error(plan):
    trace = trace_of(plan, found(recording(0, SENT), recording(1, AWAITED)))
    assert trace["metadata"]["clock_error_ms"][plan.nodes[1].name] is None


def test_only_some_steps_and_only_the_last_seconds(plan):
    records = [record(Kind.SPAN, "data", number * SECOND, number * SECOND + 1, step=number) for number in range(20)]
    chosen = of_phase(trace_of(plan, found(recording(0, *records)), steps=range(3, 5)), "X")
    assert [event["args"]["step"] for event in chosen] == [3, 4]
    last = of_phase(trace_of(plan, found(recording(0, *records)), last_s=2.5), "X")
    assert [event["args"]["step"] for event in last] == [17, 18, 19]


def test_the_device_and_further_threads_have_tracks_of_their_own(plan):
    records = [record(Kind.SPAN, "data", 1, 2, thread=3), record(Kind.FORWARD, "vision.0", 1, 2, flags=Flag.DEVICE)]
    trace = trace_of(plan, found(recording(0, *records)))
    threads = {event["tid"]: event["args"]["name"] for event in of_phase(trace, "M") if event["name"] == "thread_name"}
    assert sorted(threads.values()) == ["device", "host", "thread 3"]
    assert {threads[event["tid"]]: event["name"] for event in of_phase(trace, "X")} == {
        "thread 3": "data",
        "device": "forward vision.0",
    }


def test_steps_scalars_failed_and_unfinished_spans(plan):
    records = [
        record(Kind.STEP, "(further names)", 1, 1, step=7),
        record(Kind.SCALAR, "loss", 2, 2, value=0.5),
        record(Kind.SCALAR, "loss", 3, 3, value=math.nan),
        record(Kind.SPAN, "data", 4, 9, flags=Flag.FAILED),
    ]
    running = [record(Kind.WAIT_GRADIENTS, "link", 5, 0, peer=1)]
    trace = trace_of(plan, found(recording(0, *records, running=running)))
    events = {event["name"]: event for event in of_phase(trace, "i", "C", "X", "B")}
    assert (events["step 7"]["ph"], events["step 7"]["s"]) == ("i", "p")
    assert (events["loss"]["ph"], events["loss"]["args"]) == ("C", {"value": 0.5})
    assert events["loss is nan"]["ph"] == "i"
    assert events["data"]["args"] == {"step": 0, "failed": True}
    assert events["wait for gradients link"]["ph"] == "B"
    assert events["wait for gradients link"]["args"] == {"step": 0, "from_rank": 1, "unfinished": True}
    json.dumps(trace, allow_nan=False)


def test_what_is_missing_is_in_the_metadata(plan):
    some = replace(recording(0, SENT), overwritten=10, lost=2, lost_names=3)
    metadata = trace_of(plan, found(some))["metadata"]
    assert [metadata[name] for name in ("records_overwritten", "records_lost", "names_lost")] == [{"0": 10}, {"0": 2}, {"0": 3}]


def test_a_recording_without_records_has_no_events(plan):
    assert of_phase(trace_of(plan, found(recording(0)), last_s=10.0), "X", "B", "i") == []


def test_steps_are_numbers_or_ranges():
    assert [steps_from(None), steps_from("7"), steps_from("40-50")] == [None, range(7, 8), range(40, 51)]
    for wrong in ("", "x", "5-3", "-3", "1-2-3", "٣"):
        with pytest.raises(LaunchError, match=r"--steps .*: give a step or a range"):
            steps_from(wrong)
