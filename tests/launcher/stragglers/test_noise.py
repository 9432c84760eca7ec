import math
import random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.stragglers.noise import noise_of


def autoregression(seed, count, sigma, rho):
    generator = random.Random(seed)
    found = [generator.gauss(0, sigma)]
    while len(found) < count:
        found.append(rho * found[-1] + generator.gauss(0, sigma * math.sqrt(1 - rho * rho)))
    return found


@given(st.lists(st.integers(-500, 500), min_size=1, max_size=96), st.integers(-300, 300), st.sampled_from([0.125, 0.5, 2, 8]))
def test_noise_has_the_unit_of_the_numbers_and_no_middle(logs, middle, factor):
    expected = factor * noise_of(logs)
    assert noise_of([factor * log + middle for log in logs]) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("count", [64, 256])
def test_noise_of_independent_numbers_is_their_standard_deviation(count):
    found = [noise_of(autoregression(seed, count, 0.1, 0.0)) for seed in range(200)]
    assert 0.1 <= median(found) < 0.14
    assert sorted(found)[190] < 0.18


@pytest.mark.parametrize("rho", [0.5, 0.8, 0.9])
def test_noise_of_numbers_that_are_alike_is_that_of_their_means(rho):
    """The variance of a mean of n numbers is sigma**2 / n times (1 + rho) / (1 - rho)."""
    expected = 0.1 * math.sqrt((1 + rho) / (1 - rho))
    assert median(noise_of(autoregression(seed, 256, 0.1, rho)) for seed in range(100)) == pytest.approx(expected, rel=0.3)


def test_slow_drifts_under_more_noise_are_found_by_long_batches():
    """Their autocorrelation at lag 1 is small: half of the variance has none."""
    pairs = ((autoregression(seed, 256, 0.1, 0.9), autoregression(-1 - seed, 256, 0.1, 0.0)) for seed in range(100))
    found = median(noise_of([a + b for a, b in zip(*pair, strict=True)]) for pair in pairs)
    assert found == pytest.approx(0.1 * math.sqrt(19 + 1), rel=0.35)


def test_a_few_numbers_far_away_do_not_count_much():
    logs = autoregression(1, 256, 0.1, 0.0)
    before = noise_of(logs)
    logs[40] = logs[90] = logs[200] = 50.0
    assert noise_of(logs) < 1.3 * before
