import math
import random
import time
from collections import defaultdict
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_role import BridgeError, Topology
from mimo_role.resharding.endpoint import Endpoint, Place, Side
from mimo_role.resharding.samples import Samples, TokenSplit, lane_samples
from mimo_role.resharding.transfer_plan import plan_transfers
from tests.mimo_role.resharding.strategies import batches, endpoints, held_by


def worth(elements):
    """As if replicas divided overlaps from so many elements; 0: always."""
    return mock.patch("mimo_role.resharding.transfer_plan.WORTH_SHARING", elements)


def sides(source, destination, samples, back=False):
    ends = Side(source, samples, True), Side(destination, samples, False)
    return ends[::-1] if back else ends


def elements_of(overlap, elements, width):
    """The index in the rank's tensor of each element of a range of an overlap."""
    rows = [row for run in overlap.runs for row in run]
    return [rows[element // width] * width + element % width for element in elements]


def is_contiguous(overlap, chunk, width):
    at = elements_of(overlap, range(chunk.start, chunk.stop), width)
    return at == list(range(at[0], at[0] + len(at)))


def carry_out(sender, receiver, world_size, width):
    """Carry out all ranks' plans on lists; return what each rank got, how often each element was written, and the edges."""
    plans = [plan_transfers(rank, sender, receiver, width) for rank in range(world_size)]
    whole = sender.is_source
    tensors = [
        [(*token, column) for token in held_by(sender, rank, as_source=whole) for column in range(width)]
        for rank in range(world_size)
    ]
    got = [[None] * (plan.rows_needed * width) for plan in plans]
    writes = [[0] * len(values) for values in got]
    post = defaultdict(list)
    edges = defaultdict(int)

    def take(rank, chunks):
        for chunk in chunks:
            overlap = plans[rank].receive_overlaps[chunk.overlap]
            assert not overlap.cuts or is_contiguous(overlap, chunk, width)
            at = elements_of(plans[rank].receive_overlaps[chunk.overlap], range(chunk.start, chunk.stop), width)
            values = post[chunk.peer, rank].pop(0)
            assert len(values) == len(at)
            for index, value in zip(at, values, strict=True):
                got[rank][index] = value
                writes[rank][index] += 1

    for rank, plan in enumerate(plans):
        assert plan.rows_held * width == len(tensors[rank])
        for chunk in plan.sends:
            overlap = plan.send_overlaps[chunk.overlap]
            assert not overlap.cuts or is_contiguous(overlap, chunk, width)
            at = elements_of(plan.send_overlaps[chunk.overlap], range(chunk.start, chunk.stop), width)
            post[rank, chunk.peer].append([tensors[rank][index] for index in at])
            edges[rank, chunk.peer] += len(at)
    for rank, plan in enumerate(plans):
        take(rank, plan.receives)
    assert not any(post.values()), "something was sent that no rank receives"
    for rank, plan in enumerate(plans):
        for chunk in plan.replica_sends:
            at = elements_of(plan.receive_overlaps[chunk.overlap], range(chunk.start, chunk.stop), width)
            post[rank, chunk.peer].append([got[rank][index] for index in at])
    for rank, plan in enumerate(plans):
        take(rank, plan.replica_receives)
    assert not any(post.values()), "something was sent to a replica that does not receive it"
    return got, writes, dict(edges)


@given(endpoints(), st.data(), st.integers(1, 5), st.booleans(), st.sampled_from([1, 3, 1 << 16]), st.sampled_from([0, 9]))
def test_every_element_needed_arrives_exactly_once(ends, data, width, back, worth_a_message, worth_sharing):
    source, destination, world_size = ends
    sender, receiver = sides(source, destination, data.draw(batches(source, destination)), back)
    with worth(worth_sharing), mock.patch("mimo_role.resharding.overlap.WORTH_A_MESSAGE", worth_a_message):
        got, writes, _ = carry_out(sender, receiver, world_size, width)
    for rank in range(world_size):
        needed = [
            (*token, column) for token in held_by(receiver, rank, as_source=receiver.is_source) for column in range(width)
        ]
        assert got[rank] == needed
        assert set(writes[rank]) <= {1}


@given(endpoints(colocated=False), st.data(), st.integers(1, 5))
def test_gradients_take_the_reverse_edges_of_activations(ends, data, width):
    source, destination, world_size = ends
    samples = data.draw(batches(source, destination))
    with worth(0):
        _, _, there = carry_out(*sides(source, destination, samples), world_size, width)
        _, _, back = carry_out(*sides(source, destination, samples, back=True), world_size, width)
    assert back == {(receiver, sender): elements for (sender, receiver), elements in there.items()}


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 3, 4, 8]), st.integers(1, 3), st.booleans())
def test_even_splits_have_at_most_m_plus_n_minus_gcd_edges_per_tp_slice(m, n, tp, factor, sequence_parallel):
    topology = Topology.from_modules({"vision": {"tp": tp, "dp": m}, "language": {"tp": tp, "dp": n}})
    source = Endpoint("vision", topology.grids["vision"], 0)
    destination = Endpoint("language", topology.grids["language"], 0, TokenSplit(sequence_parallel=sequence_parallel))
    samples = Samples(math.lcm(m, n) * factor, tp)
    with worth(0):
        _, _, edges = carry_out(*sides(source, destination, samples), topology.world_size, 1)
    assert len(edges) <= tp * (m + n - math.gcd(m, n))


