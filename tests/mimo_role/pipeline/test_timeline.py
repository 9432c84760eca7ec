import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_role import ScheduleError, StageId, Topology
from mimo_role.pipeline.stage_graph import StageGraph
from mimo_role.pipeline.timeline import Action, Phase, run_limits, timeline
from tests.mimo_role.worlds import topologies

FORWARD, BACKWARD = Phase


def shown(actions, at):
    return " ".join(f"{action.phase.name[0]}{action.number}" for action in actions if action.at == at)


def test_an_encoder_before_a_pipeline_alternates_forward_and_backward():
    graph = StageGraph(Topology.from_modules({"vision": {"dp": 2}, "language": {"pp": 2}}))
    actions = timeline(graph, 4, slack=0)
    assert shown(actions, StageId("vision", 0)) == "F0 F1 F2 B0 F3 B1 B2 B3"
    assert shown(actions, StageId("language", 0)) == "F0 F1 B0 F2 B1 F3 B2 B3"
    assert shown(actions, StageId("language", 1)) == "F0 B0 F1 B1 F2 B2 F3 B3"


def test_a_frozen_encoder_has_no_backward():
    graph = StageGraph(Topology.from_modules({"vision": {}, "audio": {}, "language": {}}))
    actions = timeline(graph, 3, frozen=graph.of_modules({"vision"}), slack=0)
    assert shown(actions, StageId("vision", 0)) == "F0 F1 F2"
    assert shown(actions, StageId("audio", 0)) == "F0 F1 B0 F2 B1 B2"


def test_modules_on_the_same_ranks_finish_a_micro_batch_before_the_next():
    graph = StageGraph(Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2}}, layout="colocated"))
    found = [(action.phase.name[0], action.at.module, action.number) for action in timeline(graph, 2)]
    one = [("F", "vision"), ("F", "language"), ("B", "language"), ("B", "vision")]
    assert found == [(*step, micro_batch) for micro_batch in (0, 1) for step in one]


def test_the_graph_has_the_next_stage_of_each_stage():
    graph = StageGraph(Topology.from_modules({"vision": {"pp": 2}, "audio": {}, "language": {"pp": 2}}))
    first = StageId("language", 0)
    assert graph.after[StageId("vision", 0)] == (StageId("vision", 1),)
    assert graph.before[first] == [StageId("vision", 1), StageId("audio", 0)]
    assert graph.after[StageId("language", 1)] == ()
    assert graph.distance == {
        StageId("vision", 0): 3,
        StageId("vision", 1): 2,
        StageId("audio", 0): 2,
        first: 1,
        StageId("language", 1): 0,
    }


@given(topologies(max_ranks=40), st.integers(1, 7), st.integers(0, 2), st.booleans(), st.data())
def test_a_step_is_complete_in_order_and_bounded(topology, micro_batches, slack, backward, data):
    graph = StageGraph(topology)
    trained = data.draw(st.sets(st.sampled_from(list(graph.after)), min_size=1))
    frozen = graph.after.keys() - graph.reached_from(trained)
    actions = timeline(graph, micro_batches, frozen=frozen, backward=backward, slack=slack)
    place = {action: number for number, action in enumerate(actions)}
    goes_back = {at for at in graph.after if backward and at not in frozen}
    assert len(place) == len(actions) == micro_batches * (len(graph.after) + len(goes_back))
    for phase, at, number in actions:
        mine = place[Action(phase, at, number)]
        if number:
            assert place[Action(phase, at, number - 1)] < mine
        if phase is FORWARD:
            assert all(place[Action(FORWARD, before, number)] < mine for before in graph.before[at])
        else:
            assert place[Action(FORWARD, at, number)] < mine
            assert all(place[Action(BACKWARD, after, number)] < mine for after in graph.after[at])
    for at in goes_back:
        held = most = 0
        for action in actions:
            if action.at == at:
                held += 1 if action.phase is FORWARD else -1
                most = max(most, held)
        assert most <= min(micro_batches, graph.distance[at] + 1 + slack)


