"""Data-parallel wrappers in a schedule of real ranks against one process that computes the whole batch."""

from collections import Counter
from contextlib import contextmanager, nullcontext
from itertools import product
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

import mimo_role
from mimo_role import ScheduleError, StageId, Topology
from mimo_role.pipeline.gradient_sync import GradientSync
from mimo_role.testing import run_ranks
from tests.mimo_role.pipeline.small_vlm import (
    EXACT,
    IMAGES_AT_THE_FRONT,
    PROMPTS,
    Rank,
    Vision,
    Whole,
    ddp,
    difference,
    fsdp,
    in_full,
    in_parts,
    unwrapped,
)

TIMEOUT_S = 100.0


class SumHook:
    """A communication hook that adds gradients up, and counts the buckets that it gets."""

    def __init__(self):
        self.buckets = 0

    def registered(self, module, group, mesh):
        wrapped = ddp(module, group, mesh)
        wrapped.register_comm_hook(group, self.reduce)
        return wrapped

    def reduce(self, group, bucket):
        self.buckets += 1
        reduced = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
        return reduced.get_future().then(lambda future: future.value()[0])


def counted_reduce_scatters():
    """Of FSDP2, which calls one of two functions, depending on torch's release."""
    name = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"
    return mock.patch.object(dist, name, wraps=getattr(dist, name))


UNEVEN = Topology.from_modules({"vision": {"dp": 2}, "language": {"dp": 3, "pp": 2}})
COLOCATED = Topology.from_modules({"vision": {"dp": 4}, "language": {"dp": 2, "pp": 2}}, layout="colocated")
PAIRS = Topology.from_modules({"vision": {"dp": 2}, "language": {"dp": 2, "pp": 2}})
ALONE = Topology.from_modules({"vision": {}, "language": {}}, layout="colocated")


def gathered_once(module, group, mesh):
    fsdp(module, group, mesh).set_reshard_after_backward(False)
    return module


def every_count_of_micro_batches():
    found = {}
    for wrap in (ddp, fsdp):
        for given in (True, False):
            rank = Rank(wrap, given=given)
            for parts in (1, 2, 3, 5, 8):
                found[wrap.__name__, given, parts] = rank.difference(PROMPTS, parts)
            found[wrap.__name__, given, "no images at the end"] = rank.difference(IMAGES_AT_THE_FRONT, 3)
    found["gathered once"] = Rank(gathered_once).difference(PROMPTS, 3)
    for settings in ({"find_unused_parameters": True}, {"gradient_as_bucket_view": True}, {"bucket_cap_mb": 1e-5}):
        rank = Rank(lambda *args, settings=settings: ddp(*args, **settings), skips_empty=True)
        for prompts in (PROMPTS, IMAGES_AT_THE_FRONT, PROMPTS):
            found[(*settings, prompts is PROMPTS)] = rank.difference(prompts, 3)
    return max(found.values())


@pytest.mark.ranks
@pytest.mark.parametrize("topology", [pytest.param(UNEVEN, id="uneven"), pytest.param(COLOCATED, id="colocated")])
def test_gradients_equal_those_of_one_process(topology):
    if topology is UNEVEN and not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        pytest.skip("FSDP2 of this torch needs all parameters on all lanes")
    run_ranks(every_count_of_micro_batches, topology, timeout_s=TIMEOUT_S)


def two_steps(parts, by_hand):
    """The gradients of the second of two steps, with wrappers that the schedule is not given."""
    rank = Rank(ddp, given=False, around_forward=(lambda wrapper: wrapper.no_sync()) if by_hand else nullcontext)
    for _ in range(2):
        rank.zero_grad()
        rank.schedule.step(in_parts(PROMPTS[:8], parts))
    if by_hand:
        for key, parameter in rank.parameters().items():
            dist.all_reduce(parameter.grad, group=rank.ctx.group(key.partition(".")[0], "dp"))
    found = rank.gradients(summed=by_hand)
    difference(found, rank.whole(PROMPTS[:8]))
    return found


def no_sync_but_for_the_last():
    """As scripts write it whose micro-batches run forward and backward one after the other."""
    begun = Counter()

    def around_forward(wrapper):
        begun[wrapper] += 1
        return nullcontext() if begun[wrapper] == 4 else wrapper.no_sync()

    return Rank(ddp, given=False, around_forward=around_forward).difference(PROMPTS, 4)


def one_reduction_a_step():
    hook = SumHook()
    rank = Rank(hook.registered)
    rank.difference(PROMPTS, 4, summed=True)
    rank.difference(PROMPTS, 4, summed=True)
    sharded = Rank(fsdp)
    with counted_reduce_scatters() as scattered:
        sharded.difference(PROMPTS, 4)
    return hook.buckets, scattered.call_count


