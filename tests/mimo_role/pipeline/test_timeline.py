import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_role import ScheduleError, Topology
from mimo_role.pipeline.stage_graph import StageGraph, StageId
from mimo_role.pipeline.timeline import Action, Phase, timeline
from tests.mimo_role.worlds import topologies

FORWARD, BACKWARD = Phase


def shown(actions, at):
    return " ".join(f"{action.phase.name[0]}{action.micro_batch}" for action in actions if action.at == at)


def test_an_encoder_before_a_pipeline_alternates_forward_and_backward():
    graph = StageGraph(Topology.from_modules({"vision": {"dp": 2}, "language": {"pp": 2}}))
    actions = timeline(graph, 4, slack=0)
    assert shown(actions, StageId("vision", 0)) == "F0 F1 F2 B0 F3 B1 B2 B3"
    assert shown(actions, StageId("language", 0)) == "F0 F1 B0 F2 B1 F3 B2 B3"
    assert shown(actions, StageId("language", 1)) == "F0 B0 F1 B1 F2 B2 F3 B3"


def test_a_frozen_encoder_has_no_backward():
    graph = StageGraph(Topology.from_modules({"vision": {}, "audio": {}, "language": {}}))
    actions = timeline(graph, 3, frozen={"vision"}, slack=0)
    assert shown(actions, StageId("vision", 0)) == "F0 F1 F2"
    assert shown(actions, StageId("audio", 0)) == "F0 F1 B0 F2 B1 B2"


def test_modules_on_the_same_ranks_finish_a_micro_batch_before_the_next():
    graph = StageGraph(Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2}}, layout="colocated"))
    found = [(action.phase.name[0], action.at.module, action.micro_batch) for action in timeline(graph, 2)]
    one = [("F", "vision"), ("F", "language"), ("B", "language"), ("B", "vision")]
    assert found == [(*step, micro_batch) for micro_batch in (0, 1) for step in one]


def test_the_graph_has_the_next_stage_of_each_stage():
    graph = StageGraph(Topology.from_modules({"vision": {"pp": 2}, "audio": {}, "language": {"pp": 2}}))
    first = StageId("language", 0)
    assert graph.after[StageId("vision", 0)] == StageId("vision", 1)
    assert graph.before[first] == [StageId("vision", 1), StageId("audio", 0)]
    assert graph.after[StageId("language", 1)] is None
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
    frozen = data.draw(st.sets(st.sampled_from(topology.modality_module_names)))
    actions = timeline(graph, micro_batches, frozen=frozen, backward=backward, slack=slack)
    place = {action: number for number, action in enumerate(actions)}
    goes_back = {at for at in graph.after if backward and at.module not in frozen}
    assert len(place) == len(actions) == micro_batches * (len(graph.after) + len(goes_back))
    for phase, at, number in actions:
        mine = place[Action(phase, at, number)]
        if number:
            assert place[Action(phase, at, number - 1)] < mine
        if phase is FORWARD:
            assert all(place[Action(FORWARD, before, number)] < mine for before in graph.before[at])
        else:
            assert place[Action(FORWARD, at, number)] < mine
            after = graph.after[at]
            assert after is None or place[Action(BACKWARD, after, number)] < mine
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
        return graph.after[at] is None or is_done(Action(BACKWARD, graph.after[at], number))

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
        ({"micro_batches": 1, "frozen": {"language"}}, "frozen: 'language' is not a modality module; there are vision"),
        ({"micro_batches": 1, "frozen": {"visoin"}}, "frozen: 'visoin' is not a modality module; there are vision"),
    ],
)
def test_invalid_steps_are_refused(arguments, message):
    with pytest.raises(ScheduleError, match=message):
        timeline(StageGraph(Topology.from_modules({"vision": {}, "language": {}})), **arguments)
