import dataclasses
from contextlib import ExitStack, suppress
from unittest import mock

import pytest
import torch
import torch.distributed as dist

import mimo_role
from mimo_role import (
    ActivationSpec,
    BridgeError,
    Passage,
    Samples,
    TokenSplit,
    Topology,
    cross_together,
    lane_samples,
)
from mimo_role.bridge.message_tags import BATCHES, BRIDGES, Purpose, tag_of
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
    """One batch over the bridge and back; a sender's gradients and a receiver's activations."""
    context = mimo_role.current()
    bridge = context.bridge("vision" if stage is None else "language", stage=stage)
    sent = None
    if bridge.is_sender:
        held = lane_samples(batch_size, bridge.source.lanes, bridge.source.place_of(context.rank)[0])
        sent = whole_batch(batch_size)[held.start : held.stop].requires_grad_()
        crossed = bridge(sent, batch_size=batch_size)
    elif bridge.is_receiver:
        crossed = bridge(batch_size=batch_size, sample_shape=SHAPE, dtype=torch.float64)
    else:
        return None, None
    if not bridge.is_receiver:
        crossed.backward()
        return sent.grad, None
    taken = lane_samples(batch_size, bridge.destination.lanes, bridge.destination.place_of(context.rank)[0])
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
def test_activations_and_gradients_are_transferred_exactly(vision, language, layout, batch_size):
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
    """Vision and audio run forward in one order and backward in another."""
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


def test_two_bridges_between_the_same_ranks_are_not_confused():
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
def test_encoders_without_gradients_do_not_block_the_bridge(mode, requires_grad):
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
        "rank 2 only receives over the bridge vision stage 0 -> language stage 0; pass sample_shape and dtype",
        "rank 2 only receives over the bridge vision stage 0 -> language stage 0; pass no activations",
    ]
    assert uninvolved == ["rank 3 is on neither side of the bridge vision stage 0 -> language stage 0"] * 3


def other_ideas_of_a_sample(shape, dtype):
    bridge = mimo_role.current().bridge("vision")
    try:
        if bridge.is_sender:
            bridge(torch.ones(2, 4, 3), batch_size=4).backward()
        else:
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
def test_sides_with_different_sample_shapes_are_an_error(shape, dtype, expected):
    topology = Topology.from_modules({"vision": {"dp": 2}, "language": {"dp": 1}})
    found = run_ranks(other_ideas_of_a_sample, topology, shape, dtype)[2]
    where = "the bridge vision stage 0 -> language stage 0: rank 2 (language lane 0)"
    assert found in [
        f"{where} expects samples of {expected} in batch 0, but {sender} has samples of torch.float32 [4, 3]"
        for sender in ("rank 0 (vision lane 0)", "rank 1 (vision lane 1)")
    ]


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


def test_the_sender_may_change_its_activations_afterwards():
    assert run_ranks(reuse_of_a_buffer, Topology.from_modules({"vision": {}, "language": {}}))[1] == [1.0, 2.0, 3.0]


TWO = Topology.from_modules({"vision": {}, "language": {}})


def packed(*tokens, dtype=torch.float32):
    return ActivationSpec(samples=Samples(len(tokens), tokens), token_shape=(2,), dtype=dtype)


def three_on_their_way():
    """Three batches of different sizes are started before the first is waited for, in both directions."""
    bridge = mimo_role.current().bridge("vision")
    specs = [packed(3, 1), packed(5), packed(0, 2)]
    numbers = [torch.full((sum(spec.samples.tokens), 2), 1.0 + at) for at, spec in enumerate(specs)]
    if bridge.is_sender:
        sent = [bridge.send_forward(values, spec).start() for values, spec in zip(numbers, specs, strict=True)]
        back = [bridge.recv_backward(spec).start() for spec in specs]
        [transfer.wait() for transfer in sent]
        return [transfer.wait().tolist() for transfer in back]
    taken = [bridge.recv_forward(spec).start() for spec in specs]
    found = [transfer.wait() for transfer in taken]
    given = [bridge.send_backward(-values, spec).start() for values, spec in zip(found, specs, strict=True)]
    [transfer.wait() for transfer in given]
    return [values.tolist() for values in found]


