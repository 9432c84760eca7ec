"""Curves of few points, axes, and shares."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.run_report.curves import MOST_BUCKETS, attempts_begin, buckets_of, curves_of
from launcher.run_report.shares import shares_of
from launcher.run_report.ticks import duration_text, number_text, ticks
from launcher.steps.metrics import ModuleStep, StepMetrics
from tests.launcher.run_report.made_runs import made_steps

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(FINITE, min_size=1, max_size=2_000), st.integers(1, 300))
def test_few_buckets_keep_every_extreme_and_every_step(values, most):
    buckets = buckets_of(list(enumerate(values)), most)
    assert len(buckets) <= most
    assert [step for each in buckets for step in range(each.first, each.last + 1)] == list(range(len(values)))
    for each in buckets:
        part = values[each.first : each.last + 1]
        assert (each.low, each.high) == (min(part), max(part))
        assert each.low <= each.mean <= each.high


@given(FINITE, FINITE, st.integers(1, 10))
def test_ticks_are_within_their_axis_and_not_many(one, other, most):
    low, high = sorted((one, other))
    found = ticks(low, high, most)
    room = (high / 2 - low / 2) * 1e-6 + 5e-324
    assert len(found) <= most + 2
    assert all(low - room <= each <= high + room for each in found)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.123456, "0.1235"), (12345.6, "12,346"), (1.2345e9, "1.234e+09"), (3e-5, "3e-05"), (-4321.0, "-4,321")],
)
def test_a_number_has_four_digits_or_all_before_its_point(value, text):
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0"), (2.5e-4, "250 us"), (0.0125, "12.5 ms"), (3.21, "3.21 s"), (125, "2 min 5 s"), (10_950, "3 h 2 min")],
)
def test_a_duration_has_the_unit_of_its_size(seconds, text):
    assert duration_text(seconds) == text


def test_10_000_steps_are_few_points_and_an_outlier_stays():
    steps = made_steps(10_000)
    by_title = {each.title: each for each in curves_of(steps)}
    assert list(by_title) == ["loss", "lr", "grad norm", "seconds per step", "samples per second", "tokens per second"]
    assert all(len(series.buckets) <= MOST_BUCKETS for each in by_title.values() for series in each.series)
    (seconds,) = by_title["seconds per step"].series
    assert max(bucket.high for bucket in seconds.buckets) == max(each.seconds for each in steps)
    assert [series.name for series in by_title["samples per second"].series] == ["vision", "language"]


def test_a_rate_is_what_a_step_has_over_its_seconds():
    step = StepMetrics(step=1, attempt=0, time=0, seconds=0.5, modules={"language": ModuleStep(compute_s=0.1, tokens=300)})
    (rate,) = [each for each in curves_of([step]) if each.title == "tokens per second"]
    assert [bucket.mean for bucket in rate.series[0].buckets] == [600]


def test_values_that_are_not_finite_and_values_of_any_size_can_be_drawn():
    values = [1e308, -1e308, math.nan, math.inf]
    steps = [StepMetrics(step=at, attempt=0, time=0, seconds=1.0, scalars={"loss": value}) for at, value in enumerate(values)]
    low, high = curves_of(steps)[0].bounds
    assert low < -1e308 < 1e308 < high
    assert math.isfinite(high)


def test_an_attempt_begins_where_its_steps_do():
    assert attempts_begin(made_steps(10, restart_at=6)) == [(6, 1)]


def test_shares_are_of_all_steps_and_what_overlaps_is_scaled():
    def step(seconds, **parts):
        return StepMetrics(step=0, attempt=0, time=0, seconds=seconds, modules={"language": ModuleStep(**parts)})

    (found,) = shares_of([step(1.0, compute_s=0.5), step(3.0, compute_s=0.5, bubble_s=1.0)])
    assert (found.parts["compute_s"], found.parts["bubble_s"], found.rest) == (0.25, 0.25, 0.5)
    (found,) = shares_of([step(1.0, compute_s=1.5, bubble_s=0.5)])
    assert (found.parts["compute_s"], found.rest) == (0.75, 0.0)
    assert shares_of([step(1.0, compute_s=0.0)]) == []
