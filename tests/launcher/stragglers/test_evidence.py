import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.stragglers.evidence import LEAST_RATIO, Evidence

NOISE = 0.07
"""Of the logarithm of a ratio, as that of two ranks that vary by 5 % each."""


def events(logs, share=0.3):
    """What happens by step: a pair of the step in which it is seen, and the evidence's own step."""
    evidence, found = Evidence(), []
    for step, log in enumerate(logs):
        if evidence.add(step, log, share):
            found.append((step, evidence.since_step if evidence.is_slow else evidence.until_step, evidence.is_slow))
    return found


def noise(seed, count, sigma=NOISE):
    generator = random.Random(seed)
    return [generator.gauss(0, sigma) for _ in range(count)]


def shifted(logs, ratio, begin, end=None):
    return [log + (math.log(ratio) if begin <= step < (end or len(logs)) else 0) for step, log in enumerate(logs)]


@given(st.integers(0, 10**6), st.integers(40, 400), st.floats(1.3, 10))
def test_a_rank_that_becomes_slower_by_30_percent_is_found_within_20_steps(seed, begin, ratio):
    (seen, since, is_slow), *_ = events(shifted(noise(seed, begin + 20), ratio, begin))
    assert is_slow
    assert begin <= seen < begin + 20
    assert begin - 20 <= since <= begin + 3


@given(st.integers(0, 10**6), st.floats(1.3, 10), st.integers(20, 300))
def test_the_end_is_found_too_and_the_next_beginning(seed, ratio, slow_steps):
    again = 100 + slow_steps + 300
    logs = shifted(shifted(noise(seed, again + 200), ratio, 100, 100 + slow_steps), ratio, again)
    first, end, second, *_ = events(logs)
    assert (first[2], end[2], second[2]) == (True, False, True)
    assert -5 <= end[1] - 100 - slow_steps <= 20
    assert end[0] <= end[1] + 60
    assert again - 20 <= second[1] <= again + 5


@given(st.integers(0, 10**6))
def test_one_that_is_slow_from_the_beginning_is_found(seed):
    ((seen, since, _),) = events(shifted(noise(seed, 80), 1.3, 0))
    assert seen < 60
    assert since <= 8


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.2, 0.5])
def test_noise_is_no_slowdown(sigma):
    assert all(events(noise(seed, 10_000, sigma)) == [] for seed in range(3))


def test_heavy_tails_are_no_slowdown():
    generator = random.Random(2)
    assert events([math.log(generator.paretovariate(3) / generator.paretovariate(3)) for _ in range(10_000)]) == []


@given(st.integers(0, 10**6), st.floats(2, 100))
def test_pauses_of_a_step_or_a_few_are_no_slowdown(seed, size):
    logs = noise(seed, 1000)
    for begin, length in ((30, 1), (60, 5), (200, 9), (500, 8), (700, 9)):
        logs[begin : begin + length] = [log + math.log(size) for log in logs[begin : begin + length]]
    assert events(logs) == []


def test_more_noise_needs_more_evidence():
    quiet, noisy = (
        next(seen for seen, _, _ in events(shifted(noise(1, 900, sigma), 1.6, 300)) if seen >= 300) for sigma in (0.05, 0.35)
    )
    assert quiet < 320 < noisy < 700


@given(st.floats(1.0, LEAST_RATIO - 0.01))
def test_a_difference_that_is_too_small_is_not_reported(ratio):
    assert events([math.log(ratio)] * 2000) == []


def test_what_costs_too_little_is_not_reported():
    assert events([math.log(3)] * 200, share=0.005) == []
    assert len(events([math.log(3)] * 200, share=0.02)) == 1


def correlated(generator, count, sigma, rho):
    """A first-order autoregression."""
    found = [generator.gauss(0, sigma)]
    while len(found) < count:
        found.append(rho * found[-1] + generator.gauss(0, sigma * math.sqrt(1 - rho * rho)))
    return found


@pytest.mark.parametrize("sigma", [0.1, 0.2])
def test_correlated_noise_is_rarely_a_slowdown(sigma):
    """Two ranks in 1,500 steps, 20 times; without their correlation, 12 of 20 have alarms at 0.2."""
    alarms = 0
    for seed in range(20):
        generator = random.Random(seed)
        one, other = (correlated(generator, 1500, sigma, 0.9) for _ in range(2))
        alarms += events([a - b for a, b in zip(one, other, strict=True)]) != []
    assert alarms <= 2


@given(st.integers(0, 10**6), st.floats(1.5, 10), st.integers(2, 4))
def test_more_work_in_every_second_step_or_fewer_is_no_slowdown(seed, ratio, every):
    logs = [log + (math.log(ratio) if step % every == 0 else 0) for step, log in enumerate(noise(seed, 600, 0.04))]
    assert events(logs) == []


def test_a_slowdown_after_work_in_every_second_step_is_found():
    logs = [log + (math.log(4) if step % 2 == 0 and step < 300 else 0) for step, log in enumerate(noise(1, 900, 0.04))]
    ((seen, since, _),) = events(shifted(logs, 2, 600))
    assert 600 <= seen < 640
    assert abs(since - 600) <= 3


@pytest.mark.parametrize(("begin", "expected"), [(0, True), (60, False)])
def test_it_is_known_whether_a_rank_is_slow_from_the_start(begin, expected):
    for seed in range(20):
        evidence = Evidence()
        for step, log in enumerate(shifted(noise(seed, begin + 60), 1.4, begin)):
            evidence.add(step, log, 0.3)
        assert evidence.is_slow
        assert evidence.is_from_start is expected