def test_batches_are_transferred_at_the_same_time():
    back, there = run_ranks(three_on_their_way, TWO)
    assert there == [[[1.0, 1.0]] * 4, [[2.0, 2.0]] * 5, [[3.0, 3.0]] * 2]
    assert back == [[[-x for x in row] for row in rows] for rows in there]


def dropped_after_their_start():
    """The sender drops its transfer before the receiver begins; the receiver drops the next one before the sender begins."""
    bridge = mimo_role.current().bridge("vision")
    spec, values = packed(3, 1), torch.arange(8.0).view(4, 2)
    if bridge.is_sender:
        bridge.send_forward(values, spec).start()
        dist.barrier()
        dist.barrier()
        bridge.send_forward(values + 1, spec).wait()
        bridge.send_forward(values + 2, spec).wait()
        return []
    dist.barrier()
    first = bridge.recv_forward(spec).wait().tolist()
    bridge.recv_forward(spec).start()
    dist.barrier()
    return [first, bridge.recv_forward(spec).wait().tolist()]


def test_a_transfer_that_is_dropped_after_its_start_completes_on_the_other_side():
    values = torch.arange(8.0).view(4, 2)
    assert run_ranks(dropped_after_their_start, TWO)[1] == [values.tolist(), (values + 2).tolist()]


def of_every_dtype(dtypes):
    bridge = mimo_role.current().bridge("vision")
    with torch.no_grad():
        for dtype in dtypes:
            values = torch.arange(-7, 5).view(2, 3, 2).to(dtype)
            if bridge.is_sender:
                bridge(values, batch_size=2)
            else:
                received = bridge(batch_size=2, sample_shape=(3, 2), dtype=dtype)
                assert received.dtype == dtype
                assert received.view(torch.uint8).tolist() == values.view(torch.uint8).tolist()
    bridge.wait()


def test_every_dtype_is_transferred():
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]
    dtypes += [torch.int16, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16]
    topology = Topology.from_modules({"vision": {"tp": 2}, "language": {"tp": 2}})
    run_ranks(of_every_dtype, topology, dtypes)


def together():
    """Two bridges in one call, one of which has no gradient."""
    context = mimo_role.current()
    specs = {"vision": packed(2, 1), "audio": packed(0, 0)}
    sent = {name: torch.ones(spec.samples.tokens_of(0) + spec.samples.tokens_of(1), 2) for name, spec in specs.items()}
    if context.role.has_modality_modules:
        leaves = [values.requires_grad_() for values in sent.values()]
        anchors = cross_together([Passage(context.bridge(name), specs[name], sent[name]) for name in specs])
        torch.autograd.backward(anchors)
        return [leaf.grad.tolist() for leaf in leaves]
    received = cross_together([Passage(context.bridge(name), spec) for name, spec in specs.items()])
    (received[0] * 4).sum().backward()
    return [values.detach().tolist() for values in received]


def test_several_bridges_in_one_call():
    topology = Topology.from_modules({"vision": {}, "audio": {"colocate_with": "vision"}, "language": {}})
    gradients, received = run_ranks(together, topology)
    assert received == [[[1.0, 1.0]] * 3, []]
    assert gradients == [[[4.0, 4.0]] * 3, []]


def learn(samples, tokens):
    context = mimo_role.current()
    bridge = context.bridge("vision")
    spec = None
    if bridge.is_sender:
        # A rank need not know other lanes' token counts.
        own = samples.of_lane(bridge.source.place_of(context.rank).lane, bridge.source.lanes, source=True)
        known = tuple(count if sample in own else 0 for sample, count in enumerate(tokens))
        spec = ActivationSpec(samples=dataclasses.replace(samples, tokens=known), token_shape=(2,), dtype=torch.float16)
    agreed = bridge.exchange_spec(spec, samples=samples)
    return agreed.samples.tokens, agreed.token_shape, agreed.dtype, agreed.is_dense


