"""Several ranks that share the GPU over NCCL; without a GPU, over gloo on the CPU. docs/gpu.md has what this shows."""

import pytest
import torch
import torch.distributed as dist

import mimo_role
from mimo_role import ActivationSpec, Schedule1F1B, Topology
from mimo_role.testing import run_ranks
from tests.gpu.shared_gpu import BACKEND, DEVICE, JOIN_S, LIMIT_S, NO_GPU, ON_GPU, run_sharing, run_unjoined

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(150)]

SIX = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "dp": 2}})
PIPELINE = Topology.from_modules({"vision": {"dp": 2}, "language": {"pp": 2}})
TWO = Topology.from_modules({"vision": {}, "language": {}})
AXES = [("tp",), ("dp",), ("pp",), ("cp",), ("tp", "dp"), ("dp", "cp")]


def test_plain_torch_runs_two_ranks(two_plain_ranks, record_testsuite_property):
    assert not isinstance(two_plain_ranks, str), two_plain_ranks
    record_testsuite_property("torch", torch.__version__)
    record_testsuite_property("backend", two_plain_ranks[0][2])
    print(f"torch {torch.__version__}, {two_plain_ranks[0][2]}")
    assert [(total, received) for total, received, _ in two_plain_ranks] == [(12.0, 44.0), (12.0, 40.0)]


def sums_over_groups():
    """For each group of this rank, the sum of its ranks' numbers."""
    context, found = mimo_role.current(), {}
    for module in context.role.modules:
        for axes in AXES:
            total = torch.full((), float(context.rank), device=DEVICE)
            dist.all_reduce(total, group=context.group(module, *axes))
            found[module, axes] = total.item()
        context.mesh(module)
    return found


def check_sums(ranks):
    for rank, found in enumerate(ranks):
        assert found == {
            (module, axes): sum(SIX.grids[module].row_of(rank, axes)) for module in SIX.modules_of(rank) for axes in AXES
        }


def test_every_group_has_the_right_ranks(several_ranks):
    check_sums(run_sharing(sums_over_groups, SIX))


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason=NO_GPU)
def test_gloo_carries_tensors_that_are_on_a_gpu():
    check_sums(run_ranks(sums_over_groups, SIX, timeout_s=LIMIT_S))


def sum_over_a_new_group(ranks):
    context = mimo_role.current()
    if context.rank not in ranks:
        return None  # without a call
    total = torch.full((), float(context.rank), device=DEVICE)
    dist.all_reduce(total, group=context.new_group(ranks))
    return total.item()


def test_two_ranks_create_a_group_by_themselves(several_ranks):
    assert run_sharing(sum_over_a_new_group, SIX, [1, 4]) == [None, 5.0, None, None, 5.0, None]


def activations(samples, width, dtype):
    """Small whole numbers, which every type has: no two neighbouring rows or columns are equal."""
    values = 2 * torch.tensor(list(samples))[:, None] + torch.arange(width) % 8
    return values.to(torch.float32).to(dtype).to(DEVICE)


def is_equal(found, expected):
    return found.dtype == expected.dtype and torch.equal(found.float(), expected.float())


def across_the_bridge(dtype, width):
    """Send four samples and receive the gradients, which differ by sample; return whether all numbers are right."""
    context = mimo_role.current()
    module = "language" if context.role.has_language_module else "vision"
    samples = range(2 * context.coords(module)["dp"], 2 * context.coords(module)["dp"] + 2)
    own, trains = activations(samples, width, dtype), dtype.is_floating_point and dtype.itemsize > 1
    weight = torch.tensor([sample + 1.0 for sample in samples], device=DEVICE, dtype=own.dtype if trains else None)[:, None]
    bridge = context.bridge("vision")
    if module == "language":
        received = bridge(batch_size=4, sample_shape=(width,), dtype=dtype, requires_grad=trains)
        if trains:
            (received * weight).sum().backward()
        return is_equal(received, own)
    sent = bridge(own.requires_grad_(trains), batch_size=4, requires_grad=trains)
    if not trains:
        return True
    sent.backward()
    return is_equal(own.grad, weight.expand(2, width))