def accumulation_over_steps():
    hook = SumHook()
    for wrap, given, summed in ((hook.registered, True, True), (ddp, False, False), (fsdp, True, False), (fsdp, False, False)):
        rank = Rank(wrap, given=given)
        before = hook.buckets
        with counted_reduce_scatters() as scattered:
            rank.schedule.step(in_parts(PROMPTS[:4], 2), sync_gradients=False)
            rank.schedule.step(in_parts(PROMPTS[4:5], 1), sync_gradients=False)
            assert hook.buckets == before
            assert not scattered.called
        rank.schedule.step(in_parts(PROMPTS[5:], 2))
        difference(rank.gradients(summed=summed), rank.whole(PROMPTS))


def training(wrap, given):
    rank = Rank(wrap, given=given)
    whole = Whole(rank.ctx.topology.grids["language"].axis_size("pp"))
    settings = {"lr": 0.1, "momentum": 0.9}
    optimizer = torch.optim.SGD(rank.parameters().values(), **settings)
    alone = torch.optim.SGD(whole.parameters().values(), **settings)
    for first in range(4):
        optimizer.zero_grad()
        alone.zero_grad()
        rank.schedule.step(in_parts(PROMPTS[first:], 3))
        whole.backward(PROMPTS[first:])
        for key, parameter in rank.parameters().items():
            parameter.grad *= rank.lanes(key.partition(".")[0])
        optimizer.step()
        alone.step()
        rank.schedule.forward(in_parts(PROMPTS[:3], 1))
    found = {key: in_full(parameter.detach()) for key, parameter in rank.parameters().items()}
    difference(found, whole.parameters())
    return found


