import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from launcher.steps.node_report import NodeReport, thinned
from launcher.steps.rank_step import ModuleTimes, RankStep

MICROSECONDS = st.integers(0, 10**9).map(lambda each: each / 1e6)
TIMES = st.builds(ModuleTimes, MICROSECONDS, MICROSECONDS, MICROSECONDS, MICROSECONDS)
STEPS = st.builds(
    RankStep,
    rank=st.integers(0, 10_239),
    step=st.integers(0, 10**7),
    ended=st.integers(0, 2**41).map(lambda each: each / 1000),
    seconds=MICROSECONDS,
    last_step=st.integers(0, 10**7),
    modules=st.dictionaries(st.sampled_from(["vision", "language"]), TIMES),
    scalars=st.dictionaries(st.text(max_size=8), st.floats(allow_nan=False, allow_infinity=False), max_size=4),
)


@given(st.lists(STEPS, max_size=6), st.booleans())
def test_a_report_survives_json(steps, is_last):
    report = NodeReport(3, 1, [8, 9], steps, is_last)
    assert NodeReport.from_value(json.loads(json.dumps(report.to_value()))) == report


def test_a_report_of_eight_ranks_that_take_one_step_is_small():
    times = {"language": ModuleTimes(0.812345, 0.101234, 0.001234, 0.012345)}
    steps = [RankStep(rank, 1200, 1795733425.12, 1.234567, 10_000, times, {"loss": 2.25}) for rank in range(8)]
    assert len(json.dumps(NodeReport(0, 0, range(8), steps).to_value(), separators=(",", ":"))) < 800


@given(st.integers(0, 10**6), st.integers(0, 5000), st.integers(1, 1280))
@example(0, 5000, 1)
@example(7, 20_001, 1)
def test_of_fast_steps_those_are_reported_that_a_power_of_two_divides(first, count, nodes):
    steps = [RankStep(0, number, 0.0, 0.0) for number in range(first, first + count)]
    found = [each.step for each in thinned(steps, nodes)]
    most = max(16, min(1000, 20_000 // nodes)) if nodes > 1 else 20_000
    assert len(found) <= most
    stride = found[1] - found[0] if len(found) > 1 else 1
    assert stride & (stride - 1) == 0
    assert count <= most or count // (2 * stride) <= len(found)
    if count <= most:
        assert len(found) == count
    elif len(found) > 1:
        assert all(number % stride == 0 for number in found)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("nodes", [1, 16])
def test_of_steps_with_the_same_number_the_last_one_is_reported(nodes):
    steps = [RankStep(0, 0, float(at), 0.1) for at in range(30_000)]
    assert thinned([*steps, RankStep(0, 1, 40_000.0, 0.1)], nodes) == [steps[-1], RankStep(0, 1, 40_000.0, 0.1)]


def test_samples_tokens_and_memory_are_reported_however_many_scalars_there_are():
    own = {"samples": 8.0, "tokens": 4096.0, "memory/peak_gib": 3.0}
    step = RankStep(0, 1, 0.0, 1.0, scalars={f"loss/{at}": float(at) for at in range(100)} | own)
    (found,) = NodeReport.from_value(NodeReport(0, 0, [0], [step]).to_value()).steps
    assert len(found.scalars) == 32
    assert found.scalars.items() >= {**own, "loss/0": 0.0}.items()
