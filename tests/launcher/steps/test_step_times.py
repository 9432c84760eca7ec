import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.steps.rank_step import ModuleTimes
from launcher.steps.span_names import SpanNames
from launcher.steps.step_times import StepTimes
from mimo_role import Topology
from mimo_role.monitoring.records import Kind
from mimo_role.topology.stage_links import stage_links
from tests.launcher.steps.recordings import Written

TOPOLOGY = Topology.from_modules({"vision": {}, "language": {"pp": 2}})
NAMES = SpanNames(TOPOLOGY)
VISION = "vision stage 0 -> language stage 0"
WITHIN = "language stage 0 -> language stage 1"


def approx(**seconds):
    return pytest.approx(ModuleTimes(**seconds), abs=1e-9)


def first_of(written, **more):
    times = StepTimes(1, NAMES)
    found = times.add(written.step(8, 1000).take(**more))
    assert [each.step for each in found] == [7]
    return found[0]


def test_a_step_is_from_one_beginning_to_the_next():
    found = first_of(Written().step(7, 100, last=500))
    assert (found.rank, found.step, found.seconds, found.ended, found.last_step) == (1, 7, 0.9, 1.0, 500)
    assert (found.modules, found.scalars) == ({}, {})


def test_what_is_nested_in_forwards_and_backwards_is_no_computation():
    written = Written().step(7, 0)
    written.span(Kind.SEND_ACTIVATIONS, WITHIN, 90, 100).span(Kind.FORWARD, "language.0", 20, 100)
    written.span(Kind.WAIT_SENT, "language.0", 200, 230).span(Kind.SEND_GRADIENTS, VISION, 295, 300)
    written.span(Kind.BACKWARD, "language.0", 200, 300)
    found = first_of(written)
    assert found.modules == {"language": approx(compute_s=0.135, bubble_s=0.03)}
    assert found.compute_s == pytest.approx(0.135)


def test_a_collective_counts_where_it_is_within_computation_and_once():
    written = Written().step(7, 0)
    written.span(Kind.COLLECTIVE, "language.tp", 30, 50).span(Kind.COLLECTIVE, "language.tp", 40, 60)
    written.span(Kind.SEND_ACTIVATIONS, WITHIN, 55, 70).span(Kind.FORWARD, "language.0", 0, 100)
    written.span(Kind.COLLECTIVE, "language.dp", 90, 500)
    assert first_of(written).modules == {"language": approx(compute_s=0.05, collectives_s=0.04)}


def test_waits_are_of_the_module_that_waits_and_for_others_or_its_own_stages():
    written = Written().step(7, 0)
    written.span(Kind.WAIT_ACTIVATIONS, VISION, 0, 10).span(Kind.WAIT_GRADIENTS, VISION, 10, 30)
    written.span(Kind.WAIT_ACTIVATIONS, WITHIN, 30, 70).span(Kind.WAIT_GRADIENTS, WITHIN, 70, 150)
    written.span(Kind.WAIT_SENT, "vision.0", 150, 151)
    assert first_of(written).modules == {
        "language": approx(bridge_wait_s=0.01, bubble_s=0.12),
        "vision": approx(bridge_wait_s=0.021),
    }


def test_a_rank_with_several_modules_has_times_of_each():
    names = SpanNames(Topology.from_modules({"vision": {}, "language": {}}, layout="colocated"))
    written = Written().step(0, 0).span(Kind.FORWARD, "vision.0", 0, 10).span(Kind.FORWARD, "language.0", 10, 40)
    (found,) = StepTimes(0, names).add(written.step(1, 50).take())
    assert found.modules == {"vision": approx(compute_s=0.01), "language": approx(compute_s=0.03)}


def test_times_of_a_device_replace_the_hosts_and_may_be_recorded_a_step_late():
    written, times = Written().step(7, 0), StepTimes(0, NAMES)
    written.span(Kind.FORWARD, "vision.0", 0, 1).span(Kind.FORWARD, "vision.0", 5, 45, device=True)
    written.step(8, 100).span(Kind.BACKWARD, "vision.0", 50, 80, device=True, step=7).scalar("loss", 2.0, step=7)
    assert times.add(written.take()) == []
    written.span(Kind.FORWARD, "vision.0", 100, 101)
    (found,) = times.add(written.step(9, 200).take())
    assert (found.step, found.seconds, found.scalars) == (7, 0.1, {"loss": 2.0})
    assert found.modules == {"vision": approx(compute_s=0.07)}
    assert [each.step for each in times.finish(is_clean=True)] == [8]


