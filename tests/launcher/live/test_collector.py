import json
from dataclasses import asdict, replace

import pytest

from launcher.config.loader import load
from launcher.live.collector import Attempt, Collector
from launcher.live.view import LiveView, SlowestRank
from launcher.plan.planner import make_plan
from launcher.steps.node_report import NodeReport
from launcher.steps.rank_step import ModuleTimes, RankStep
from launcher.stragglers.detector import StragglerDetector

CONFIG = """
name: two
layout: non_colocated
modules: {vision: {}, language: {dp: 3}}
pools: {a: {nodes: 2, procs_per_node: 2}}
entry: {script: train.py}
"""


@pytest.fixture
def collector(tmp_path):
    (tmp_path / "job.yaml").write_text(CONFIG)
    (tmp_path / "train.py").touch()
    plan = make_plan(load(tmp_path / "job.yaml", [])[0], tmp_path / "job.yaml", ())
    return Collector(Attempt(plan, 1, 900.0, 1.0, {rank: f"node{rank // 2}" for rank in range(4)}))


def report(node, steps, slow=None, attempt=1, *, is_last=False, last_step=0):
    """Steps of a second, in each of which ranks compute 0.2 s, and a slow one 0.3 s."""
    found = []
    for rank in (2 * node, 2 * node + 1):
        name = "language" if rank else "vision"
        times = ModuleTimes(0.3 if rank == slow else 0.2, 0.1, 0.25, 0.0)
        scalars = {"loss": float(rank), "memory/peak_gib": 1.0 + rank, "samples": 8.0}
        found += [RankStep(rank, step, 1000.0 + step, 1.0, last_step, {name: times}, scalars) for step in steps]
    value = NodeReport(node, attempt, [2 * node, 2 * node + 1], found, is_last).to_value()
    return json.loads(json.dumps(value))


def test_a_view_has_what_the_ranks_do_in_their_last_steps(collector):
    for node in range(2):
        collector.add(report(node, range(1, 5), slow=3, last_step=100), 0.0)
    metrics, changed = collector.advance(0.0)
    assert ([each.step for each in metrics], changed) == ([1, 2, 3, 4], [])
    view = collector.view(1004.5)
    assert LiveView.from_json(view.to_json()) == view
    assert (view.run, view.attempt, view.time, view.began, view.world_size, view.recording) == ("two", 1, 1004.5, 900.0, 4, 4)
    assert (view.step, view.total_steps, view.step_s, view.eta_s, view.is_last) == (4, 100, 1.0, 96.0, False)
    assert view.scalars == {"loss": 1.5}
    language = view.modules["language"]
    assert asdict(language) == {
        "ranks": 3,
        "steps_per_s": 1.0,
        "samples_per_s": 24.0,
        "tokens_per_s": None,
        "compute": pytest.approx(0.7 / 3),
        "collectives": pytest.approx(0.1),
        "bridge_wait": pytest.approx(0.25),
        "bubble": 0.0,
        "peak_gib": 4.0,
        "slowest": asdict(SlowestRank(rank=3, label="language.dp2", node="node1", compute_s=0.3)),
    }
    assert view.modules["vision"].slowest.rank == 0


def test_before_the_first_step_there_is_a_view_without_numbers(collector):
    view = collector.view(901.0)
    assert LiveView.from_json(view.to_json()) == view
    assert (view.step, view.step_s, view.eta_s, view.recording, view.scalars) == (None, None, None, 0, {})
    assert view.modules["language"].compute is None


def test_reports_of_another_attempt_are_left_out(collector):
    for node in range(2):
        collector.add(report(node, range(1, 9), attempt=0, is_last=True), 0.0)
    assert collector.advance(0.0) == ([], [])
    assert (collector.has_all, collector.view(0.0).recording) == (False, 0)


def test_a_node_that_is_late_is_waited_for_and_does_not_hold_up_the_end(collector):
    collector.add(report(0, range(1, 4)), 0.0)
    assert collector.advance(0.0)[0] == []
    collector.add(report(1, range(1, 3), is_last=True), 1.0)
    assert [each.step for each in collector.advance(1.0)[0]] == [1, 2]
    collector.add(report(0, [4], is_last=True), 2.0)
    assert collector.has_all
    metrics, _ = collector.advance(2.0, is_over=True)
    assert [each.step for each in metrics] == []
    assert collector.view(3.0, is_last=True).is_last


def test_a_straggler_is_in_the_view_and_in_the_report_of_the_attempt(collector):
    changes = []
    for first in range(1, 60, 10):
        for node in range(2):
            collector.add(report(node, range(first, first + 10), slow=3 if first > 20 else None), 0.0)
        changes += collector.advance(0.0)[1]
    (straggler,) = changes
    assert (straggler.rank, straggler.since_step, straggler.node) == (3, 21, "node1")
    (now,) = collector.view(0.0).stragglers
    assert (now.ratio, now.share) == (pytest.approx(1.5), pytest.approx(0.1))
    assert collector.stragglers == [now]


def test_a_step_that_cannot_be_processed_is_left_out_alone(collector, caplog):
    good, times = report(0, [1, 4]), {"unknown": ModuleTimes(0.1)}
    bad = [RankStep(rank, step, 1000.0, 1.0, 0, times) for rank in (0, 1) for step in (2, 3)]
    for value in (good, NodeReport(0, 1, [0, 1], bad).to_value(), report(1, range(1, 5))):
        collector.add(value, 0.0)
    assert [each.step for each in collector.advance(0.0)[0]] == [1, 4]
    assert [each.getMessage() for each in caplog.records if "step 2 is missing" in each.getMessage()] != []
    assert len(caplog.records) == 1


class Signalled(Exception):  # noqa: N818 (as torchelastic's SignalException)
    """What a signal's handler raises in the main thread, wherever that is."""


def test_a_signal_passes_through_the_processing_of_a_step(collector, monkeypatch):
    def be_signalled(*_):
        raise Signalled

    collector.add(report(0, [1], is_last=True), 0.0)
    collector.add(report(1, [1], is_last=True), 0.0)
    monkeypatch.setattr(StragglerDetector, "add", be_signalled)
    with pytest.raises(Signalled):
        collector.advance(1.0, is_over=True)


def test_numbers_as_large_as_they_get_leave_a_view_that_is_json(collector):
    for node in range(2):
        value = report(node, range(1, 4))
        found = NodeReport.from_value(value)
        steps = [replace(each, scalars={"samples": 1.7e308 / 3, "loss": 1.7e308}) for each in found.steps]
        collector.add(NodeReport(node, 1, found.recording, steps).to_value(), 0.0)
    metrics, _ = collector.advance(0.0)
    text = collector.view(0.0).to_json()
    assert ([each.step for each in metrics], "Infinity" in text) == ([1, 2, 3], False)
