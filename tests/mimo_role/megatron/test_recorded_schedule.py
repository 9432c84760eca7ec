"""What a pipeline communicator records, driven in the order of Megatron-Core's 1F1B."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import mimo_role
from mimo_role import Topology
from mimo_role.monitoring.recorder import Recorder
from mimo_role.monitoring.records import Kind
from mimo_role.monitoring.ring import Ring, read
from mimo_role.testing import run_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(120)]

MICRO_BATCHES = 3
STEPS = 2
TOPOLOGY = Topology.from_modules({"vision": {"dp": 2}, "language": {"pp": 2}})
WAITS = {Kind.WAIT_ACTIVATIONS: Kind.SEND_ACTIVATIONS, Kind.WAIT_GRADIENTS: Kind.SEND_GRADIENTS}


def run_step(communicator, compute):
    """The calls of `forward_backward_pipelining_without_interleaving`."""
    warmup = min(communicator.total_stages - communicator.current_stage - 1, MICRO_BATCHES)
    saved = []

    def forward(inputs):
        saved.append((inputs, compute(inputs)))
        return saved[-1][1]

    def backward(gradients):
        inputs, outputs = saved.pop(0)
        for name, output in outputs.items():
            output.backward(gradients.get(name))
        return {name: tensor.grad for name, tensor in inputs.items()}

    for _ in range(warmup):
        communicator.send_forward(forward(communicator.recv_forward()))
    inputs = communicator.recv_forward()
    for at in range(MICRO_BATCHES - warmup):
        gradients = communicator.send_forward_recv_backward(forward(inputs))
        gradients = backward(gradients)
        if at < MICRO_BATCHES - warmup - 1:
            inputs = communicator.send_backward_recv_forward(gradients)
        else:
            communicator.send_backward(gradients)
    for _ in range(warmup):
        communicator.send_backward(backward(communicator.recv_backward()))


def train(folder, counts_steps):
    ctx = mimo_role.current()
    ctx.recorder = Recorder(Ring.create(Path(folder, f"rank{ctx.rank}.recording"), ctx.rank, ctx.world_size))
    config = SimpleNamespace(pipeline_dtype=torch.float32, sequence_parallel=False)
    communicator = ctx.megatron_pipeline_communicator(config, samples=4, tokens={"vision": 2, "language": 2})
    module = "language" if ctx.role.has_language_module else "vision"
    weight = torch.ones(3, requires_grad=True)

    def compute(inputs):
        received = next(iter(inputs.values()), torch.ones(2 * 2, 3))
        if module == "language" and ctx.role.is_last_stage("language"):
            return {module: (weight * received).sum()}
        return {module: weight * received}

    for step in range(STEPS):
        if counts_steps:
            ctx.step(10 + step)
        run_step(communicator, compute)
    return weight.grad.sum().item()


@pytest.fixture(scope="module", params=[True, False], ids=["of the script", "of the schedule"])
def recordings(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    run_ranks(train, TOPOLOGY, str(folder), request.param)
    first = 10 if request.param else 0
    return first, [read(folder / f"rank{rank}.recording") for rank in range(TOPOLOGY.world_size)]


def of_kind(recording, *kinds):
    return [record for record in recording.records if record.kind in kinds]


def test_every_rank_records_its_forwards_and_backwards_in_the_steps(recordings):
    first, found = recordings
    for rank, recording in enumerate(found):
        stage = ["vision.0", "vision.0", "language.0", "language.1"][rank]
        for kind in (Kind.FORWARD, Kind.BACKWARD):
            computed = of_kind(recording, kind)
            assert {recording.names[each.name] for each in computed} == {stage}
            expected = [(first + step, micro_batch) for step in range(STEPS) for micro_batch in range(MICRO_BATCHES)]
            assert [(each.step, each.micro_batch) for each in computed] == expected
        assert recording.open == []


def test_every_wait_has_the_send_of_its_peer_and_ends_after_that_has_begun(recordings):
    _, found = recordings
    joined = 0
    for recording in found:
        for record in of_kind(recording, *WAITS):
            if record.peer < 0:  # the wait for a size
                continue
            key = (recording.names[record.name], record.value, record.micro_batch)
            sender = found[record.peer]
            sent = [
                each
                for each in of_kind(sender, WAITS[Kind(record.kind)])
                if (sender.names[each.name], each.value, each.micro_batch) == key
            ]
            assert len(sent) == 1, key
            assert sent[0].begin_ns <= record.end_ns
            joined += 1
    # Activations and gradients, over both links, to one rank of language and to two of vision.
    assert joined == STEPS * MICRO_BATCHES * (1 + 1 + 2 + 1)
    assert len(of_kind(found[2], Kind.ARRIVAL)) == STEPS * MICRO_BATCHES
