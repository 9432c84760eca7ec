"""Tensors other than plain, contiguous ones: transferred exactly, or refused with their name."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

import mimo_role
from mimo_role import ActivationSpec, BridgeError, Schedule1F1B, TokenSplit, Topology
from tests.mimo_role.fresh_worlds import Job, run_jobs

pytestmark = pytest.mark.ranks

TWO = Topology.from_modules({"vision": {}, "language": {}})
TENSOR_PARALLEL = Topology.from_modules({"vision": {"tp": 2}, "language": {}})
SPEC = ActivationSpec.of(2, (4, 3), torch.float64)


def values():
    return torch.arange(24, dtype=torch.float64).view(2, 4, 3)


def loss_of(activations):
    """Its gradient differs from element to element."""
    return (activations**3).sum()


def gradient(scale=1.0):
    whole = (values() * scale).requires_grad_()
    loss_of(whole).backward()
    return whole.grad


def replicated(found, how):
    """Every rank of the lane has the whole output as a DTensor."""
    ctx = mimo_role.current()
    weight = values().requires_grad_()

    def encode():
        return DTensor.from_local(weight * 2, ctx.mesh("vision")["tp"], [Replicate()], run_check=False)

    def take(activations):
        found.append(activations.tolist())
        return loss_of(activations)

    if how == "schedule":
        run = lambda module, _, inputs: encode() if module == "vision" else inputs["vision"]  # noqa: E731
        Schedule1F1B(ctx, run=run, spec_of=lambda *_: SPEC, loss_of=lambda output, _: take(output)).step([0])
    elif ctx.bridge("vision").is_sender:
        ctx.bridge("vision")(encode(), spec=SPEC).backward()
    else:
        take(ctx.bridge("vision")(spec=SPEC)).backward()
    if ctx.role.has_modality_modules:
        found.append(weight.grad.tolist())


def sharded_along_tokens(found):
    ctx = mimo_role.current()
    bridge = ctx.bridge("vision", source=TokenSplit(sequence_parallel=True))
    if bridge.is_sender:
        own = values().chunk(2, dim=1)[ctx.coords("vision")["tp"]].clone().requires_grad_()
        bridge(DTensor.from_local(own * 2, ctx.mesh("vision")["tp"], [Shard(1)], run_check=False), spec=SPEC).backward()
        found.append(own.grad.tolist())
        return
    received = bridge(spec=SPEC)
    found.append(received.tolist())
    loss_of(received).backward()


def test_dtensors_placed_as_a_side_divides_tokens_are_transferred_exactly():
    by_bridge, by_schedule, along_tokens = run_jobs(
        Job(replicated, TENSOR_PARALLEL, ("bridge",)),
        Job(replicated, TENSOR_PARALLEL, ("schedule",)),
        Job(sharded_along_tokens, TENSOR_PARALLEL),
    )
    back, there = (gradient(2.0) * 2).tolist(), (values() * 2).tolist()
    for outcomes in (by_bridge, by_schedule):
        assert [own.errors for own in outcomes] == [""] * 3
        assert [own.found for own in outcomes] == [[back], [back], [there]]
    assert [own.errors for own in along_tokens] == [""] * 3
    halves = [half.tolist() for half in (gradient(2.0) * 2).chunk(2, dim=1)]
    assert [own.found for own in along_tokens] == [[halves[0]], [halves[1]], [there]]


def placed_otherwise(found, how, placements):
    ctx = mimo_role.current()
    if ctx.role.has_modality_modules:
        (placement,) = placements
        local = values().chunk(2, dim=placement.dim)[0] if isinstance(placement, Shard) else values()
        output = DTensor.from_local(local, ctx.mesh("vision")["tp"], placements, run_check=False).requires_grad_()
        try:
            if how == "bridge":
                ctx.bridge("vision")(output, spec=SPEC)
            else:
                Schedule1F1B(ctx, run=lambda *_: output, spec_of=lambda *_: SPEC, loss_of=lambda *_: output).step([0])
        except BridgeError as error:
            found.append(str(error))
    dist.barrier()


def test_dtensors_that_are_placed_otherwise_are_refused():
    cases = [("bridge", [own]) for own in (Shard(0), Shard(1), Shard(2), Partial())]
    cases += [("schedule", [own]) for own in (Shard(1), Partial())]
    jobs = [Job(placed_otherwise, TENSOR_PARALLEL, case) for case in cases]
    for (_, _, (_, own)), outcomes in zip(jobs, run_jobs(*jobs), strict=True):
        for sender in outcomes[:2]:
            (error,) = sender.found
            assert f"DTensor with placements {own}" in error
            assert ("partial sum" if own == [Partial()] else "sharded over the mesh dimension 'tp'") in error


class Wrapper(torch.Tensor):
    """A subclass without own storage, like those of quantized tensors."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError(function)


class Named(torch.Tensor):
    """A subclass with its own storage."""


FORMS = {
    "expanded": lambda leaf: leaf[:1, :1].expand(2, 4, 3),
    "transposed": lambda leaf: leaf.transpose(0, 1).contiguous().transpose(0, 1),
    "sliced": lambda leaf: torch.cat([leaf, leaf], dim=2)[:, :, 2:5],
    "a parameter": lambda leaf: leaf,
    "a subclass": lambda leaf: (leaf * 2).as_subclass(Named),
}


def in_every_form(found):
    bridge = mimo_role.current().bridge("vision")
    for form in FORMS.values():
        if bridge.is_sender:
            leaf = torch.nn.Parameter(values())
            bridge(form(leaf), spec=SPEC).backward()
            found.append(leaf.grad.tolist())
        else:
            received = bridge(spec=SPEC)
            loss_of(received).backward()
            found.append((type(received) is torch.Tensor, received.tolist()))
    if bridge.is_sender:
        try:
            bridge(Wrapper(values()), spec=SPEC)
        except BridgeError as error:
            found.append(str(error))


def test_views_parameters_and_subclasses_are_transferred_and_wrappers_refused():
    ((sender, receiver),) = run_jobs(Job(in_every_form, TWO))
    assert (sender.errors, receiver.errors) == ("", "")
    leaves = [values().requires_grad_() for _ in FORMS]
    outputs = [form(leaf).as_subclass(torch.Tensor) for form, leaf in zip(FORMS.values(), leaves, strict=True)]
    for output in outputs:
        loss_of(output).backward()
    assert receiver.found == [(True, output.tolist()) for output in outputs]
    assert sender.found[:-1] == [leaf.grad.tolist() for leaf in leaves]
    assert sender.found[-1].startswith(
        "the bridge vision stage 0 -> language stage 0: rank 0 (vision lane 0) sends activations"
    )
    assert "a Wrapper keeps its data in other tensors" in sender.found[-1]