def test_the_last_scalar_counts_and_one_that_is_not_finite_is_left_out():
    written = Written().step(7, 0).scalar("loss", 3.0).scalar("loss", 2.0).scalar("norm", 1.0).scalar("norm", math.nan)
    assert first_of(written).scalars == {"loss": 2.0}


def test_what_has_a_name_that_the_ring_has_no_room_for_is_left_out():
    assert first_of(Written().step(7, 0).scalar("loss", 3.0).scalar("(further names)", 2.0)).scalars == {"loss": 3.0}


def test_the_last_step_ends_with_its_last_span():
    times = StepTimes(0, NAMES)
    written = Written().step(7, 100).span(Kind.SPAN, "save", 100, 350).scalar("loss", 1.0, 400)
    assert times.add(written.take()) == []
    (found,) = times.finish(is_clean=True)
    assert (found.step, found.seconds, found.ended) == (7, 0.25, 0.35)
    assert times.finish(is_clean=True) == []


@pytest.mark.parametrize(
    ("written", "steps"),
    [
        pytest.param(Written().step(7, 100).scalar("loss", 1.0, 100.05), [(7, 0.0, {"loss": 1.0})], id="scalars"),
        pytest.param(Written().step(7, 100), [], id="nothing"),
    ],
)
def test_a_last_step_without_spans_has_no_duration_and_needs_scalars(written, steps):
    times = StepTimes(0, NAMES)
    times.add(written.take())
    assert [(each.step, each.seconds, each.scalars) for each in times.finish(is_clean=True)] == steps


def test_a_rank_that_fails_leaves_no_unfinished_step():
    written, times = Written().step(7, 0), StepTimes(0, NAMES)
    written.span(Kind.FORWARD, "vision.0", 5, 45, device=True).step(8, 100).span(Kind.FORWARD, "vision.0", 100, 140)
    assert times.add(written.take()) == []
    assert [each.step for each in times.finish(is_clean=False)] == [7]


def test_a_step_of_which_records_are_missing_is_left_out():
    written, times = Written().step(7, 0), StepTimes(0, NAMES)
    times.add(written.take())
    written.span(Kind.FORWARD, "vision.0", 0, 1).step(8, 10).step(9, 20)
    assert [each.step for each in times.add(written.take(overwritten=3))] == [8]


def test_what_is_recorded_before_the_first_step_belongs_to_none():
    times = StepTimes(0, NAMES)
    assert not times.has_records
    written = Written().scalar("parameters", 1e9).step(1, 5)
    assert times.add(written.step(2, 10).take())[0].scalars == {}
    assert times.has_records


def test_names_that_a_ring_cuts_are_known():
    name = "m" * 30
    topology = Topology.from_modules({name: {}, "language": {"pp": 2}})
    cut = str(stage_links(topology)[1])[:64]
    written = Written().step(7, 0).span(Kind.WAIT_ACTIVATIONS, cut, 0, 10)
    (found,) = StepTimes(1, SpanNames(topology)).add(written.step(8, 20).take())
    assert found.modules == {"language": approx(bridge_wait_s=0.01)}


@given(st.lists(st.integers(1, 30), max_size=8))
def test_it_does_not_matter_how_often_records_are_read(sizes):
    def whole():
        written = Written()
        for step in range(6):
            at = 100 * step
            written.step(step, at, last=9).span(Kind.WAIT_ACTIVATIONS, VISION, at, at + 5)
            written.span(Kind.SEND_ACTIVATIONS, WITHIN, at + 20, at + 25).span(Kind.FORWARD, "language.0", at + 5, at + 30)
            written.scalar("loss", float(step), at + 30)
        return written

    at_once, in_parts = StepTimes(0, NAMES), StepTimes(0, NAMES)
    expected = [*at_once.add(whole().take()), *at_once.finish(is_clean=True)]
    written, found = whole(), []
    for size in sizes:
        found += in_parts.add(written.take(size))
    assert [*found, *in_parts.add(written.take()), *in_parts.finish(is_clean=True)] == expected
