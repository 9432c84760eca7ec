"""How measured costs are scaled to another layout."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.advise.candidates import sizes_of
from launcher.advise.cost_model import LATENCY_S, Assumptions, costs_of
from launcher.advise.measured import Measured, Traffic
from launcher.advise.predictor import Predictor
from launcher.advise.simulator import StageCost, StepShape
from mimo_role import StageId, Topology
from mimo_role.pipeline.stage_graph import StageGraph
from mimo_role.pipeline.timeline import Phase
from mimo_role.topology.stage_links import StageLink

VISION, FIRST, LAST = StageId("vision", 0), StageId("language", 0), StageId("language", 1)
RAN = Topology.from_modules({"vision": {"dp": 4}, "language": {"dp": 2, "pp": 2, "tp": 2}})
MEASURED = Measured(
    topology=RAN,
    shape=StepShape(micro_batches=4),
    destinations={},
    stages={
        VISION: StageCost(forward_s=0.008, backward_s=0.016, last_backward_s=0.016, overhead_s=0.001),
        FIRST: StageCost(forward_s=0.010, backward_s=0.020, last_backward_s=0.026),
        LAST: StageCost(forward_s=0.030, backward_s=0.060, last_backward_s=0.060),
    },
    traffic=Traffic(
        sends={("vision", Phase.FORWARD): 0.0005, ("language", Phase.FORWARD): 0.001},
        messages={
            ("vision", "language", Phase.FORWARD): 0.0005,
            ("vision", "language", Phase.BACKWARD): 0.005,
            ("language", "language", Phase.FORWARD): None,
        },
    ),
    rests={"vision": 0.01, "language": 0.01},
    meets=True,
    step_s=0.5,
    steps=10,
    ranks=12,
    is_known_order=True,
)


def scaled(modules, **assumed):
    topology = Topology.from_modules(modules)
    return costs_of(MEASURED, topology, StageGraph(topology), Assumptions(**assumed))


def test_the_layout_that_ran_costs_what_was_measured():
    costs = costs_of(MEASURED, RAN, StageGraph(RAN), Assumptions())
    with_what_they_send = {VISION: 0.0085, FIRST: 0.011, LAST: 0.030}
    assert costs.stages == {at: replace(MEASURED.stages[at], forward_s=time_s) for at, time_s in with_what_they_send.items()}
    assert (costs.rests, costs.meets) == (MEASURED.rests, True)


def test_computation_scales_with_the_samples_of_a_lane_and_the_rest_does_not():
    costs = scaled({"vision": {"dp": 1}, "language": {"dp": 4, "pp": 2, "tp": 2}})
    assert costs.stages[VISION].forward_s == pytest.approx(4 * 0.008 + 0.0005)
    assert costs.stages[VISION].overhead_s == 0.001
    assert costs.stages[FIRST].forward_s == pytest.approx(0.005 + 0.001)
    assert costs.stages[FIRST].last_backward_s == pytest.approx(0.010 + 0.006)


@pytest.mark.parametrize(
    ("samples", "lanes", "ratio"),
    [pytest.param(None, 3, 4 / 3, id="evenly"), pytest.param(8, 3, 3 / 2, id="3 of 8"), pytest.param(6, 6, 1 / 2, id="1 of 6")],
)
def test_with_the_number_of_samples_the_lane_with_most_of_them_decides(samples, lanes, ratio):
    costs = scaled({"vision": {"dp": lanes}, "language": {"dp": 2, "pp": 2, "tp": 2}}, samples=samples)
    assert costs.stages[VISION].backward_s == pytest.approx(0.016 * ratio)


def test_other_numbers_of_stages_divide_the_module():
    whole = scaled({"vision": {"dp": 4}, "language": {"dp": 4, "tp": 2}})
    assert whole.stages[FIRST].forward_s == pytest.approx(0.040 / 2)
    assert whole.stages[FIRST].last_backward_s == pytest.approx(0.080 / 2 + 0.006)
    uneven = scaled({"vision": {"dp": 4}, "language": {"dp": 2, "pp": 4, "tp": 2}}, layers={"language": 10})
    found = [uneven.stages[StageId("language", stage)].backward_s for stage in range(4)]
    assert found == pytest.approx([0.080 * layers / 10 for layers in (2, 3, 2, 3)])


def test_tp_scales_by_the_given_efficiency():
    costs = scaled({"vision": {"dp": 4}, "language": {"dp": 2, "pp": 2, "tp": 8}}, tp_efficiency={"language": 0.8})
    assert costs.stages[LAST].forward_s == pytest.approx(0.030 / (4 * 0.8**2))
    fewer = scaled({"vision": {"dp": 4}, "language": {"dp": 2, "pp": 2}}, tp_efficiency={"language": 0.8})
    assert fewer.stages[LAST].forward_s == pytest.approx(0.030 * 2 * 0.8)


def test_messages_have_a_latency_that_does_not_scale_and_others_take_the_slowest():
    costs = scaled({"vision": {"dp": 2}, "language": {"dp": 4, "pp": 2, "tp": 2}})
    to_language, within = StageLink(VISION, FIRST), StageLink(FIRST, LAST)
    assert costs.messages[to_language, Phase.FORWARD] == pytest.approx(0.0005)
    assert costs.messages[to_language, Phase.BACKWARD] == pytest.approx(LATENCY_S + 2 * (0.005 - LATENCY_S))
    assert (within, Phase.FORWARD) not in costs.messages
    assert costs.messages[within, Phase.BACKWARD] == pytest.approx(LATENCY_S + 0.5 * (0.005 - LATENCY_S))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8))
def test_a_layout_with_twice_the_lanes_everywhere_takes_half_of_the_time(vision, language, micro_batches):
    free = replace(
        MEASURED,
        topology=Topology.from_modules({"vision": {"dp": vision}, "language": {"dp": language, "pp": 2}}),
        shape=StepShape(micro_batches=micro_batches),
        stages={at: replace(cost, overhead_s=0.0, last_backward_s=cost.backward_s) for at, cost in MEASURED.stages.items()},
        traffic=Traffic(sends={}, messages={}),
        rests={"vision": 0.0, "language": 0.0},
    )
    present = sizes_of(free.topology)
    doubled = {name: replace(sizes, dp=2 * sizes.dp) for name, sizes in present.items()}
    predictor = Predictor(free, Assumptions())
    once, twice = (predictor.play(Topology.from_modules(layout)) for layout in (present, doubled))
    assert twice == pytest.approx(once / 2)
