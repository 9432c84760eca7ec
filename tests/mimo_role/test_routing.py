from hypothesis import given
from hypothesis import strategies as st

from mimo_role import Topology
from mimo_role.routing import Endpoint, lane_samples, receives, sends

sizes = st.fixed_dictionaries({"tp": st.integers(1, 3), "dp": st.integers(1, 5), "pp": st.integers(1, 2)})


@st.composite
def endpoints(draw):
    topology = Topology.from_modules({"vision": draw(sizes), "language": draw(sizes)})
    vision, language = topology.grids["vision"], topology.grids["language"]
    return Endpoint("vision", vision, vision.axis_size("pp") - 1), Endpoint("language", language, 0), topology.world_size


@given(st.integers(0, 100), st.integers(1, 20))
def test_lanes_hold_every_sample_once_and_differ_by_at_most_one(batch_size, lanes):
    held = [lane_samples(batch_size, lanes, lane) for lane in range(lanes)]
    assert [sample for samples in held for sample in samples] == list(range(batch_size))
    assert max(map(len, held)) - min(map(len, held)) <= 1


@given(endpoints(), st.integers(0, 30), st.booleans())
def test_every_receiver_gets_each_of_its_samples_once_from_a_rank_that_holds_it(ends, batch_size, back):
    source, destination, world_size = ends
    sender, receiver = (destination, source) if back else (source, destination)
    for rank in range(world_size):
        transfers = receives(rank, sender, receiver, batch_size)
        if receiver.place(rank) is None:
            assert transfers == []
            continue
        lane, _ = receiver.place(rank)
        got = [sample for transfer in transfers for sample in range(transfer.start, transfer.stop)]
        assert got == list(lane_samples(batch_size, receiver.lanes, lane))
        for transfer in transfers:
            held = lane_samples(batch_size, sender.lanes, sender.place(transfer.peer)[0])
            assert held.start <= transfer.start < transfer.stop <= held.stop


@given(endpoints(), st.integers(0, 30))
def test_what_one_rank_sends_is_what_another_expects(ends, batch_size):
    source, destination, world_size = ends
    sent = {
        (rank, transfer.peer, transfer.start, transfer.stop)
        for rank in range(world_size)
        for transfer in sends(rank, source, destination, batch_size)
    }
    expected = {
        (transfer.peer, rank, transfer.start, transfer.stop)
        for rank in range(world_size)
        for transfer in receives(rank, source, destination, batch_size)
    }
    assert sent == expected