@pytest.mark.parametrize("layout", ["non_colocated", "colocated"])
def test_receivers_get_the_sizes_of_their_samples_on_request(layout):
    topology = Topology.from_modules({"vision": {"dp": 2, "tp": 2}, "language": {"dp": 4}}, layout=layout)
    tokens = (5, 0, 3, 2, 9, 1)
    samples = Samples(6, destination_lanes=(3, 0, 0, 1, 3, 3))
    for rank, (learned, *rest) in enumerate(run_ranks(learn, topology, samples, tokens)):
        assert rest == [(2,), torch.float16, False]
        if "language" in topology.coords_of(rank):
            lane = topology.coords_of(rank)["language"]["dp"]
            assert all(learned[sample] == tokens[sample] for sample in samples.of_lane(lane, 4, source=False))


def messages_in_steps(count):
    """How many messages of data this rank posts in each of `count` batches, forward and back."""
    bridge, posted = mimo_role.current().bridge("vision"), []
    originals = {name: getattr(dist.ProcessGroup, name) for name in ("send", "recv")}

    def counted(name):
        return lambda *arguments: posted.append(name) or originals[name](*arguments)

    with ExitStack() as stack:
        for name in originals:
            stack.enter_context(mock.patch.object(dist.ProcessGroup, name, counted(name)))
        for _ in range(count):
            if bridge.is_sender:
                bridge(torch.ones(3, 2, requires_grad=True), batch_size=3).backward()
            else:
                bridge(batch_size=3, sample_shape=(2,), dtype=torch.float32).sum().backward()
    return posted


def test_only_the_batch_is_sent_over_process_groups():
    assert run_ranks(messages_in_steps, TWO, 3) == [["send", "recv"] * 3, ["recv", "send"] * 3]


def memory_of_batches():
    bridge, addresses = mimo_role.current().bridge("vision"), []
    spec = ActivationSpec.of(4, (64, 512), torch.float32)
    for _ in range(4):
        if bridge.is_sender:
            bridge.send_forward(torch.zeros(4, 64, 512), spec).wait()
        else:
            received = bridge.recv_forward(spec).wait()
            kept = received[1:2]  # a part of it keeps all of it
            del received
            addresses.append(kept.data_ptr())
    return addresses


def test_memory_is_reused_when_it_is_not_referenced():
    first, second, third, fourth = run_ranks(memory_of_batches, TWO)[1]
    assert first != second
    assert (third, fourth) == (first, second)


def single_step_mistakes():
    bridge = mimo_role.current().bridge("vision")
    spec = packed(3, 1)
    attempts = [
        lambda: bridge.send_forward(torch.ones(4, 2, dtype=torch.float64), spec),
        lambda: bridge.send_forward(torch.ones(3, 2), spec),
        lambda: bridge.recv_forward(spec),
        lambda: bridge.recv_backward(spec),
        lambda: bridge.send_backward(torch.ones(4, 2), spec),
        lambda: bridge.send_forward(torch.ones(4, 2), packed(1, 1, 1)),
        lambda: bridge(torch.ones(4, 2)),
        bridge.exchange_spec,
        lambda: mimo_role.current().bridge("vision", destination=TokenSplit(cp_order="zigzag")),
    ]
    found = []
    for attempt in attempts:
        try:
            attempt()
            found.append(None)
        except BridgeError as error:
            found.append(str(error).replace(str(bridge), "B"))
    return found