@given(endpoints(colocated=False), st.data(), st.integers(1, 5))
def test_bytes_are_balanced_over_the_tp_ranks_of_a_lane(ends, data, width):
    source, destination, world_size = ends
    samples = data.draw(batches(source, destination))
    sender, receiver = sides(source, destination, samples)
    with worth(0):
        _, _, edges = carry_out(sender, receiver, world_size, width)
    leaving, entering = defaultdict(int), defaultdict(int)
    for (sender_rank, receiver_rank), elements in edges.items():
        leaving[sender_rank] += elements
        entering[receiver_rank] += elements
    overlaps = {rank: len(plan_transfers(rank, sender, receiver, width).receive_overlaps) for rank in range(world_size)}
    for lane in range(destination.lanes):
        for cp in range(destination.cp):
            ranks = [destination.rank_at(Place(lane, cp, tp)) for tp in range(destination.tp)]
            if destination.split.sequence_parallel or source.split.sequence_parallel:
                continue  # what each of them needs or holds is fixed
            loads = [entering[rank] for rank in ranks]
            assert max(loads) - min(loads) <= max(overlaps[rank] for rank in ranks)
    assert sum(edges.values()) == width * sum(
        receiver.rows(Place(lane, cp, tp))
        for lane in range(destination.lanes)
        for cp in range(destination.cp)
        for tp in range(destination.tp if destination.split.sequence_parallel else 1)
    )


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize(("source_tp", "destination_tp"), [(1, 1), (2, 2), (4, 4), (2, 4), (4, 2), (2, 3)])
def test_equal_tokens_leave_and_enter_every_tp_rank_in_equal_parts(source_tp, destination_tp, sequence_parallel):
    topology = Topology.from_modules({"vision": {"tp": source_tp, "dp": 2}, "language": {"tp": destination_tp, "dp": 3}})
    source = Endpoint("vision", topology.grids["vision"], 0)
    destination = Endpoint("language", topology.grids["language"], 0, TokenSplit(sequence_parallel=sequence_parallel))
    with worth(0):
        _, _, edges = carry_out(*sides(source, destination, Samples(6, 12)), topology.world_size, 1)
    for end, index in ((source, 0), (destination, 1)):
        loads = defaultdict(int)
        for edge, elements in edges.items():
            loads[edge[index]] += elements
        assert set(loads.values()) == {6 * 12 // (end.lanes * end.tp)}


def test_a_small_overlap_is_sent_whole_to_each_replica():
    topology = Topology.from_modules({"vision": {"tp": 2}, "language": {"tp": 4}})
    source, destination = (Endpoint(name, grid, 0) for name, grid in topology.grids.items())
    _, _, there = carry_out(*sides(source, destination, Samples(2, 3)), 6, 5)
    _, _, back = carry_out(*sides(source, destination, Samples(2, 3), back=True), 6, 5)
    assert there == {(0, 2): 30, (0, 3): 30, (1, 4): 30, (1, 5): 30}
    assert back == {(2, 0): 30, (4, 1): 30}


def test_tokens_that_a_rank_holds_already_are_not_sent_to_others():
    topology = Topology.from_modules({"vision": {"dp": 4}, "language": {"tp": 2, "dp": 2}}, layout="colocated")
    source, destination = (Endpoint(name, grid, 0) for name, grid in topology.grids.items())
    _, _, there = carry_out(*sides(source, destination, Samples(8)), 4, 1)
    _, _, back = carry_out(*sides(source, destination, Samples(8), back=True), 4, 1)
    assert there == {(rank, other): 2 for rank in range(4) for other in (rank, rank ^ 1)}
    assert back == {(rank, rank): 2 for rank in range(4)}


@given(st.integers(0, 100), st.integers(1, 20))
def test_lanes_hold_every_sample_once_and_differ_by_at_most_one(batch_size, lanes):
    held = [lane_samples(batch_size, lanes, lane) for lane in range(lanes)]
    assert [sample for samples in held for sample in samples] == list(range(batch_size))
    assert max(map(len, held)) - min(map(len, held)) <= 1
    samples = Samples(batch_size)
    assert [samples.lane_of(sample, lanes, source=True) for sample in range(batch_size)] == [
        lane for lane in range(lanes) for _ in held[lane]
    ]


@pytest.mark.parametrize(
    ("order", "expected"),
    [("contiguous", [[0, 1, 2, 3], [4, 5, 6, 7]]), ("zigzag", [[0, 1, 6, 7], [2, 3, 4, 5]])],
)
def test_context_parallel_ranks_hold_tokens_in_the_given_order(order, expected):
    grid = Topology.from_modules({"language": {"cp": 2}}, layout="colocated").grids["language"]
    side = Side(Endpoint("language", grid, 0, TokenSplit(cp_order=order)), Samples(1, 8), False)
    assert [[token for run in side.tokens(0, Place(0, cp, 0)) for token in run] for cp in (0, 1)] == expected


def test_tokens_are_held_by_the_rank_of_their_place_in_a_longer_sequence():
    grid = Topology.from_modules({"language": {"cp": 2, "tp": 2}}, layout="colocated").grids["language"]
    split = TokenSplit(cp_order="zigzag", sequence_parallel=True)
    side = Side(Endpoint("language", grid, 0, split), Samples(1, 5, places=((3, 16),)), False)
    # cp rank 0 owns 0-3 and 12-15 of 16, cp rank 1 the middle; its halves are 4-7 and 8-11.
    held = {(cp, tp): side.tokens(0, Place(0, cp, tp)) for cp in (0, 1) for tp in (0, 1)}
    assert held == {(0, 0): (range(1),), (0, 1): (), (1, 0): (range(1, 5),), (1, 1): ()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"tokens": (1, 2, 3)}, "tokens has 3 entries for 2 samples", id="tokens"),
        pytest.param({"source_lanes": (0,)}, "source_lanes has 1 entries for 2 samples", id="lanes"),
        pytest.param({"tokens": (1, -2)}, r"tokens\[1\]=-2; a sample has 0 or more", id="negative"),
        pytest.param({"tokens": "ab"}, "tokens='ab': a whole number for each sample", id="text"),
        pytest.param({"places": (1, 2)}, r"places=\(1, 2\): \(start, length of the whole sequence\) for", id="places"),
        pytest.param(
            {"tokens": 4, "places": ((0, 4), (2, 5))},
            r"places\[1\]=\(2, 5\): 4 tokens do not fit into the sequence there",
            id="outside its sequence",
        ),
    ],
)
def test_invalid_samples_are_refused(arguments, message):
    with pytest.raises(BridgeError, match=message):
        Samples(2, **arguments)


