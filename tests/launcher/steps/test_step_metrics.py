import json

import pytest

from launcher.steps.job_steps import JobStep
from launcher.steps.metrics import ModuleStep, read_metrics
from launcher.steps.rank_step import ModuleTimes, RankStep
from launcher.steps.step_metrics import metrics_of
from mimo_role import Topology

TOPOLOGY = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "cp": 2, "dp": 2, "pp": 2}})


def step(rank, *, seconds=1.0, modules=None, **scalars):
    return RankStep(rank, 7, 1000.0 + rank, seconds, 0, modules or {}, scalars)


def metrics(*ranks, topology=TOPOLOGY):
    return metrics_of(topology, 1, JobStep(7, {each.rank: each for each in ranks}))


def test_a_step_has_medians_over_ranks_and_means_of_scalars():
    found = metrics(step(0, loss=1.0, lr=0.5), step(1, seconds=2.0, loss=2.0), step(2, seconds=9.0))
    assert (found.step, found.attempt, found.time, found.seconds) == (7, 1, 1001.0, 2.0)
    assert (found.scalars, found.modules) == ({"loss": 1.5, "lr": 0.5}, {})


def test_of_memory_the_largest_counts():
    found = metrics(step(0, **{"memory/peak_gib": 3.0}), step(1, **{"memory/peak_gib": 1.0}))
    assert found.scalars == {"memory/peak_gib": 3.0}


def test_times_are_means_over_the_ranks_of_a_module():
    one, other = ModuleTimes(0.2, 0.1, 0.4, 0.0), ModuleTimes(0.4, 0.0, 0.2, 0.0)
    found = metrics(step(0, modules={"vision": one}), step(1, modules={"vision": other}))
    assert found.modules == {
        "vision": ModuleStep(compute_s=pytest.approx(0.3), collectives_s=0.05, bridge_wait_s=pytest.approx(0.3))
    }


def test_samples_and_tokens_count_once_per_lane_on_the_first_stage_that_has_them():
    grid = TOPOLOGY.grids["language"]
    first, last = grid.rank_at({"pp": 0}), grid.rank_at({"pp": 1})
    ranks = [step(rank, samples=1.0 + grid.coords(rank)["dp"], tokens=10.0) for rank in range(first, first + 8)]
    ranks += [step(rank, samples=100.0) for rank in range(last, last + 8)]
    found = metrics(*ranks, step(0, samples=5.0), step(1, samples=6.0))
    assert found.modules["language"] == ModuleStep(compute_s=0.0, samples=3.0, tokens=20.0)
    assert found.modules["vision"] == ModuleStep(compute_s=0.0, samples=11.0)
    assert found.scalars == {}


def test_numbers_as_large_as_they_get_are_written():
    text = metrics(step(0, loss=1.7e308), step(1, loss=1.7e308)).to_json()
    assert json.loads(text)["scalars"]["loss"] == pytest.approx(1.7e308)


def test_totals_that_are_not_finite_are_left_out():
    found = metrics(*(step(rank, samples=1.7e308, tokens=3.0, loss=1.7976931348623157e308) for rank in (0, 1)))
    assert found.modules["vision"] == ModuleStep(compute_s=0.0, samples=None, tokens=6.0)
    assert json.loads(found.to_json())["modules"]["vision"]["samples"] is None


def test_the_duration_of_a_step_is_of_the_ranks_where_it_is_known():
    assert metrics(step(0, seconds=0.0, loss=1.0), step(1, seconds=2.0)).seconds == 2.0
    found = metrics(step(0, seconds=0.0, loss=1.0))
    assert found.seconds is None
    assert read_metrics([found.to_json()]) == [found]