def across_the_bridge_twice(dtype):
    found = [across_the_bridge(dtype, width) for width in (4, 1 << 16)]
    mimo_role.current().bridge("vision").wait()
    return found


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int16, torch.float8_e4m3fn], ids=lambda dtype: str(dtype)[6:]
)
def test_a_bridge_carries_values_and_gradients(several_ranks, dtype):
    """Of 4 numbers a sample each copy receives all; of 65536 the copies receive shares, and exchange them."""
    assert run_sharing(across_the_bridge_twice, SIX, dtype) == [[True, True]] * 6


# Exact in float32: a batch has two samples, and there are three stages.
EXPECTED_LOSSES = [2 * 1.5**3 * sum(column + batch for column in range(8)) for batch in range(8)]


def losses_of_three_steps():
    context = mimo_role.current()
    weight = torch.full((8,), 1.5, device=DEVICE, requires_grad=True)

    def run(module, batch, inputs):
        if module == "vision":
            return (torch.arange(8.0, device=DEVICE) + batch).expand(1, 8) * weight
        return next(iter(inputs.values())) * weight

    schedule = Schedule1F1B(
        context,
        run=run,
        spec_of=lambda *_: ActivationSpec.of(2, (8,), torch.float32),
        loss_of=lambda output, _: output.sum(),
    )
    return [[loss.item() for loss in schedule.step(list(range(8)))] for _ in range(3)]


def test_three_steps_of_a_pipeline_have_the_losses_of_the_formula(several_ranks):
    *others, last = run_sharing(losses_of_three_steps, PIPELINE)
    assert others == [[[], [], []]] * 3
    assert last == [EXPECTED_LOSSES] * 3


def join_in_the_script_without_a_device():
    """As scripts do that set the device and leave `device_id` out: communicators are created at first use."""
    if ON_GPU:
        torch.cuda.set_device(DEVICE)
    dist.init_process_group(BACKEND)
    context = mimo_role.init(PIPELINE, timeout_s=JOIN_S)
    found = str(context.device), losses_of_three_steps()
    mimo_role.shutdown()
    dist.destroy_process_group()
    return found


def test_a_script_joins_without_binding_its_world_to_a_device(several_ranks):
    ranks = run_unjoined(join_in_the_script_without_a_device, 4)
    assert [device for device, _ in ranks] == [str(DEVICE)] * 4
    assert ranks[3][1] == [EXPECTED_LOSSES] * 3


AHEAD = 24


def far_ahead(receives_all_first):
    """One side takes all batches forward before the first one back, in another order than the other side."""
    context = mimo_role.current()
    bridge, weight = context.bridge("vision"), torch.arange(1.0, 9.0, device=DEVICE)
    if context.rank == 0:
        sent = [torch.full((2, 8), float(batch), device=DEVICE, requires_grad=True) for batch in range(AHEAD)]
        outputs = [bridge(batch, batch_size=2) for batch in sent]
        for output in reversed(outputs):
            output.backward()
        return [batch.grad.tolist() for batch in sent]
    received, waiting = [], []
    for number in range(AHEAD):
        waiting.append((number, bridge(batch_size=2, sample_shape=(8,), dtype=torch.float32)))
        received.append(waiting[-1][1].detach())
        if not receives_all_first or number == AHEAD - 1:
            for batch, output in sorted(waiting, key=lambda entry: entry[0] * 7 % AHEAD):
                (output * weight * (batch + 1)).sum().backward()
            waiting.clear()
    return [batch.tolist() for batch in received]


@pytest.mark.parametrize("receives_all_first", [False, True], ids=["the receiver alternates", "the receiver is as far ahead"])
def test_gradients_of_many_batches_come_back_to_their_own(several_ranks, receives_all_first):
    gradients, received = run_sharing(far_ahead, TWO, receives_all_first)
    assert received == [[[float(batch)] * 8] * 2 for batch in range(AHEAD)]
    assert gradients == [[[float((batch + 1) * column) for column in range(1, 9)]] * 2 for batch in range(AHEAD)]
