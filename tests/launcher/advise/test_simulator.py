"""The times of a step: against a search for the earliest times, and against the formulas of a pipeline."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.advise.simulator import (
    Costs,
    Program,
    StageCost,
    StepShape,
    least_step_time,
    play,
    step_time,
)
from mimo_role import StageId, Topology
from mimo_role.pipeline.stage_graph import StageGraph
from mimo_role.pipeline.timeline import Phase
from mimo_role.topology.stage_links import StageLink
from tests.mimo_role.worlds import topologies

TIMES = st.integers(1, 30).map(float)


def cost(forward_s, backward_s, last_s=None, overhead_s=0.0):
    return StageCost(
        forward_s=forward_s,
        backward_s=backward_s,
        last_backward_s=backward_s if last_s is None else last_s,
        overhead_s=overhead_s,
    )


def costs(stages, *, messages=None, rest=0.0, meets=True):
    modules = {at.module for at in stages}
    return Costs(stages=stages, messages=messages or {}, rests=dict.fromkeys(modules, rest), meets=meets)


def pipeline(stages):
    return StageGraph(Topology.from_modules({"language": {"pp": stages}}, layout="colocated"))


@st.composite
def steps(draw):
    """A graph of stages, the form of its step, and what everything takes."""
    graph = StageGraph(draw(topologies(max_ranks=24)))
    frozen = draw(st.sets(st.sampled_from(list(graph.after)), max_size=3))
    trained = graph.reached_from(graph.after.keys() - frozen)
    shape = StepShape(
        micro_batches=draw(st.integers(1, 6)),
        frozen=frozenset(graph.after.keys() - trained),
        slack=draw(st.integers(0, 2)),
        receives_are_kernels=draw(st.booleans()),
    )
    stages = {at: cost(draw(TIMES), draw(TIMES), draw(TIMES), draw(st.sampled_from([0.0, 1.0]))) for at in graph.after}
    messages = {(link, phase): draw(st.sampled_from([0.0, 1.0, 7.0])) for link in graph.links for phase in Phase}
    return graph, shape, costs(stages, messages=messages, rest=draw(TIMES), meets=draw(st.booleans()))


def earliest_times(program, costs):
    """When each action begins at the earliest, by raising all times until every condition is met.

    An action begins after the one before it on its rank, and once what it receives is there: some time after the sender has
    ended and the receive was posted, which is at the end of the action before the one that `posted` assigns it to. A stage
    without a backward ends when what it sent so many runs ago is there.
    """
    begins = {(rank, action): 0.0 for rank in program.ranks for action in program.own(rank)}
    before, posts = {}, {}
    for rank in program.ranks:
        own = program.own(rank)
        before.update({(rank, later): (rank, earlier) for earlier, later in pairwise(own)})
    for (rank, action), receives in program.receives.posted.items():
        posts.update({(rank, receive): before.get((rank, action)) for receive in receives})

    def sent(node):
        return begins[node] + costs.stages[node[1].at].of(node[1], program.runs[node[1].at])

    def there(rank, receive):
        times = [sent((other, receive.sender)) for other in program.ranks if receive.sender.at in other]
        post = posts[rank, receive]
        times += [free(post)] if post is not None else []
        ends = (receive.sender.at, receive.receiver.at)
        link = StageLink(*ends) if receive.receiver.phase is Phase.FORWARD else StageLink(*reversed(ends))
        return max(times) + costs.messages[link, receive.receiver.phase]

    def free(node):
        _, action = node
        times = [sent(node)]
        if action.phase is Phase.FORWARD and action.at not in program.trained:
            earlier = action._replace(number=action.number - program.limits[action.at])
            for other, inputs in program.receives.inputs.items():
                times += [there(other[0], receive) for receive in inputs if receive.sender == earlier]
        return max(times)

    changed = True
    while changed:
        changed = False
        for (rank, action), begin in begins.items():
            least = [there(rank, receive) for receive in program.receives.inputs[rank, action]]
            if (earlier := before.get((rank, action))) is not None:
                least.append(free(earlier) + costs.stages[action.at].overhead_s)
            if least and max(least) > begin:
                begins[rank, action], changed = max(least), True
    return begins


@given(steps())
@settings(deadline=None, max_examples=60)
def test_each_action_begins_at_the_earliest_time_that_its_conditions_allow(step):
    graph, shape, found = step
    program = Program(graph, shape)
    (played,) = play(program, found)
    assert {(each.rank, each.action): each.begin_s for each in played} == earliest_times(program, found)


@given(steps())
@settings(deadline=None, max_examples=100)
def test_no_step_is_shorter_than_its_lower_bound(step):
    graph, shape, found = step
    assert least_step_time(Program(graph, shape), found) <= step_time(Program(graph, shape), found) * (1 + 1e-9)


@given(st.integers(1, 6), st.integers(0, 8), TIMES, TIMES)
@settings(deadline=None)
def test_equal_stages_have_the_bubble_of_1f1b(stages, more, forward_s, backward_s):
    """Narayanan et al., SC 2021, section 2.2: the bubble is (p - 1) / m of the time without one."""
    graph, micro_batches = pipeline(stages), stages + more
    found = costs({at: cost(forward_s, backward_s) for at in graph.after})
    without = micro_batches * (forward_s + backward_s)
    expected = without * (1 + (stages - 1) / micro_batches)
    shape = StepShape(micro_batches=micro_batches)
    assert math.isclose(step_time(Program(graph, shape), found), expected)
    assert math.isclose(least_step_time(Program(graph, shape), found), expected)


@given(st.integers(1, 8), TIMES, TIMES, TIMES)
@settings(deadline=None)
def test_where_ranks_meet_the_rest_follows_the_slowest(micro_batches, forward_s, backward_s, rest):
    graph = pipeline(1)
    found = costs({StageId("language", 0): cost(forward_s, backward_s)}, rest=rest)
    shape = StepShape(micro_batches=micro_batches)
    assert math.isclose(step_time(Program(graph, shape), found), micro_batches * (forward_s + backward_s) + rest)


def test_a_frozen_encoder_works_beside_the_language_model_of_the_step_before():
    graph = StageGraph(Topology.from_modules({"vision": {}, "language": {}}))
    vision, language = StageId("vision", 0), StageId("language", 0)
    shape = StepShape(micro_batches=4, frozen=frozenset({vision}))
    stages = {vision: cost(3.0, 0.0), language: cost(5.0, 10.0)}
    apart, together = (step_time(Program(graph, shape), costs(stages, rest=1.0, meets=meets)) for meets in (False, True))
    assert apart == pytest.approx(4 * 15 + 1)
    assert together == pytest.approx(3 + 4 * 15 + 1)


def test_a_module_that_runs_two_micro_batches_at_once_has_half_of_the_runs():
    graph = StageGraph(Topology.from_modules({"vision": {}, "language": {}}))
    vision, language = StageId("vision", 0), StageId("language", 0)
    shape = StepShape(micro_batches=4, frozen=frozenset({vision}), per_run={"vision": 2})
    found = costs({vision: cost(2.0, 0.0), language: cost(1.0, 1.0)})
    assert step_time(Program(graph, shape), found) == pytest.approx(2 + 4 * 2)


def test_the_last_backward_of_a_step_may_take_longer():
    graph = pipeline(1)
    found = costs({StageId("language", 0): cost(1.0, 2.0, last_s=5.0)})
    assert step_time(Program(graph, StepShape(micro_batches=3)), found) == 3 * 1 + 2 * 2 + 5
