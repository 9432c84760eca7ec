"""What is learned from a rehearsal, of ranks whose costs are known."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.advise.cost_model import Assumptions
from launcher.advise.predictor import Predictor
from launcher.advise.rehearsed import measure_rehearsal
from launcher.advise.simulator import Costs, Program, StageCost, StepShape, step_time
from launcher.errors import LaunchError
from launcher.plan.placement import Node
from mimo_role import ModuleSizes, StageId, Topology
from mimo_role.pipeline.stage_graph import StageGraph
from mimo_role.pipeline.timeline import Phase
from tests.launcher.advise.alone import rehearsed_recordings_of
from tests.mimo_role.worlds import topologies

MODULES = "{vision: {dp: 8}, language: {dp: 4, pp: 2}}"
VISION, FIRST, LAST = StageId("vision", 0), StageId("language", 0), StageId("language", 1)
STAGES = {
    VISION: StageCost(forward_s=0.010, backward_s=0.020, last_backward_s=0.020),
    FIRST: StageCost(forward_s=0.012, backward_s=0.022, last_backward_s=0.022),
    LAST: StageCost(forward_s=0.015, backward_s=0.030, last_backward_s=0.030),
}
COSTS = Costs(stages=STAGES, messages={}, rests={"vision": 0.004, "language": 0.006}, meets=True)
SHAPE = StepShape(micro_batches=5)


@pytest.fixture
def plan(plan_of):
    return plan_of(MODULES)


def test_one_rank_of_each_kind_has_the_costs_of_all_stages(plan):
    recordings = rehearsed_recordings_of(plan.topology, COSTS, SHAPE, send_s=0.002, wait_s=0.0003)
    assert len(recordings.by_rank) < plan.topology.world_size
    found = measure_rehearsal(plan, recordings, meets=True)
    assert (found.steps, found.ranks, found.shape) == (3, len(recordings.by_rank), SHAPE)
    assert (found.is_rehearsed, found.is_known_order) == (True, True)
    assert found.stages[VISION].forward_s == pytest.approx(0.008)
    assert found.stages[LAST].backward_s == pytest.approx(0.028)
    assert found.stages[LAST].overhead_s == pytest.approx(0.0003 / 2)  # it waits before forwards only
    assert found.traffic.sends["language", Phase.BACKWARD] == pytest.approx(0.002)
    assert set(found.traffic.messages.values()) == {None}
    assert found.rests == pytest.approx({"vision": 0.006, "language": 0.006})


def test_ranks_that_do_not_meet_keep_rests_of_their_own(plan):
    found = measure_rehearsal(plan, rehearsed_recordings_of(plan.topology, COSTS, SHAPE), meets=False)
    assert not found.meets
    assert found.rests == pytest.approx({"vision": 0.004, "language": 0.006})


@given(topologies(max_ranks=16), st.integers(2, 5), st.booleans(), st.data())
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_step_of_a_job_is_predicted_from_ranks_that_ran_alone(plan, topology, micro_batches, meets, data):
    graph = StageGraph(topology)
    times = st.integers(5, 30).map(lambda number: number / 1000)
    stages = {}
    for at in graph.after:
        backward_s = data.draw(times)
        stages[at] = StageCost(forward_s=data.draw(times), backward_s=backward_s, last_backward_s=backward_s)
    shape = StepShape(micro_batches=micro_batches)
    known = Costs(stages=stages, messages={}, rests=dict.fromkeys(topology.grids, 0.01), meets=meets)
    plan = replace(plan, topology=topology, nodes=(Node("node0", "local", 0, topology.world_size),))
    found = measure_rehearsal(plan, rehearsed_recordings_of(topology, known, shape), meets=meets)
    predicted_s = Predictor(found, Assumptions()).present_s
    assert predicted_s == pytest.approx(step_time(Program(graph, shape), known), rel=1e-4)


def test_another_layout_is_predicted_from_the_rehearsed_one(plan):
    found = measure_rehearsal(plan, rehearsed_recordings_of(plan.topology, COSTS, SHAPE), meets=True)
    other = {"vision": ModuleSizes(dp=4), "language": ModuleSizes(dp=6, pp=2)}
    topology = Topology.from_modules(other)
    scale = {"vision": 2, "language": 4 / 6}
    stages = {
        at: StageCost(
            forward_s=scale[at.module] * cost.forward_s,
            backward_s=scale[at.module] * cost.backward_s,
            last_backward_s=scale[at.module] * cost.backward_s,
        )
        for at, cost in STAGES.items()
    }
    known = replace(COSTS, stages=stages, rests=dict.fromkeys(other, 0.006))
    expected = step_time(Program(StageGraph(topology), SHAPE), known)
    assert Predictor(found, Assumptions()).predict(other, topology).step_s == pytest.approx(expected, rel=1e-4)


def test_two_steps_are_enough_and_one_is_refused(plan):
    found = measure_rehearsal(plan, rehearsed_recordings_of(plan.topology, COSTS, SHAPE, steps=2), meets=True)
    assert (found.steps, found.rests["vision"]) == (1, pytest.approx(0.006))
    with pytest.raises(LaunchError, match="1 whole training step is recorded; advise needs 2: mimo-launch rehearse --steps 4"):
        measure_rehearsal(plan, rehearsed_recordings_of(plan.topology, COSTS, SHAPE, steps=1), meets=True)