def test_each_single_step_refuses_what_does_not_fit():
    sender, receiver = run_ranks(single_step_mistakes, TWO)
    split = "TokenSplit(cp_order='zigzag', sequence_parallel=False)"
    splits = f"B has {TokenSplit()} at language stage 0; it cannot become {split}"
    assert sender == [
        "B transfers torch.float32 in this batch, but the activations are torch.float64",
        "lane 0 of B holds samples 0-1 of a batch of 2, but its activations are [3, 2]; pass [4, ...]",
        "rank 0 sends activations over B; call send_forward()",
        None,
        "rank 0 receives gradients over B; call recv_backward()",
        "lane 0 of B holds samples 0-2 of a batch of 3, but its activations are [4, 2]; pass [3, ...]",
        "B needs a spec, or batch_size",
        "rank 0 sends over B; pass spec",
        splits,
    ]
    assert receiver == [
        "rank 1 receives activations over B; call recv_forward()",
        "rank 1 receives activations over B; call recv_forward()",
        None,
        "rank 1 sends gradients over B; call send_backward()",
        None,
        "rank 1 receives activations over B; call recv_forward()",
        "B needs a spec, or batch_size",
        "rank 1 only receives over B; pass samples",
        splits,
    ]


def one_lane_fails(topology, how):
    """After a first batch, rank 1 leaves the job, sends tokens of another width, or sends nothing more."""
    context = mimo_role.init(topology, backend="gloo", timeout_s=3)
    bridge = context.bridge("vision")
    spec, wider = (ActivationSpec.of(4, (width,), torch.float32) for width in (2, 3))
    try:
        if bridge.is_sender:
            bridge.send_forward(torch.ones(2, 2), spec).wait()
            if context.rank == 0:
                sent = bridge.send_forward(torch.ones(2, 2), spec).start()
                bridge.recv_backward(spec).wait()
                sent.wait()
            elif how == "leaves":
                mimo_role.shutdown()
            elif how == "sends something else":
                bridge.send_forward(torch.ones(2, 3), wider).wait()
            else:
                while True:  # it computes; its peers cannot know that it will not come
                    context.bridge("vision").ledger.poll()
        else:
            bridge.recv_forward(spec).wait()
            bridge.recv_forward(spec).wait()
    except BridgeError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (
            "leaves",
            (
                "waits for samples 2-3 of batch 1 from rank 1 (vision lane 1), but that rank has left the job: its script has "
                "ended, or called mimo_role.shutdown()"
            ),
        ),
        (
            "sends something else",
            "expects samples of torch.float32 [2] in batch 1, but rank 1 (vision lane 1) has samples of torch.float32 [3]",
        ),
        ("does not come", ": timed out waiting for 3 s"),
    ],
)
def test_a_batch_that_does_not_come_is_named_on_every_rank(how, reason):
    topology = Topology.from_modules({"vision": {"dp": 2}, "language": {}})
    found = run_ranks(one_lane_fails, 3, topology, how, timeout_s=40)
    if how == "does not come":  # whoever's time is up first reports it
        assert all("of batch" in error and error.endswith(reason) for error in found)
        return
    where = "the bridge vision stage 0 -> language stage 0: rank 2 (language lane 0) "
    assert found[2] == where + reason
    assert found[0].endswith(reason)
    assert found[1].endswith(reason)


def backward_in_any_order(reverse):
    """Three forwards; the sender requests gradients in an order that the receiver does not know."""
    bridge = mimo_role.current().bridge("vision")
    if bridge.is_sender:
        sent = [torch.ones(2, 2, requires_grad=True) for _ in range(3)]
        anchors = [bridge(values, batch_size=2) for values in sent]
        torch.autograd.backward(anchors[::-1] if reverse else anchors)
        return [values.grad[0, 0].item() for values in sent]
    for factor in (1, 2, 3):
        (factor * bridge(batch_size=2, sample_shape=(2,), dtype=torch.float32)).sum().backward()
    return None


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_belong_to_their_forward_whatever_order_autograd_takes(reverse):
    assert run_ranks(backward_in_any_order, TWO, reverse)[0] == [1.0, 2.0, 3.0]