def test_an_unknown_lane_is_refused():
    with pytest.raises(BridgeError, match="sample 1 is on destination lane 3; there are 3 lanes, from 0"):
        Samples(2, destination_lanes=(0, 3)).check_lanes(3, source=False)


def test_an_unknown_order_is_refused():
    with pytest.raises(BridgeError, match="cp_order='zig' is not an order of tokens; use contiguous or zigzag"):
        TokenSplit(cp_order="zig")


def test_a_ranks_plan_in_a_large_world_only_depends_on_its_own_samples():
    """1,024 lanes of encoders, 1,152 of the language model, tp 8; the time is shown, and measured in benchmarks/bridge.py."""
    topology = Topology.from_modules({"vision": {"tp": 8, "dp": 1024}, "language": {"tp": 8, "dp": 1152}})
    source, destination = Endpoint("vision", topology.grids["vision"], 0), Endpoint("language", topology.grids["language"], 0)
    rank = topology.grids["language"].rank_offset + 4711
    generator = random.Random(0)
    tokens = tuple(generator.randint(0, 4096) for _ in range(8192))
    lane = destination.place_of(rank).lane
    own = lane_samples(8192, destination.lanes, lane)
    only_own = tuple(count if sample in own else 0 for sample, count in enumerate(tokens))
    started = time.perf_counter()
    plan = plan_transfers(rank, *sides(source, destination, Samples(8192, tokens)), 4096)
    print(f"{1000 * (time.perf_counter() - started):.2f} ms")
    assert plan == plan_transfers(rank, *sides(source, destination, Samples(8192, only_own)), 4096)
    assert plan.rows_needed == sum(tokens[sample] for sample in own)
