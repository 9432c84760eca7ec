import pytest
import torch

import mimo_role
from mimo_role import BridgeError, Topology
from mimo_role.routing import lane_samples
from mimo_role.testing import run_ranks

pytestmark = pytest.mark.ranks

SHAPE = (3, 2)


def whole_batch(batch_size):
    return torch.sin(torch.arange(batch_size * 6, dtype=torch.float64)).reshape(batch_size, *SHAPE)


def loss_of(sample_range, activations):
    """A loss whose gradient differs from sample to sample."""
    weights = torch.arange(sample_range.start + 1, sample_range.stop + 1, dtype=torch.float64)[:, None, None]
    return (weights * activations**3).sum()


def cross(batch_size, stage=None):
    """One batch over the bridge and back: what a sender's gradients and a receiver's activations are."""
    context = mimo_role.current()
    bridge = context.bridge("vision" if stage is None else "language", stage=stage)
    sent = None
    if bridge.is_sender:
        held = lane_samples(batch_size, bridge.source.lanes, bridge.source.place(context.rank)[0])
        sent = whole_batch(batch_size)[held.start : held.stop].requires_grad_()
        crossed = bridge(sent, batch_size=batch_size)
    elif bridge.is_receiver:
        crossed = bridge(batch_size=batch_size, sample_shape=SHAPE, dtype=torch.float64)
    else:
        return None, None
    if not bridge.is_receiver:
        crossed.backward()
        return sent.grad, None
    taken = lane_samples(batch_size, bridge.destination.lanes, bridge.destination.place(context.rank)[0])
    loss_of(taken, crossed).backward()
    return None if sent is None else sent.grad, crossed.detach()


@pytest.mark.parametrize("batch_size", [12, 7, 1])
@pytest.mark.parametrize(
    ("vision", "language", "layout"),
    [
        pytest.param({"dp": 2}, {"dp": 1}, "non_colocated", id="2:1"),
        pytest.param({"dp": 1}, {"dp": 2}, "non_colocated", id="1:2"),
        pytest.param({"dp": 2}, {"dp": 3}, "non_colocated", id="2:3"),
        pytest.param({"dp": 3}, {"dp": 2}, "non_colocated", id="3:2"),
        pytest.param({"tp": 2, "dp": 2}, {"tp": 3}, "non_colocated", id="tp 2 to tp 3"),
        pytest.param({"pp": 2, "dp": 2}, {"pp": 2, "tp": 2}, "non_colocated", id="pipelines on both sides"),
        pytest.param({"dp": 4}, {"tp": 2, "dp": 2}, "colocated", id="on the same ranks"),
        pytest.param({"dp": 2}, {"dp": 2}, "colocated", id="on the same rank"),
    ],
)
def test_activations_and_gradients_cross_exactly(vision, language, layout, batch_size):
    topology = Topology.from_modules({"vision": vision, "language": language}, layout=layout)
    whole = whole_batch(batch_size).requires_grad_()
    loss_of(range(batch_size), whole).backward()
    ends = {name: topology.grids[name] for name in ("vision", "language")}
    for rank, (gradient, received) in enumerate(run_ranks(cross, topology, batch_size)):
        coords = topology.coords_of(rank)
        if "vision" in coords and coords["vision"]["pp"] == ends["vision"].axis_size("pp") - 1:
            held = lane_samples(batch_size, ends["vision"].axis_size("dp"), coords["vision"]["dp"])
            assert torch.equal(gradient, whole.grad[held.start : held.stop])
        if "language" in coords and coords["language"]["pp"] == 0:
            taken = lane_samples(batch_size, ends["language"].axis_size("dp"), coords["language"]["dp"])
            assert torch.equal(received, whole.detach()[taken.start : taken.stop])


def test_a_bridge_joins_two_stages_of_one_module():
    topology = Topology.from_modules({"vision": {}, "language": {"pp": 3, "dp": 2}})
    found = run_ranks(cross, topology, 6, 1)
    assert [received is not None for _, received in found] == [False] * 5 + [True] * 2
    assert torch.equal(torch.cat([received for _, received in found[5:]]), whole_batch(6))


def two_bridges_out_of_order():
    """Vision and audio cross in one order forward; autograd takes them back in another."""
    context = mimo_role.current()
    bridges = [context.bridge(name) for name in ("vision", "audio")]
    if context.role.has_modality_modules:
        sent = [torch.full((1, 2), factor, dtype=torch.float32, requires_grad=True) for factor in (1.0, 2.0)]
        anchors = [bridge(tensor, batch_size=1) for bridge, tensor in zip(bridges, sent, strict=True)]
        anchors[0].backward()
        anchors[1].backward()
        return [tensor.grad.tolist() for tensor in sent]
    received = [bridge(batch_size=1, sample_shape=(2,), dtype=torch.float32) for bridge in bridges]
    (received[0].sum() * 3 + received[1].sum() * 5).backward()
    return [tensor.detach().tolist() for tensor in received]


