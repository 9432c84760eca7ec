"""To whom the ranks of a kind send over bridges."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.rehearse.bridge_peers import BridgeMessages, BridgePeers
from launcher.rehearse.kinds import kinds_of
from mimo_role import Topology
from mimo_role.resharding.connections import bridge_pairs, links_at
from mimo_role.topology.lanes import lane_of
from mimo_role.topology.stage_links import StageId, StageLink

LINK = StageLink(StageId("vision", 0), StageId("language", 0))


def sizes(**most):
    return st.fixed_dictionaries({axis: st.integers(1, size) for axis, size in most.items()})


@settings(max_examples=40, deadline=None)
@given(sizes(tp=2, dp=9), sizes(tp=2, dp=9, pp=2), st.booleans())
def test_lanes_of_a_kind_send_to_the_lanes_that_share_their_samples(vision, language, back):
    topology = Topology.from_modules({"vision": vision, "language": language}, layout="non_colocated")

    def lane(rank):
        (module,) = topology.modules_of(rank)
        return module, lane_of(topology.grids[module], rank).number

    def receivers(link, rank):
        return {receiver for sender, receiver in bridge_pairs(topology, [link], rank, back=back) if sender == rank}

    peers = BridgePeers(topology)
    for kind in kinds_of(topology):
        for link in links_at(topology, kind.representative):
            messages = BridgeMessages(link, 0, "back" if back else "forward")
            found = {
                (lane(rank), lane(to))
                for receiver in receivers(link, kind.representative)
                for rank, to in peers.pairs(messages, kind.ranks, kind.representative, receiver)
            }
            assert found == {(lane(rank), lane(receiver)) for rank in kind.ranks for receiver in receivers(link, rank)}


@pytest.mark.parametrize(
    ("recorded", "shown", "modules"),
    [
        ("bridge 0 forward", "vision stage 0 -> language stage 0, forward", ("vision", "language")),
        ("bridge 0 back", "vision stage 0 -> language stage 0, back", ("language", "vision")),
        (
            "bridge 1 forward_among_replicas",
            "vision stage 0 -> language stage 0 tensor 1, forward among replicas",
            ("language", "language"),
        ),
        ("bridge 0 back_among_replicas", "vision stage 0 -> language stage 0, back among replicas", ("vision", "vision")),
    ],
)
def test_messages_are_named_by_the_stages_of_their_bridge(recorded, shown, modules):
    peers = BridgePeers(Topology.from_modules({"vision": {}, "language": {}}, layout="non_colocated"))
    messages = peers.messages_of(recorded)
    assert messages.link == LINK
    assert (str(messages), messages.modules) == (shown, modules)


def test_a_group_is_not_a_bridge():
    peers = BridgePeers(Topology.from_modules({"vision": {}, "language": {}}, layout="non_colocated"))
    assert peers.messages_of("language.tp") is None
