"""Places in the pipeline, numbers of micro-batches and rows of cp ranks, as the pipeline communicator computes them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mimo_role import BridgeError, ScheduleError, TokenSplit, Topology
from mimo_role.megatron.cp_parts import rows_by_cp
from mimo_role.megatron.micro_batch_count import MicroBatchCount
from mimo_role.megatron.module_bridges import CrossingOptions
from mimo_role.megatron.pipeline_depth import depth_of, total_depth
from mimo_role.megatron.token_counts import set_token_counts, token_counts
from mimo_role.monitoring.heartbeat import Heartbeat
from mimo_role.pipeline.stage_graph import StageGraph
from mimo_role.resharding.endpoint import Endpoint, Place
from mimo_role.resharding.samples import Samples
from mimo_role.topology.stage_links import StageId
from tests.mimo_role.worlds import topologies

WORLD = Topology.from_modules({"vision": {"pp": 2}, "depth": {"after": "vision"}, "audio": {}, "language": {"pp": 2}})


def test_places_are_those_of_the_longest_way():
    places = {at: depth_of(WORLD, at) for at in StageGraph(WORLD).after}
    assert total_depth(WORLD) == 5
    assert places == {
        StageId("vision", 0): 0,
        StageId("vision", 1): 1,
        StageId("depth", 0): 2,
        StageId("audio", 0): 0,
        StageId("language", 0): 3,
        StageId("language", 1): 4,
    }


@given(topologies())
def test_every_stage_comes_after_those_that_feed_it_and_has_enough_stages_after_it(topology):
    graph = StageGraph(topology)
    for link in graph.links:
        assert depth_of(topology, link.source) < depth_of(topology, link.target)
    for at, distance in graph.distance.items():
        assert total_depth(topology) - 1 - depth_of(topology, at) >= distance


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 3))
def test_micro_batches_are_numbered_as_the_schedule_runs_them(most, micro_batches, steps):
    """The order of calls of Megatron-Core's 1F1B on a rank with `most - 1` micro-batches of warm-up."""
    count = MicroBatchCount(Heartbeat(None), most)
    for step in range(steps):
        found = {"received": [], "sent": [], "gradient_received": [], "gradient_sent": []}

        def call(*names, found=found):
            for name in names:
                found[name].append(getattr(count, name)())

        warmup = min(most - 1, micro_batches)
        for _ in range(warmup):
            count.begin_forward()
            call("received", "sent")
        if micro_batches > warmup:
            count.begin_forward()
            call("received")
        for at in range(micro_batches - warmup):
            call("sent", "gradient_received", "gradient_sent", *(["received"] if at < micro_batches - warmup - 1 else []))
        for _ in range(warmup):
            call("gradient_received", "gradient_sent")
        for positions in found.values():
            assert [position.micro_batch for position in positions] == list(range(micro_batches))
            assert {position.scheduled for position in positions} == {step}


def test_without_gradients_nothing_is_numbered_and_steps_go_on_after_it():
    count = MicroBatchCount(Heartbeat(None), 1)
    with torch.no_grad():
        for _ in range(3):
            count.begin_forward()
            assert (count.received().micro_batch, count.sent().scheduled) == (-1, -1)
    count.begin_forward()
    assert (count.received().micro_batch, count.sent().scheduled) == (0, 0)


def test_forwards_without_backwards_are_refused_where_gradients_are_enabled():
    count = MicroBatchCount(Heartbeat(None), 2)
    for _ in range(2):
        count.begin_forward()
        count.received()
    count.begin_forward()
    with pytest.raises(ScheduleError, match=r"no backward has come after 2 forwards.*torch\.no_grad"):
        count.received()


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(2, 3),
    st.sampled_from(["contiguous", "zigzag"]),
)
def test_the_rows_of_cp_ranks_are_all_rows_of_the_lane_once(tokens, lanes, cp, order):
    topology = Topology.from_modules({"vision": {}, "language": {"dp": lanes, "cp": cp}})
    end = Endpoint("language", topology.grids["language"], 0, TokenSplit(cp_order=order))
    samples = Samples(len(tokens), tuple(tokens))
    total = 0
    for lane in range(lanes):
        rows = rows_by_cp(end, Place(lane, 0, 0), samples)
        assert all(torch.equal(of_one, of_one.sort().values) for of_one in rows)
        assert len(rows) == cp
        together = torch.cat(rows).sort().values
        assert torch.equal(together, torch.arange(len(together)))
        total += len(together)
    assert total == sum(tokens)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param({"samples": 0}, "samples=0", id="no samples"),
        pytest.param({"tokens": {"video": 3}}, "tokens: no module 'video'", id="an unknown module with tokens"),
        pytest.param({"splits": {"video": TokenSplit()}}, "splits: no module 'video'", id="an unknown module with a split"),
        pytest.param({"frozen": ["video"]}, "frozen: no module 'video'", id="an unknown module frozen"),
        pytest.param({"frozen": ["language"]}, "'language' computes the loss", id="the module with the loss frozen"),
        pytest.param({"frozen": ["depth"]}, "'depth' takes the output of vision", id="a frozen module after one that trains"),
    ],
)
def test_options_that_do_not_fit_the_modules_are_refused(wrong, message):
    options = {"samples": 4, "tokens": {}, "splits": {}, "frozen": ()} | wrong
    with pytest.raises(ScheduleError, match=message):
        CrossingOptions(topology=WORLD, dtype=None, **options)


def test_modules_after_the_language_module_are_refused():
    topology = Topology.from_modules({"vision": {}, "language": {}, "speech": {"after": "language"}})
    with pytest.raises(ScheduleError, match="speech compute the loss"):
        CrossingOptions(topology=topology, samples=1, tokens={}, splits={}, frozen=(), dtype=None)


def test_token_counts_are_numbers_of_tokens():
    output = torch.zeros(5, 2)
    assert token_counts(output) is None
    set_token_counts(output, torch.tensor([2, 0, 3]))
    assert token_counts(output) == [2, 0, 3]
    for wrong in ([-1, 6], [2.5, 2.5]):
        with pytest.raises(BridgeError, match="token counts"):
            set_token_counts(output, wrong)