@given(topologies(max_ranks=40), st.integers(1, 6))
def test_no_set_of_ranks_can_deadlock(topology, micro_batches):
    """Each rank executes its actions in order, each after those it waits for. All ranks complete."""
    graph = StageGraph(topology)
    actions = timeline(graph, micro_batches)
    queues = [[action for action in actions if rank in graph.ranks[action.at]] for rank in range(topology.world_size)]
    done = dict.fromkeys(actions, 0)

    def is_done(action):
        return done[action] == len(graph.ranks[action.at])

    def can_run(action):
        phase, at, number = action
        if phase is FORWARD:
            return all(is_done(Action(FORWARD, before, number)) for before in graph.before[at])
        return all(is_done(Action(BACKWARD, after, number)) for after in graph.after[at])

    moved = True
    while moved:
        moved = False
        for queue in queues:
            while queue and can_run(queue[0]):
                done[queue.pop(0)] += 1
                moved = True
    assert not any(queues)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"micro_batches": 0}, "0 micro-batches; a step has at least one"),
        ({"micro_batches": 1, "slack": -1}, "slack=-1: it is 0 or more"),
    ],
)
def test_invalid_steps_are_refused(arguments, message):
    with pytest.raises(ScheduleError, match=message):
        timeline(StageGraph(Topology.from_modules({"vision": {}, "language": {}})), **arguments)


@st.composite
def runs_per_step(draw, names):
    """A number of micro-batches, and for some modules a number of runs that divides it."""
    count = draw(st.sampled_from([1, 2, 4, 6, 12]))
    sizes = st.sampled_from([size for size in range(1, count + 1) if count % size == 0])
    return count, {name: draw(sizes) for name in draw(st.sets(st.sampled_from(names)))}


@given(topologies(max_ranks=30), st.integers(0, 2), st.data())
def test_modules_that_run_several_micro_batches_at_once_never_wait_for_each_other(topology, slack, data):
    graph = StageGraph(topology)
    count, per_run = data.draw(runs_per_step(list(topology.grids)))
    actions = timeline(graph, count, slack=slack, per_run=per_run)
    sizes = {at: per_run.get(at.module, 1) for at in graph.after}
    assert len(set(actions)) == len(actions) == sum(2 * count // size for size in sizes.values())
    passed = dict.fromkeys(((phase, at) for phase in Phase for at in graph.after), 0)
    in_flight = dict.fromkeys(graph.after, 0)
    for phase, at, number in actions:
        assert number * sizes[at] == passed[phase, at]
        needed = (number + 1) * sizes[at]
        others = graph.before[at] if phase is FORWARD else graph.after[at]
        assert all(passed[phase, other] >= needed for other in others)
        assert phase is FORWARD or passed[FORWARD, at] >= needed
        passed[phase, at] = needed
        in_flight[at] += 1 if phase is FORWARD else -1
        assert in_flight[at] <= run_limits(graph, slack, sizes)[at]


def test_numbers_of_micro_batches_per_run_need_not_divide_each_other():
    graph = StageGraph(Topology.from_modules({"vision": {}, "language": {}, "decoder": {"after": "language"}}))
    assert len(timeline(graph, 12, per_run={"language": 4, "decoder": 3})) == 2 * (12 + 3 + 4)


def test_a_tensor_may_skip_stages():
    topology = Topology.from_modules({"vision": {"pp": 2}, "language": {"pp": 3}})
    to = StageId("language", 2)
    graph = StageGraph(topology, {"vision": {"deep": to, "both": ["language", to]}})
    last, first = StageId("vision", 1), StageId("language", 0)
    assert graph.after[last] == (first, to)
    assert graph.targets(last, "deep") == (to,)
    assert graph.targets(last, "both") == (first, to)
    assert graph.targets(last, "other") == (first,)
    assert graph.before[to] == [last, StageId("language", 1)]
    assert graph.distance[last] == 3


@pytest.mark.parametrize(
    ("destinations", "message"),
    [
        ({"visoin": {}}, "destinations: no module 'visoin'; there are vision, language, decoder"),
        ({"vision": {"a": "decoder"}}, "destinations: 'vision' feeds language, so 'a' cannot go to decoder stage 0"),
        ({"vision": {"a": StageId("language", 1)}}, "'a' of 'vision' goes to language stage 1, but there are 1 stages"),
        ({"decoder": {"a": "language"}}, "destinations: 'decoder' feeds no module, so 'a' cannot go to language stage 0"),
    ],
)
def test_destinations_that_take_nothing_are_refused(destinations, message):
    topology = Topology.from_modules({"vision": {}, "language": {}, "decoder": {"after": "language"}})
    with pytest.raises(ScheduleError, match=message):
        StageGraph(topology, destinations)