def test_two_bridges_between_the_same_ranks_are_not_mixed_up():
    topology = Topology.from_modules({"vision": {}, "audio": {"colocate_with": "vision"}, "language": {}})
    assert run_ranks(two_bridges_out_of_order, topology) == [[[[3.0, 3.0]], [[5.0, 5.0]]], [[[1.0, 1.0]], [[2.0, 2.0]]]]


def frozen_or_without_gradients(mode):
    context = mimo_role.current()
    bridge = context.bridge("vision")
    forward = {"batch_size": 2, "requires_grad": mode != "none"}
    for _ in range(3):
        with torch.set_grad_enabled(mode != "no_grad"):
            if bridge.is_sender:
                crossed = bridge(torch.ones(2, 4), **forward)
            else:
                crossed = bridge(sample_shape=(4,), dtype=torch.float32, **forward)
        if mode == "frozen":
            crossed.sum().backward()
    return crossed.requires_grad


@pytest.mark.parametrize(("mode", "requires_grad"), [("frozen", True), ("none", False), ("no_grad", False)])
def test_encoders_that_take_no_gradients_do_not_stop_the_bridge(mode, requires_grad):
    topology = Topology.from_modules({"vision": {}, "language": {}})
    assert run_ranks(frozen_or_without_gradients, topology, mode) == [requires_grad] * 2


def messages():
    context = mimo_role.current()
    bridge = context.bridge("vision")
    found = []
    attempts = [
        lambda: bridge(torch.ones(3, 2), batch_size=4),
        lambda: bridge(batch_size=4),
        lambda: bridge(torch.ones(2, 2), batch_size=4, sample_shape=(2,), dtype=torch.float32),
    ]
    for attempt in attempts if context.rank != 0 else attempts[:2]:
        try:
            attempt()
        except BridgeError as error:
            found.append(str(error))
    return found


def test_a_tensor_that_does_not_fit_is_refused_before_anything_is_sent():
    topology = Topology.from_modules({"vision": {"dp": 2}, "language": {"pp": 2}})
    vision, _, language, uninvolved = run_ranks(messages, topology)
    assert vision == [
        (
            "lane 0 of the bridge vision stage 0 -> language stage 0 holds samples 0-1 of a batch of 4, but its "
            "activations are [3, 2]; pass [2, ...]"
        ),
        "rank 0 sends over the bridge vision stage 0 -> language stage 0; pass its lane's activations",
    ]
    assert language == [
        "rank 2 only receives over the bridge vision stage 0 -> language stage 0; pass no activations",
        "rank 2 only receives over the bridge vision stage 0 -> language stage 0; it needs sample_shape and dtype",
        "rank 2 only receives over the bridge vision stage 0 -> language stage 0; pass no activations",
    ]
    assert uninvolved == ["rank 3 takes no part in the bridge vision stage 0 -> language stage 0"] * 3


def other_ideas_of_a_sample(shape, dtype):
    bridge = mimo_role.current().bridge("vision")
    if bridge.is_sender:
        bridge(torch.ones(2, 4, 3), batch_size=4)
        return None
    try:
        bridge(batch_size=4, sample_shape=shape, dtype=dtype)
    except BridgeError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((4, 3), torch.bfloat16, "torch.bfloat16 [4, 3]"),
        ((3, 4), torch.float32, "torch.float32 [3, 4]"),
        ((12,), torch.float32, "torch.float32 [12]"),
        ((2,), torch.float32, "torch.float32 [2]"),
    ],
)
def test_two_sides_with_other_ideas_of_a_sample_are_told(shape, dtype, expected):
    topology = Topology.from_modules({"vision": {"dp": 2}, "language": {"dp": 1}})
    found = run_ranks(other_ideas_of_a_sample, topology, shape, dtype)[2]
    assert found.startswith(
        f"rank 2 expects samples of {expected} over the bridge vision stage 0 -> language stage 0, but rank "
    )
    assert found.endswith(" sends torch.float32 [4, 3]")


def reuse_of_a_buffer():
    """The sender changes its tensor as soon as the call returns; the receiver is late."""
    bridge = mimo_role.current().bridge("vision")
    buffer, got = torch.zeros(1, 2), []
    with torch.no_grad():
        for number in (1.0, 2.0, 3.0):
            if bridge.is_sender:
                buffer.fill_(number)
                bridge(buffer, batch_size=1)
                buffer.fill_(-1.0)
            else:
                torch.randn(400, 400).mm(torch.randn(400, 400))
                got.append(bridge(batch_size=1, sample_shape=(2,), dtype=torch.float32)[0, 0].item())
    return got


def test_what_arrives_is_what_was_passed_whatever_the_sender_does_next():
    assert run_ranks(reuse_of_a_buffer, Topology.from_modules({"vision": {}, "language": {}}))[1] == [1.0, 2.0, 3.0]
