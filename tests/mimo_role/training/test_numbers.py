"""The recipes of docs/guides/numbers.md: tied embeddings over `embd`, and a gradient scaler over the world."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.nn import functional

import mimo_role
from mimo_role import AxisError, GroupOptions, Topology
from mimo_role.testing import run_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(120)]

ENDS = Topology.from_modules({"vision": {"pp": 3}, "language": {"dp": 2, "pp": 3}})


def ends_of_language():
    ctx = mimo_role.current()
    if not ctx.role.has_language_module:
        with pytest.raises(AxisError, match=r"'vision' has no group of .* with more than two stages, only 'language' can"):
            ctx.group("vision", "embd")
        return None
    return dist.get_process_group_ranks(ctx.group("language", "embd"))


def ends_of_language_by_option():
    ctx = mimo_role.init(ENDS, backend="gloo", timeout_s=60, groups={"language": GroupOptions(families="megatron")})
    found = ends_of_language()
    mimo_role.shutdown()
    return found, ctx.rank


def test_embd_is_the_first_and_last_stage():
    found = run_ranks(ends_of_language_by_option, ENDS.world_size)

    assert [ranks for ranks, _ in found] == [None] * 3 + [[3, 7], [4, 8], [5], [6], [3, 7], [4, 8]]


OPTION = "modules.language.groups.families: megatron"


def ends_without_the_option():
    ctx = mimo_role.current()
    found = []
    for module in ctx.role.modules:
        try:
            found.append(dist.get_process_group_ranks(ctx.group(module, "embd")))
        except AxisError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        pytest.param({"tp": 2}, [[1], [2]], id="one stage"),
        pytest.param({"pp": 2}, [[1, 2]] * 2, id="two stages"),
        pytest.param(
            {"pp": 3},
            3 * ["module 'language' has no group of its first and last stages; ask for it with " + OPTION],
            id="three stages",
        ),
    ],
)
def test_embd_without_an_option(language, expected):
    found = run_ranks(ends_without_the_option, Topology.from_modules({"vision": {}, "language": language}))

    assert found == [[[0]], *([ends] for ends in expected)]


TIED = Topology.from_modules({"vision": {}, "language": {"dp": 2, "pp": 2}})
WORDS, WIDTH, SAMPLES = 7, 4, 6


def embedding():
    return nn.Parameter(torch.randn(WORDS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


def tokens():
    return torch.randint(WORDS, (SAMPLES, 2), generator=torch.Generator().manual_seed(1)).unbind(1)


def loss_of(hidden, weight, targets):
    return functional.cross_entropy(torch.tanh(hidden) @ weight.T, targets, reduction="sum") / SAMPLES


def step_of_tied_stages():
    """One step of two stages with a copy of the embedding each, as in docs/guides/numbers.md."""
    ctx = mimo_role.current()
    if not ctx.role.has_language_module:
        return float(ctx.clip_grad_norm_({}, 0.1)), None, None
    weight, lane = embedding(), ctx.coords("language")["dp"]
    weight.shared_embedding = True
    inputs, targets = (each.chunk(2)[lane] for each in tokens())
    pipeline = ctx.group("language", "pp")
    if ctx.role.is_first_stage("language"):
        hidden = weight[inputs]
        dist.send(hidden.detach(), group=pipeline, group_dst=1)
        dist.recv(gradient := torch.empty_like(hidden), group=pipeline, group_src=1)
        hidden.backward(gradient)
    else:
        dist.recv(hidden := torch.empty(len(inputs), WIDTH, dtype=torch.float64), group=pipeline, group_src=0)
        loss_of(hidden.requires_grad_(), weight, targets).backward()
        dist.send(hidden.grad, group=pipeline, group_dst=0)
    module = nn.Module()
    module.weight = weight
    ctx.sum_gradients({"language": module})
    norm = ctx.clip_grad_norm_({"language": module}, 0.1)
    gradient = weight.grad.clone()
    torch.optim.SGD([weight], lr=0.1).step()
    return float(norm), gradient, weight.detach()


def test_tied_embeddings_get_the_gradient_of_one_process_and_are_counted_once():
    found = run_ranks(step_of_tied_stages, TIED)

    weight = embedding()
    inputs, targets = tokens()
    loss_of(weight[inputs], weight, targets).backward()
    norm = float(nn.utils.clip_grad_norm_([weight], 0.1))
    assert norm > 0.1
    for own, gradient, updated in found:
        assert own == found[0][0] == pytest.approx(norm, rel=1e-12)
        if gradient is not None:
            torch.testing.assert_close(gradient, weight.grad, rtol=1e-12, atol=1e-15)
            assert torch.equal(updated, found[1][2])


SCALED = Topology.from_modules({"vision": {"dp": 2}, "language": {"pp": 2}})


def scaled_steps():
    """Four steps with float16 gradients; in the second, one rank of one module has an infinite one.

    There are two optimizers, of which a scaler alone would skip one.
    """
    ctx = mimo_role.current()
    scaler = ShardedGradScaler(device="cpu", init_scale=2.0**10, growth_interval=2, process_group=dist.group.WORLD)
    scaler.scale(torch.zeros(()))  # makes the scale, on ranks without a loss too
    model = nn.Linear(2, 1).half()
    nn.init.ones_(model.weight)
    optimizers = [torch.optim.SGD([parameter], lr=0.5) for parameter in (model.weight, model.bias)]
    found = []
    for step in range(4):
        model.zero_grad()
        scaler.scale(model(torch.ones(2).half()).sum()).backward()
        if step == 1 and ctx.rank == 1:
            model.weight.grad[0, 1] = math.inf
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        norm = ctx.clip_grad_norm_(dict.fromkeys(ctx.role.modules, model), 1.0)
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        found.append((float(norm), scaler.get_scale(), [parameter.tolist() for parameter in model.parameters()]))
    return found


def test_a_scaler_over_the_world_skips_the_same_step_on_all_ranks():
    found = run_ranks(scaled_steps, SCALED)

    assert found == [found[0]] * SCALED.world_size
    norms, scales, weights = zip(*found[0], strict=True)
    assert norms[0] == norms[2] == norms[3] == pytest.approx(3)  # nine ones: three of vision, three on each stage of language
    assert math.isinf(norms[1])
    assert weights[1] == weights[0]
    assert weights[2] != weights[1]
    assert scales == (1024, 512, 512, 1024)