def gradient_that_autograd_adds_to():
    """The gradient that is sent shares its memory with a parameter's, which the next backward adds to."""
    bridge = mimo_role.current().bridge("vision")
    found = []
    position = torch.zeros(2, 2, requires_grad=True)
    sent = [torch.ones(1, 2, 2, requires_grad=True) for _ in range(2)]
    if bridge.is_sender:
        anchors = [bridge(values, batch_size=1) for values in sent]
        dist.barrier()
        for anchor, values in zip(anchors, sent, strict=True):
            anchor.backward()
            found.append(values.grad[0, 0, 0].item())
        return found
    received = [bridge(batch_size=1, sample_shape=(2, 2), dtype=torch.float32) for _ in sent]
    for values, factor in zip(received, (3.0, 6.0), strict=True):
        (factor * (values + position[None])).sum().backward()
    torch.nn.utils.clip_grad_norm_([position], 0.001)
    dist.barrier()
    return None


def test_a_gradient_may_be_changed_after_it_was_sent():
    assert run_ranks(gradient_that_autograd_adds_to, TWO)[0] == [3.0, 6.0]


def waits_in_another_order():
    bridge = mimo_role.current().bridge("vision")
    spec = ActivationSpec.of(2, (64, 512), torch.float32)
    batches = [torch.full((2, 64, 512), float(number)) for number in (1, 2)]
    if bridge.is_sender:
        sent = [bridge.send_forward(batch, spec).start() for batch in batches]
        return [transfer.wait() for transfer in sent]
    first, second = (bridge.recv_forward(spec).start() for _ in batches)
    return [second.wait().unique().tolist(), first.wait().unique().tolist()]


def test_batches_may_be_waited_for_in_another_order_than_they_were_started():
    topology = Topology.from_modules({"vision": {}, "language": {"tp": 2}})
    assert run_ranks(waits_in_another_order, topology)[1:] == [[[2.0], [1.0]]] * 2


def told_otherwise(what):
    context = mimo_role.current()
    odd = context.rank == 0
    split = TokenSplit(cp_order="zigzag") if what == "splits" and not odd else TokenSplit()
    lanes = (1, 0) if what == "lanes" and not odd else None
    bridge = context.bridge("vision", destination=split)
    spec = ActivationSpec(samples=Samples(2, 4, destination_lanes=lanes), token_shape=(2,), dtype=torch.float32)
    if bridge.is_sender:
        bridge.send_forward(torch.ones(8, 2), spec).start()
        return None
    try:
        bridge.recv_forward(spec).wait()
    except BridgeError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("what", ["splits", "lanes"])
def test_different_splits_or_lanes_are_an_error_at_the_first_batch(what):
    topology = Topology.from_modules({"vision": {}, "language": {"dp": 2, "cp": 2}})
    assert run_ranks(told_otherwise, topology, what)[1] == (
        "the bridge vision stage 0 -> language stage 0: rank 1 (language lane 0) expects token splits, source_lanes and "
        "destination_lanes that are the same on all ranks in batch 0, but rank 0 (vision lane 0) has others"
    )


def far_ahead():
    """All forwards, then all backwards, on a sender; one after another on the receiver."""
    bridge = mimo_role.current().bridge("vision")
    if bridge.is_sender:
        sent = [torch.ones(1, 2, requires_grad=True) for _ in range(40)]
        for anchor in [bridge(values, batch_size=1) for values in sent]:
            anchor.backward()
        return sum(values.grad.sum().item() for values in sent)
    for _ in range(40):
        bridge(batch_size=1, sample_shape=(2,), dtype=torch.float32).sum().backward()
    return None


def test_a_sender_may_be_any_number_of_batches_ahead():
    assert run_ranks(far_ahead, TWO)[0] == 80.0