class SeenByLane(Vision):
    """With a buffer in which each lane has a different number until one is broadcast."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.history = []

    def forward(self, pixels):
        self.history.append(self.seen.item())
        self.seen += 1 + mimo_role.current().rank
        return super().forward(pixels)


def buffers():
    found = []

    def wrap(module, group, mesh):
        if isinstance(module, Vision):
            found.append(SeenByLane())
            return ddp(found[0], group, mesh)
        return module

    rank = Rank(wrap)
    for _ in range(3):
        rank.schedule.step(in_parts(PROMPTS, 2))
    return found[0].history if found else None


def with_pairs():
    """Results for several tests below, from one world."""
    return {
        "1 micro-batch": two_steps(1, by_hand=False),
        "4 micro-batches, reduced by the script": two_steps(4, by_hand=True),
        "4 micro-batches": two_steps(4, by_hand=False),
        "last forward": no_sync_but_for_the_last(),
        "reductions": one_reduction_a_step(),
        "accumulation": accumulation_over_steps(),
        "trained with ddp": training(ddp, given=True),
        "trained with ddp that is not given": training(ddp, given=False),
        "trained with fsdp": training(fsdp, given=True),
        "buffers": buffers(),
    }


@pytest.fixture(scope="module")
def pairs():
    return run_ranks(with_pairs, PAIRS, timeout_s=TIMEOUT_S)


@pytest.mark.ranks
@pytest.mark.parametrize(
    "name",
    [
        "1 micro-batch",
        "4 micro-batches, reduced by the script",
        "4 micro-batches",
        "trained with ddp",
        "trained with ddp that is not given",
        "trained with fsdp",
    ],
)
def test_lanes_stay_bitwise_equal(pairs, name):
    for one, other in ((0, 1), (2, 3), (4, 5)):
        assert pairs[one][name].keys() == pairs[other][name].keys()
        for key, tensor in pairs[one][name].items():
            assert torch.equal(tensor, pairs[other][name][key]), key


@pytest.mark.ranks
def test_each_wrapper_reduces_once_a_step(pairs):
    for found in pairs:
        assert found["reductions"] == (2, 2)  # two steps of one bucket; one step of two groups of parameters


@pytest.mark.ranks
def test_buffers_are_broadcast_once_a_step(pairs):
    assert pairs[0]["buffers"] == [0, 1, 2, 3, 4, 5]
    assert pairs[1]["buffers"] == [0, 2, 2, 4, 4, 6]
    assert pairs[2]["buffers"] is None


AUXILIARY = [StageId("vision", 0), StageId("language", 1), StageId("language", 2)]


def auxiliary_losses():
    rank = Rank(ddp, auxiliary=AUXILIARY)
    rank.difference(PROMPTS, 4)
    losses = {name: sum(losses).item() for name, losses in rank.schedule.auxiliary_losses.items()}
    rank.schedule.forward(in_parts(PROMPTS, 4))
    assert losses == {name: sum(losses).item() for name, losses in rank.schedule.auxiliary_losses.items()}
    return losses


@pytest.mark.ranks
def test_auxiliary_losses_of_any_stage_have_gradients():
    found = run_ranks(auxiliary_losses, Topology.from_modules({"vision": {"dp": 2}, "language": {"pp": 3}}))
    expected = {str(at): loss.item() for at, loss in Whole(3, AUXILIARY).backward(PROMPTS)[1].items()}
    assert found[0]["vision"] + found[1]["vision"] == pytest.approx(expected["vision stage 0"], rel=EXACT)
    assert found[2] == {}
    assert found[3]["language"] == pytest.approx(expected["language stage 1"], rel=EXACT)
    assert found[4]["language"] == pytest.approx(expected["language stage 2"], rel=EXACT)


class BrokenError(Exception):
    """Raised by functions of a test."""


def failing(wrapper):
    raise BrokenError


def groups_of(state):
    """The groups of parameters of an FSDP2 module; torch 2.11 has one."""
    return state._fsdp_param_groups if hasattr(state, "_fsdp_param_groups") else [state._fsdp_param_group]


def flags_of(rank):
    wrapper = rank.wrapped["language"]
    if isinstance(wrapper, DistributedDataParallel):
        return wrapper.require_backward_grad_sync, len(wrapper._forward_pre_hooks)
    groups = [group for layer in wrapper.layers.values() for group in groups_of(layer._get_fsdp_state())]
    sync = {(group.reduce_grads, group.all_reduce_grads) for group in groups}
    return sync, wrapper._get_fsdp_state()._state_ctx.is_last_backward, len(wrapper._forward_pre_hooks)


def flags_before_and_after(wrap, given, fails):
    rank = Rank(wrap, given=given)
    before = flags_of(rank)
    if fails:  # in the backward of the first of two micro-batches, after both forwards
        rank.wrapped["vision"].register_full_backward_pre_hook(lambda *_: failing(None))
    try:
        rank.schedule.step(in_parts(PROMPTS, 2), sync_gradients=False)
    except BrokenError:
        assert fails
    else:
        assert not fails
    return before, flags_of(rank)


def refusal(wrap, parts=2, **settings):
    try:
        Rank(wrap, **settings).schedule.step(in_parts(PROMPTS, parts))
    except ScheduleError as error:
        return str(error)
    return ""


def old_fsdp(module, group, mesh):
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(module, process_group=group, device_id=torch.device("cpu"), use_orig_params=True)


def static(module, group, mesh):
    return ddp(module, group, mesh, static_graph=True)


def cast(module, group, mesh):
    from torch.nn.parallel.distributed import _MixedPrecision

    try:
        return ddp(module, group, mesh, mixed_precision=_MixedPrecision(param_dtype=torch.float64))
    except RuntimeError as error:  # since 2.15 torch asks for a stream, of which builds with CUDA make none without a GPU
        raise ScheduleError(str(error)) from None


def frozen_late(module, group, mesh):
    wrapped = ddp(module, group, mesh)
    module.layers["0"].requires_grad_(False)
    return wrapped


class Detached(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        return tuple(tensor.detach() for tensor in self.module(*inputs))


def detached_vision(module, group, mesh):
    return Detached(module) if isinstance(module, Vision) else module


def frozen_vision(module, group, mesh):
    return detached_vision(module.requires_grad_(not isinstance(module, Vision)), group, mesh)


def compiled(hook, which):
    def wrap(module, group, mesh):
        if which == "wrapper":
            return torch.compile(hook.registered(module, group, mesh), backend="eager")
        if which == "module":
            return hook.registered(torch.compile(module, backend="eager"), group, mesh)
        wrapper = hook.registered(module, group, mesh)
        wrapper.compile(backend="eager")
        return wrapper

    return wrap


def reductions_of_compiled(given, which):
    hook = SumHook()
    rank = Rank(compiled(hook, which), given=given)
    for _ in range(3):
        rank.difference(PROMPTS, 3)
    return hook.buckets


COMPILED = list(product([True, False], ["wrapper", "module", "in place"]))


def alone():
    """Results for several tests below, from one world."""
    return {
        "flags": {
            (wrap, given, fails): flags_before_and_after({"ddp": ddp, "fsdp": fsdp}[wrap], given, fails)
            for wrap, given, fails in product(["ddp", "fsdp"], [True, False], [True, False])
        },
        "static graph": refusal(static),
        "static graph, not given": refusal(static, given=False),
        "static graph, one micro-batch": refusal(static, parts=1),
        "mixed precision": refusal(cast),
        "old fsdp": refusal(old_fsdp),
        "old fsdp, one micro-batch": refusal(old_fsdp, parts=1),
        "frozen late": refusal(frozen_late),
        "detached": refusal(detached_vision),
        "detached, not given": refusal(detached_vision, given=False),
        "nothing to train": refusal(frozen_vision),
        "auxiliary loss of a frozen module": refusal(unwrapped, frozen=("vision",), auxiliary=[StageId("vision", 0)]),
        "compiled": {(given, which): reductions_of_compiled(given, which) for given, which in COMPILED},
    }


@pytest.fixture(scope="module")
def rank_alone():
    return run_ranks(alone, ALONE, timeout_s=TIMEOUT_S)[0]


@pytest.mark.ranks
def test_flags_are_restored_after_a_step_and_after_an_error(rank_alone):
    for before, after in rank_alone["flags"].values():
        assert before == after


STATIC = (
    "module 'vision': DistributedDataParallel reduces in its first backward with static_graph=True; leave that out; this step "
    "has 2 micro-batches, sync_gradients=True"
)
CAST = (
    "module 'vision': DistributedDataParallel casts parameters back only when it reduces with mixed_precision; use "
    "torch.autocast; this step has 2 micro-batches, sync_gradients=True"
)
OLD_FSDP = (
    "module 'vision': FullyShardedDataParallel is not driven over several micro-batches in flight; use fully_shard(); this "
    "step has 2 micro-batches, sync_gradients=True"
)
FROZEN = (
    "frozen: vision stage 0 has parameters to train, which would get no gradients; remove 'vision' from frozen=, or set "
    "requires_grad_(False) on what does not train"
)
DETACHED = (
    "run('vision', ...) returned a tensor that needs no gradient, though modules['vision'] has parameters to train; return it "
    "without detach() or no_grad(), or set requires_grad_(False) on what does not train"
)


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("static graph", STATIC),
        ("static graph, not given", STATIC),
        ("static graph, one micro-batch", ""),
        ("mixed precision", CAST),
        ("old fsdp", OLD_FSDP),
        ("old fsdp, one micro-batch", ""),
        (
            "frozen late",
            "DistributedDataParallel did not reduce all its parameters: some were frozen after it was built; build it again",
        ),
        ("detached", DETACHED),
        ("detached, not given", ""),
        ("nothing to train", ""),
        ("auxiliary loss of a frozen module", FROZEN),
    ],
)
def test_wrappers_that_cannot_be_driven_are_refused(rank_alone, name, message):
    if "create a new Stream" in rank_alone[name]:
        pytest.skip("this torch makes no DistributedDataParallel with mixed_precision on a CPU")
    assert rank_alone[name] == message


@pytest.mark.ranks
def test_compiled_modules_are_driven(rank_alone):
    assert rank_alone["compiled"] == dict.fromkeys(COMPILED, 2 * 3)


class OtherWrapper(nn.Module):
    """Anything with a `no_sync()`, such as Megatron-Core's DistributedDataParallel."""

    def __init__(self, events):
        super().__init__()
        self.events = events

    @contextmanager
    def no_sync(self):
        self.events.append("held")
        yield
        self.events.append("released")


