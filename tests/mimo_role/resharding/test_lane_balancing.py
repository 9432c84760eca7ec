from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_role import balanced_lanes


def busiest(costs, assigned, lanes):
    return max(sum(cost for cost, lane in zip(costs, assigned, strict=True) if lane == at) for at in range(lanes))


@given(st.lists(st.integers(0, 20), max_size=7), st.integers(1, 3))
def test_the_busiest_lane_is_within_grahams_bound_of_the_best_there_is(costs, lanes):
    best = min(busiest(costs, assigned, lanes) for assigned in product(range(lanes), repeat=len(costs)))
    assert busiest(costs, balanced_lanes(costs, lanes), lanes) <= (4 / 3 - 1 / (3 * lanes)) * best + 1e-9


@given(st.lists(st.floats(0, 1e6), max_size=40), st.integers(1, 9))
def test_every_sample_has_a_lane_and_the_assignment_is_deterministic(costs, lanes):
    assigned = balanced_lanes(costs, lanes)
    assert len(assigned) == len(costs)
    assert set(assigned) <= set(range(lanes))
    assert balanced_lanes(list(costs), lanes) == assigned


def test_samples_without_cost_are_distributed_over_the_lanes():
    assert sorted(balanced_lanes([0.0] * 6, 3)) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("costs", "lanes", "message"),
    [([1.0], 0, "lanes=0; use 1 or more"), ([1.0, -1.0], 2, r"costs\[1\]=-1.0"), ([float("nan")], 2, "a cost is 0")],
)
def test_invalid_costs_are_refused(costs, lanes, message):
    with pytest.raises(ValueError, match=message):
        balanced_lanes(costs, lanes)