def learn_and_cross(tokens):
    context = mimo_role.current()
    bridge = context.bridge("vision")
    spec = ActivationSpec(samples=Samples(len(tokens), tokens), token_shape=(2,), dtype=torch.float32)
    specs = [bridge.exchange_spec(spec if bridge.is_sender else None, samples=Samples(len(tokens))) for _ in range(2)]
    found = []
    for agreed in specs:
        sent = None
        if bridge.is_sender:
            own = agreed.samples.of_lane(bridge.source.place_of(context.rank).lane, bridge.source.lanes, source=True)
            sent = torch.cat([torch.full((tokens[sample], 2), float(sample)) for sample in own])
        found.append(bridge.transfer(sent, agreed, back=False).wait())
    return None if found[0] is None else [[row[0] for row in values.tolist()] for values in found]


@pytest.mark.parametrize("tokens", [(3, 2, 0, 4), (1, 1, 1, 1)])
@pytest.mark.parametrize("layout", ["non_colocated", "colocated"])
def test_exchanged_specs_can_be_used_and_exchanged_ahead(layout, tokens):
    topology = Topology.from_modules({"vision": {"tp": 2}, "language": {"dp": 2}}, layout=layout)
    found = [values for values in run_ranks(learn_and_cross, topology, tokens) if values is not None]
    halves = [[float(sample) for sample in half for _ in range(tokens[sample])] for half in ((0, 1), (2, 3))]
    assert found == [[half, half] for half in halves]


def after_the_other_has_gone():
    context = mimo_role.current()
    bridge = context.bridge("vision")
    spec = ActivationSpec.of(1, (2,), torch.float32)
    if bridge.is_sender:
        bridge.send_forward(torch.ones(1, 2), spec).wait()
        with suppress(BridgeError):  # the other one still waits for it
            mimo_role.shutdown()
        return None
    bridge.recv_forward(spec).wait()
    found = []
    for _ in range(3):
        transfer = bridge.recv_forward(spec)
        with suppress(BridgeError):
            transfer.start()
        for attempt in (transfer.wait, transfer.wait):
            try:
                attempt()
            except BridgeError as error:
                found.append(
                    "rank 1 (language lane 0) waits for sample 0 of batch 1 from rank 0 (vision lane 0), but" in str(error)
                )
    return found


def test_a_failed_transfer_fails_again_and_so_do_later_ones():
    assert run_ranks(after_the_other_has_gone, TWO)[1] == [True] * 6


def other_token_counts():
    bridge = mimo_role.current().bridge("vision")
    if bridge.is_sender:
        bridge.send_forward(torch.ones(3, 2), packed(2, 1)).start()
        return None
    try:
        bridge.recv_forward(packed(2, 4)).wait()
    except BridgeError as error:
        return str(error)
    return "no error"


def test_different_token_counts_are_an_error_at_the_first_batch():
    assert run_ranks(other_token_counts, TWO)[1] == (
        "the bridge vision stage 0 -> language stage 0: rank 1 (language lane 0) expects token counts of 2 in sample 0, 4 in "
        "sample 1 in batch 0, but rank 0 (vision lane 0) has others"
    )


def test_messages_of_different_sizes_have_different_tags():
    sizes = list(range(1, 2000)) + [16 * size for size in range(1, 2000)]
    tags = {tag_of(0, Purpose.FORWARD, 0, torch.empty(size, device="meta")) for size in sizes}
    assert len(tags) > 0.75 * len(set(sizes))
    assert tag_of(BRIDGES - 1, max(Purpose), BATCHES - 1, torch.empty(7)) < 1 << 31


def test_a_shape_that_is_one_number_is_refused():
    with pytest.raises(BridgeError, match=r"token_shape=16 is one number; give all sizes, such as \(16,\)"):
        ActivationSpec(samples=Samples(1), token_shape=16, dtype=torch.float32)
    with pytest.raises(BridgeError, match=r"sample_shape=16 is one number; give all sizes, such as \(16,\)"):
        ActivationSpec.of(1, 16, torch.float32)
