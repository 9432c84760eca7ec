from collections import defaultdict
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_role import Topology
from mimo_role.pipeline.receive_order import receives_ahead, receives_of, receives_when_sent
from mimo_role.pipeline.stage_graph import StageGraph
from mimo_role.pipeline.timeline import timeline
from tests.mimo_role.worlds import topologies


class Stages:
    """The stages of a step, each on a rank of its own, that compute only when all that they have posted is complete."""

    def __init__(self, graph, actions, trained, order):
        per_run = dict.fromkeys(graph.after, 1)
        self._own = {at: [action for action in actions if action.at == at] for at in graph.after}
        self._receives = {action: list(receives_of(action, graph, {action.at}, trained, per_run)) for action in actions}
        self._before = {}
        for at, own in self._own.items():
            self._before[at] = order({action: self._receives[action] for action in own}, own, actions)
        self._sends = defaultdict(list)
        for receive in chain.from_iterable(self._receives.values()):
            self._sends[receive.sender].append(receive)
        self._sent, self._received = set(), set()

    def run(self):
        """Return the actions that are never executed."""
        at, moved = dict.fromkeys(self._own, 0), True
        posted = dict.fromkeys(self._own, -1)
        while moved:
            moved = False
            for stage, own in self._own.items():
                if at[stage] == len(own):
                    continue
                if posted[stage] < at[stage]:
                    posted[stage] = at[stage]
                    self._received.update(self._before[stage][at[stage]])
                    moved = True
                if self._are_complete(stage, own[at[stage]]):
                    self._sent.update(self._sends[own[at[stage]]])
                    at[stage] += 1
                    moved = True
        return [action for stage, own in self._own.items() for action in own[at[stage] :]]

    def _are_complete(self, stage, action):
        sent = {receive for receive in self._sent if receive.sender.at == stage}
        received = {receive for receive in self._received if receive.receiver.at == stage}
        return sent <= self._received and received <= self._sent and set(self._receives[action]) <= received


@given(topologies(max_ranks=24), st.integers(1, 6), st.integers(0, 3), st.booleans(), st.data())
def test_no_stage_waits_for_ever_where_computing_waits_for_the_device(topology, micro_batches, slack, backward, data):
    graph = StageGraph(topology)
    trained = graph.reached_from(data.draw(st.sets(st.sampled_from(list(graph.after)), min_size=1))) if backward else set()
    frozen = graph.after.keys() - trained
    actions = timeline(graph, micro_batches, frozen=frozen, backward=backward, slack=slack)
    assert Stages(graph, actions, trained, receives_when_sent).run() == []


@pytest.mark.parametrize(("ahead", "executed"), [(0, True), (1, False), (2, False)])
def test_a_stage_that_receives_gradients_before_it_has_sent_waits_for_ever(ahead, executed):
    graph = StageGraph(Topology.from_modules({"vision": {}, "language": {}}))
    actions = timeline(graph, 4, slack=0)

    def order(receives, own, actions):
        return receives_ahead(receives, own, ahead)

    assert (Stages(graph, actions, set(graph.after), order).run() == []) == executed


def test_each_receive_is_posted_once_and_not_after_the_action_that_needs_it():
    graph = StageGraph(Topology.from_modules({"vision": {}, "audio": {}, "language": {"pp": 2}}))
    actions, per_run = timeline(graph, 5), dict.fromkeys(graph.after, 1)
    for at in graph.after:
        own = [action for action in actions if action.at == at]
        receives = {action: list(receives_of(action, graph, {at}, set(graph.after), per_run)) for action in own}
        for found in (
            receives_when_sent(receives, own, actions),
            *(receives_ahead(receives, own, ahead) for ahead in range(3)),
        ):
            position = {receive: number for number, posted in enumerate(found) for receive in posted}
            assert position.keys() == set(chain.from_iterable(receives.values()))
            assert len(position) == sum(map(len, found))
            assert all(own.index(receive.receiver) >= number for receive, number in position.items())
