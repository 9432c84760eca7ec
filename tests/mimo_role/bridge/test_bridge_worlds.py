"""Random worlds of real ranks: transfers equal the computation of one process, bit for bit."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mimo_role
from mimo_role import ActivationSpec, Topology
from mimo_role.resharding import overlap, transfer_plan
from mimo_role.resharding.endpoint import Endpoint, Side
from mimo_role.resharding.samples import Samples
from mimo_role.testing import run_ranks
from tests.mimo_role.resharding.strategies import batches, held_by, splits, topologies

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(600)]

HIDDEN = 3


def values_of(held):
    """The activations of (sample, token) pairs, `[rows, HIDDEN]`; all different."""
    numbers = [[sample * 1000 + token * 10 + column for column in range(HIDDEN)] for sample, token in held]
    return torch.sin(torch.tensor(numbers, dtype=torch.float64).view(len(held), HIDDEN))


def loss_of(held, activations):
    """A loss whose gradient differs from token to token."""
    weights = torch.tensor([1.0 + sample + token / 16 for sample, token in held], dtype=torch.float64).view(-1, 1)
    return (weights * activations.view(-1, HIDDEN) ** 3).sum()


def whole_gradient(held):
    """The result of one process with all tokens."""
    whole = values_of(held).requires_grad_()
    loss_of(held, whole).backward()
    return dict(zip(held, whole.grad, strict=True))


def by_autograd(bridge, spec, sent, taken):
    if bridge.is_sender:
        sent.requires_grad_()
    crossed = bridge(sent, spec=spec)
    if not bridge.is_receiver:
        crossed.backward()
        return sent.grad, None
    loss_of(taken, crossed).backward()
    return None if sent is None else sent.grad, crossed.detach()


def by_single_steps(bridge, spec, sent, taken):
    if bridge.is_sender and bridge.is_receiver:
        received = bridge.transfer(sent, spec, back=False).wait()
    elif bridge.is_sender:
        bridge.send_forward(sent, spec).wait()
        return bridge.recv_backward(spec).wait(), None
    else:
        received = bridge.recv_forward(spec).wait()
    leaf = received.detach().requires_grad_()
    loss_of(taken, leaf).backward()
    if bridge.is_sender:
        return bridge.transfer(leaf.grad, spec, back=True).wait(), received
    bridge.send_backward(leaf.grad, spec).wait()
    return None, received


def cross(cut, crossed, worth_a_message, worth_sharing):
    """Every batch over the bridge and back, alternately through autograd and in single steps."""
    # Not reset: this process exits with the test.
    overlap.WORTH_A_MESSAGE, transfer_plan.WORTH_SHARING = worth_a_message, worth_sharing
    context = mimo_role.current()
    bridge = context.bridge("vision", source=cut[0], destination=cut[1])
    if not (bridge.is_sender or bridge.is_receiver):
        return [(None, None)] * len(crossed)
    found = []
    for number, (samples, is_dense) in enumerate(crossed):
        spec = ActivationSpec(samples=samples, token_shape=(HIDDEN,), dtype=torch.float64, is_dense=is_dense)
        sides = Side(bridge.source, samples, True), Side(bridge.destination, samples, False)
        held, taken = (held_by(side, context.rank, as_source=side.is_source) for side in sides)
        sent = None
        if bridge.is_sender:
            sent = values_of(held).view(spec.shape_at(sides[0], bridge.source.place_of(context.rank)))
        gradient, received = (by_single_steps if number % 2 else by_autograd)(bridge, spec, sent, taken)
        if received is not None:
            assert received.shape == spec.shape_at(sides[1], bridge.destination.place_of(context.rank))
        found.append(tuple(None if tensor is None else tensor.reshape(-1, HIDDEN) for tensor in (gradient, received)))
    bridge.wait()
    return found


@st.composite
def jobs(draw):
    topology = draw(topologies(max_ranks=12))
    vision, language = topology.grids["vision"], topology.grids["language"]
    cut = draw(splits), draw(splits)
    ends = Endpoint("vision", vision, vision.axis_size("pp") - 1, cut[0]), Endpoint("language", language, 0, cut[1])
    crossed = []
    for _ in range(6):
        samples = draw(batches(*ends))
        # Dense samples are of equal length, and so is every rank's part of each.
        dense = draw(st.booleans()) and isinstance(samples.tokens, int) and samples.places is None
        crossed.append((samples, dense))
    return topology, cut, ends, crossed


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(jobs(), st.sampled_from([1, 1 << 16]), st.sampled_from([0, 0, 20]))
def test_any_batch_between_any_grids_equals_one_process(job, worth_a_message, worth_sharing):
    check(*job, worth_a_message, worth_sharing)


@pytest.mark.parametrize(
    ("vision", "language"),
    [
        pytest.param({"dp": 5}, {"dp": 7}, id="coprime"),
        pytest.param({"dp": 2, "tp": 2}, {"dp": 2, "tp": 4}, id="tp 2 to 4"),
        pytest.param({"cp": 2, "tp": 2}, {"cp": 4, "tp": 2}, id="cp and tp"),
        pytest.param({"dp": 4}, {"tp": 8}, id="four to one"),
    ],
)
def test_twelve_ranks(vision, language):
    topology = Topology.from_modules({"vision": vision, "language": language})
    assert topology.world_size == 12
    ends = Endpoint("vision", topology.grids["vision"], 0), Endpoint("language", topology.grids["language"], 0)
    crossed = [(Samples(35, 4), True), (Samples(35, 4), True), (Samples(3, (7, 0, 5)), False), (Samples(1, 1), False)]
    check(topology, (None, None), ends, crossed)


def check(topology, cut, ends, crossed, worth_a_message=1 << 16, worth_sharing=0):
    found = run_ranks(cross, topology, cut, crossed, worth_a_message, worth_sharing, timeout_s=60)
    for number, (samples, _) in enumerate(crossed):
        every = [(sample, token) for sample in range(samples.count) for token in range(samples.tokens_of(sample))]
        gradients = whole_gradient(every)
        for rank in range(topology.world_size):
            gradient, received = found[rank][number]
            source = held_by(Side(ends[0], samples, True), rank, as_source=True)
            destination = held_by(Side(ends[1], samples, False), rank, as_source=False)
            assert (gradient is not None) == (ends[0].place_of(rank) is not None)
            assert (received is not None) == (ends[1].place_of(rank) is not None)
            if gradient is not None:
                assert torch.equal(gradient, torch.stack([gradients[token] for token in source]) if source else gradient[:0])
            if received is not None:
                assert torch.equal(received, values_of(destination))
