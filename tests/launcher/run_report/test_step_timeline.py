"""One step of recordings that are made here."""

from itertools import pairwise

import pytest

from launcher.coordination.clock_offset import ClockOffset
from launcher.run_report import step_timeline
from launcher.run_report.step_timeline import Category, last_complete_step, ranks_to_read, timeline_of
from launcher.trace.recordings import Recordings, load
from mimo_role.monitoring.records import Flag, Kind, Record, Recording
from tests.launcher.run_report.made_runs import LARGE, MEDIUM, SMALL, plan_in, write_run

NAMES = ["(further names)", "vision.0", "link", "data"]
US = 1_000


def record(kind, begin_us, end_us, *, name="data", step=3, **more):
    values = {"value": 0.0, "micro_batch": -1, "peer": -1, "micro_batches": 0, "thread": 0, "flags": 0, "number": 0}
    return Record(begin_ns=begin_us * US, end_ns=end_us * US, name=NAMES.index(name), kind=kind, step=step, **(values | more))


def recording(rank, *records, running=()):
    return Recording(rank, NAMES, records, running, overwritten=0, lost=0, lost_names=0, wall_offset_ns=0)


def found(*recordings, clocks=None):
    return Recordings(1, {each.rank: each for each in recordings}, clocks or {0: ClockOffset.none(0)})


def begun(*steps):
    return [record(Kind.STEP, step, step, step=step) for step in steps]


@pytest.mark.parametrize(
    ("ranks", "step"),
    [
        pytest.param([[1, 2, 3], [1, 2, 3]], 2, id="the last but one is complete"),
        pytest.param([[1, 2, 3], [1, 2]], 1, id="a rank that lags behind"),
        pytest.param([[1, 2, 3], [3]], 3, id="the only step that all have"),
        pytest.param([[1, 2, 3], []], 2, id="a rank without steps does not count"),
        pytest.param([[1], [2]], None, id="no step in common"),
        pytest.param([[], []], None, id="no steps"),
    ],
)
def test_a_step_is_complete_when_all_ranks_have_begun_the_next(ranks, step):
    recordings = found(*(recording(rank, *begun(*steps)) for rank, steps in enumerate(ranks)))
    assert last_complete_step(recordings) == step


def test_spans_lie_on_one_clock_from_the_first_record_of_the_step(tmp_path):
    plan = plan_in(tmp_path, MEDIUM)
    clocks = {0: ClockOffset.none(0), 2: ClockOffset(offset_ns=-500 * US, error_ns=0, measured_ns=0)}
    recordings = found(
        recording(0, record(Kind.STEP, 100, 100), record(Kind.SPAN, 110, 150), record(Kind.SPAN, 900, 950, step=4)),
        recording(16, record(Kind.WAIT_ACTIVATIONS, 600, 680, name="link", peer=0, micro_batch=2)),
        clocks=clocks,
    )
    timeline = timeline_of(plan, recordings, 3)
    assert (timeline.duration_us, timeline.attempt) == (80, 1)
    assert [(row.rank, row.label, row.track) for row in timeline.rows] == [
        (0, "vision.dp0.tp0", "host"),
        (16, "language.pp0.dp0.tp0", "host"),
    ]
    data, wait = (row.spans[0] for row in timeline.rows)
    assert (data.begin_us, data.duration_us, data.title) == (10, 40, "data")
    assert (wait.begin_us, wait.duration_us, wait.category, wait.peer, wait.micro_batch) == (0, 80, Category.WAIT, 0, 2)
    assert timeline.notes == ("62 ranks recorded nothing in this step.",)


def test_inner_spans_are_deeper_and_the_device_has_a_row_of_its_own(tmp_path):
    forward = record(Kind.FORWARD, 0, 100, name="vision.0")
    send = record(Kind.SEND_ACTIVATIONS, 40, 60, name="link")
    after = record(Kind.BACKWARD, 100, 200, name="vision.0")
    on_device = forward._replace(flags=Flag.DEVICE)
    timeline = timeline_of(plan_in(tmp_path, SMALL), found(recording(0, send, forward, after, on_device)), 3)
    host, device = timeline.rows
    assert [(span.title, span.depth) for span in host.spans] == [
        ("forward vision.0", 0),
        ("send activations link", 1),
        ("backward vision.0", 0),
    ]
    assert (device.track, len(device.spans)) == ("device", 1)


def test_what_failed_and_what_never_ended_is_marked(tmp_path):
    failed = record(Kind.SPAN, 10, 20, flags=Flag.FAILED)
    hangs = record(Kind.SPAN, 30, 0)
    timeline = timeline_of(
        plan_in(tmp_path, SMALL), found(recording(0, failed, running=[hangs]), recording(1, record(Kind.SPAN, 0, 90))), 3
    )
    first, second = timeline.rows[0].spans
    assert (first.note, second.note, second.begin_us, second.duration_us) == ("failed", "unfinished", 30, 60)


def test_a_step_without_spans_has_no_timeline(tmp_path):
    plan = plan_in(tmp_path, SMALL)
    assert timeline_of(plan, found(recording(0, *begun(3))), 3) is None
    assert timeline_of(plan, found(recording(0, record(Kind.SPAN, 0, 1))), 7) is None


def test_of_10_240_ranks_some_of_each_stage_are_read_and_two_are_shown(tmp_path):
    plan = plan_in(tmp_path, LARGE)
    ranks = ranks_to_read(plan, [5003, 99_999])
    assert 5003 in ranks
    assert len(ranks) < 200
    run_dir, _ = write_run(tmp_path, LARGE, recorded=ranks)
    timeline = timeline_of(plan, load(run_dir, plan, ranks=ranks, steps=[4]), 4, [5003])
    by_remark = {}
    for row in timeline.rows:
        by_remark.setdefault(row.remark.split(" of ")[0], []).append(row.rank)
    assert by_remark.keys() == {"typical", "slowest", "reported"}
    assert by_remark["reported"] == [5003]
    stages = {plan.topology.label_of(rank).split(".dp")[0] for rank in by_remark["typical"]}
    assert stages == {"vision", "audio", *(f"language.pp{stage}" for stage in range(16))}
    assert timeline.notes[0].startswith(f"Of 10,240 ranks, the recordings of {len(ranks)} were read.")


def test_the_slowest_rank_of_a_stage_is_the_one_that_computes_longest(tmp_path):
    plan = plan_in(tmp_path, LARGE)
    lengths = {0: 50, 2: 70, 4: 60}
    recordings = found(*(recording(rank, record(Kind.FORWARD, 0, us, name="vision.0")) for rank, us in lengths.items()))
    rows = timeline_of(plan, recordings, 3).rows
    assert {row.rank: row.remark for row in rows} == {4: "typical", 2: "slowest of 3 read"}


def test_of_too_many_spans_the_shortest_are_left_out_with_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr(step_timeline, "MOST_SPANS", 3)
    times = [0, 10, 40, 45, 60, 100]
    spans = [record(Kind.SPAN, begin, end) for begin, end in pairwise(times)]
    timeline = timeline_of(plan_in(tmp_path, SMALL), found(recording(0, *spans)), 3)
    assert [span.duration_us for span in timeline.rows[0].spans] == [30, 15, 40]
    assert timeline.notes[-1].startswith("2 spans shorter than 11 us are left out")
