"""What real ranks record of a step is what the schedule has planned."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

import mimo_role
from mimo_role import ActivationSpec, Topology
from mimo_role.data.micro_batch import MicroBatch
from mimo_role.monitoring.recorder import Recorder
from mimo_role.monitoring.records import Kind
from mimo_role.monitoring.ring import Ring, read
from mimo_role.pipeline.schedule import Schedule1F1B
from mimo_role.pipeline.stage_graph import StageGraph
from mimo_role.pipeline.timeline import timeline
from mimo_role.testing import run_ranks

pytestmark = pytest.mark.ranks

MICRO_BATCHES = 4
STEPS = 2
KINDS = {"forward": Kind.FORWARD, "backward": Kind.BACKWARD}
WAITS = {Kind.WAIT_ACTIVATIONS: Kind.SEND_ACTIVATIONS, Kind.WAIT_GRADIENTS: Kind.SEND_GRADIENTS}


def micro_batch(step, number):
    """As a data loader makes it."""
    indices = tuple(range(4))
    return MicroBatch(epoch=0, step=step, number=number, indices=indices, samples_in_step=4 * MICRO_BATCHES, lanes={}, data={})


def train(folder):
    """Steps of a schedule whose ranks have rings."""
    ctx = mimo_role.current()
    ctx.recorder = Recorder(Ring.create(Path(folder, f"rank{ctx.rank}.recording"), ctx.rank, ctx.world_size))
    weight = torch.ones(2, requires_grad=True)
    schedule = Schedule1F1B(
        ctx,
        run=lambda module, _, inputs: weight * next(iter(inputs.values()), torch.ones(4 // ctx.lane(module)[1], 2)),
        spec_of=lambda *_: ActivationSpec.of(4, (2,), torch.float32),
        loss_of=lambda output, _: output.sum(),
    )
    for number in range(STEPS):
        ctx.step(10 + number)
        with ctx.span("data"):
            batches = [micro_batch(number, at) for at in range(MICRO_BATCHES)]
        losses = schedule.step(batches)
        if losses:
            ctx.log(loss=sum(losses))
    return ctx.rank


@pytest.fixture(scope="module")
def topology():
    modules = {"vision": {"dp": 2}, "language": {"pp": 2, "dp": 1}}
    return Topology.from_modules(modules=modules, layout="non_colocated")


@pytest.fixture(scope="module")
def recordings(topology, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    run_ranks(train, topology, str(folder))
    return [read(folder / f"rank{rank}.recording") for rank in range(topology.world_size)]


def spans(recording, step, kinds):
    found = [record for record in recording.records if record.step == step and record.kind in kinds]
    return [(Kind(each.kind), recording.names[each.name], each.micro_batch) for each in found]


def test_forwards_and_backwards_are_those_of_the_timeline_in_its_order(topology, recordings):
    graph = StageGraph(topology)
    for rank, recording in enumerate(recordings):
        own = [action for action in timeline(graph, MICRO_BATCHES) if action.at in graph.of_rank(rank)]
        planned = [(KINDS[each.phase.value], f"{each.at.module}.{each.at.stage}", each.number) for each in own]
        for step in (10, 11):
            assert spans(recording, step, KINDS.values()) == planned


def test_spans_are_within_their_step_and_computation_does_not_overlap(recordings):
    for recording in recordings:
        begins = [record.begin_ns for record in recording.records if record.kind == Kind.STEP]
        assert len(begins) == STEPS
        computed = [record for record in recording.records if record.kind in KINDS.values()]
        assert all(record.begin_ns >= begins[record.step - 10] for record in computed)
        assert all(one.end_ns <= other.begin_ns for one, other in pairwise(computed))
        assert recording.open == []


def test_every_wait_has_the_send_of_its_peer_and_ends_after_that_has_begun(recordings):
    joined = 0
    for recording in recordings:
        for record in recording.records:
            if record.kind not in WAITS:
                continue
            sender, key = recordings[record.peer], (recording.names[record.name], record.value, record.micro_batch)
            sent = [
                each
                for each in sender.records
                if each.kind == WAITS[record.kind] and (sender.names[each.name], each.value, each.micro_batch) == key
            ]
            assert len(sent) == 1, key
            assert sent[0].begin_ns <= record.end_ns
            joined += 1
    # Activations and gradients, over both links, to one rank of language and to two of vision.
    assert joined == STEPS * MICRO_BATCHES * (1 + 1 + 2 + 1)


def test_the_second_sender_of_a_micro_batch_is_recorded_too(topology, recordings):
    arrivals = [record for record in recordings[2].records if record.kind == Kind.ARRIVAL]
    assert len(arrivals) == STEPS * MICRO_BATCHES
    waits = [record for record in recordings[2].records if record.kind == Kind.WAIT_ACTIVATIONS]
    assert {(one.peer, other.peer) for one, other in zip(waits, arrivals, strict=True)} == {(0, 1)}


def test_the_loss_is_recorded_where_there_is_one_and_the_samples_of_the_step_once(recordings):
    logged = [
        [(recording.names[each.name], each.step, each.value) for each in recording.records if each.kind == Kind.SCALAR]
        for recording in recordings
    ]
    assert logged == [[], [], [], [("samples", 10, 16.0), ("loss", 10, 32.0), ("samples", 11, 16.0), ("loss", 11, 32.0)]]