@pytest.mark.parametrize(
    ("sync", "expected"),
    [
        (True, ["held", "vision 0", "vision 1", "language 0", "released", "language 1"]),
        (False, ["held", "vision 0", "vision 1", "language 0", "language 1", "released"]),
    ],
)
def test_other_wrappers_leave_no_sync_before_the_last_backward_of_all_their_modules(sync, expected):
    events = []
    wrapper = OtherWrapper(events)
    modules = {"vision": wrapper, "language": nn.ModuleList([wrapper])}
    gradient_sync = GradientSync(modules, known=["vision", "language"], trained=["vision", "language"])
    with gradient_sync.of_step(2, sync=sync, backward=True) as step:
        for module in ("vision", "language"):
            for number in range(2):
                step.before_backward(module, is_last=number == 1)
                events.append(f"{module} {number}")
        step.reduce()
    assert events == expected


def test_modules_that_do_not_train_are_not_driven():
    events = []
    gradient_sync = GradientSync({"vision": OtherWrapper(events)}, known=["vision", "language"], trained=["language"])
    with gradient_sync.of_step(2, sync=True, backward=True):
        pass
    assert not events


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"visoin": nn.Linear(1, 1)}, "modules: no module 'visoin'; there are vision, language"),
        ({"vision": "encoder"}, "modules['vision'] has a str; it is a torch.nn.Module or several"),
        ({"vision": None}, "modules['vision'] has a NoneType; it is a torch.nn.Module or several"),
        ({"vision": [nn.Linear(1, 1), 3]}, "modules['vision'] has a int; it is a torch.nn.Module or several"),
    ],
)
def test_modules_must_be_modules_of_the_topology(modules, message):
    with pytest.raises(ScheduleError) as refused:
        GradientSync(modules, known=["vision", "language"], trained=["vision"])
    assert str(refused.value) == message
