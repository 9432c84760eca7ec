"""Norms of gradients of known values, on real ranks, against the same numbers in one process."""

import logging
import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import mimo_role
from mimo_role import MimoError, Topology
from mimo_role.testing import run_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(120)]

WORLD = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "dp": 2, "pp": 2}})
SHAPE = (5, 3)  # no number of ranks divides it
NORM_TYPES = (2.0, 1.0, 3.0, math.inf)


def whole(name, shape=SHAPE):
    """A parameter's whole gradient."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def with_gradient(gradient):
    parameter = nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient.clone()
    return parameter


class Holder(nn.Module):
    """Parameters under their names."""

    def __init__(self, parameters):
        super().__init__()
        for name, parameter in parameters.items():
            self.register_parameter(name, parameter)


def one_process(names):
    """The gradients of a world in one vector."""
    return torch.cat([whole(name).flatten() for name in names])


def language_parameters(ctx):
    """Parameters placed in every way over the ranks of the language model, on each stage."""
    mesh, stage = ctx.mesh("language"), ctx.coords("language")["pp"]
    placements = {
        "tp_rows": (mesh["tp"], [Shard(0)]),
        "tp_columns": (mesh["tp"], [Shard(1)]),
        "tp_copies": (mesh["tp"], [Replicate()]),
        "dp_rows": (mesh["dp"], [Shard(0)]),
        "rows_of_columns": (mesh["dp", "tp"], [Shard(0), Shard(1)]),
        "hybrid": (mesh["dp", "tp"], [Replicate(), Shard(0)]),
        "few": (ctx.mesh("language", "tp", "dp"), [Shard(1)]),  # 3 columns on 4 ranks: one has none
    }
    found = {
        f"{name}{stage}": with_gradient(distribute_tensor(whole(f"{name}{stage}"), *place, src_data_rank=None))
        for name, place in placements.items()
    }
    found[f"plain{stage}"] = with_gradient(whole(f"plain{stage}"))
    part = with_gradient(whole(f"marked{stage}").tensor_split(2)[ctx.coords("language")["tp"]])
    part.tensor_model_parallel = True
    found[f"marked{stage}"] = part
    halves = distribute_tensor(whole(f"halves{stage}"), mesh["tp"], [Replicate()], src_data_rank=None)
    found[f"halves{stage}"] = with_gradient(halves)
    found[f"halves{stage}"].grad = DTensor.from_local(halves.to_local() / 2, mesh["tp"], [Partial()])
    tied = with_gradient(whole("tied"))
    tied.shared_embedding = True
    found["tied"] = tied
    found["frozen"] = nn.Parameter(torch.ones(2), requires_grad=False)
    return found


def modules_of(ctx):
    """This rank's modules; `tied` is on both stages and, in vision, one parameter under two names."""
    if ctx.role.has_language_module:
        return {"language": Holder(language_parameters(ctx))}
    plain = with_gradient(whole("vision"))
    return nn.ModuleDict({"vision": Holder({"plain": plain, "again": plain})})


STAGED = ("tp_rows", "tp_columns", "tp_copies", "dp_rows", "rows_of_columns", "hybrid", "few", "plain", "marked", "halves")
NAMES = ["vision", "tied", *(f"{name}{stage}" for name in STAGED for stage in (0, 1))]


def full(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def norms_and_clipped():
    """Norms of all types without clipping, then gradients clipped to half their norm."""
    ctx = mimo_role.current()
    modules = modules_of(ctx)
    norms = [float(ctx.clip_grad_norm_(modules, math.inf, norm_type)) for norm_type in NORM_TYPES]
    unscaled = ctx.clip_grad_norm_(modules, 2 * norms[0])
    before = ctx.clip_grad_norm_(modules, norms[0] / 2)
    gradients = {
        name: full(parameter.grad)
        for module in modules.values()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    return [*norms, float(unscaled), float(before)], gradients, before.dtype


def test_the_norm_and_the_clipped_gradients_are_those_of_one_process():
    found = run_ranks(norms_and_clipped, WORLD)

    vector = one_process(NAMES)
    expected = [float(torch.linalg.vector_norm(vector, norm_type)) for norm_type in (*NORM_TYPES, 2.0, 2.0)]
    norms = found[0][0]
    print(f"largest relative difference: {max(abs(a / b - 1) for a, b in zip(norms, expected, strict=True)):.1e}")
    assert norms == pytest.approx(expected, rel=1e-12, abs=0)
    coefficient = expected[0] / 2 / (expected[0] + 1e-6)
    for rank, (own, gradients, dtype) in enumerate(found):
        assert own == norms, f"rank {rank} has other bits"
        assert dtype == torch.float64
        for name, gradient in gradients.items():
            part = whole({"plain": "vision"}.get(name, name)) * coefficient
            if name.startswith("marked"):
                part = part.tensor_split(2)[WORLD.grids["language"].coords(rank)["tp"]]
            torch.testing.assert_close(gradient, part, rtol=1e-12, atol=0)


def attempt(make, **settings):
    """What `clip_grad_norm_` raises."""
    ctx = mimo_role.current()
    try:
        ctx.clip_grad_norm_(make(ctx), **{"max_norm": 1.0, **settings})
    except MimoError as error:
        return f"{type(error).__name__}: {error}"
    return None


def plain_modules_of(ctx):
    return {name: Holder({"weight": with_gradient(whole(name))}) for name in ctx.role.modules}


def on_rank_two(make):
    return lambda ctx: make(ctx) if ctx.rank == 2 else plain_modules_of(ctx)


def on_a_mesh_of_all_modules(ctx):
    mesh = DeviceMesh.from_group(dist.group.WORLD, "cpu", mesh_dim_names=("all",))
    gradient = DTensor.from_local(torch.ones(2), mesh, [Shard(0)])
    return {"language": Holder({"weight": with_gradient(gradient)})}


def sparse(ctx):
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    return {"language": embedding}


def refusals():
    ctx = mimo_role.current()
    refused = {
        "no module": attempt(on_rank_two(lambda _: {"audio": nn.Linear(1, 1)})),
        "not its module": attempt(on_rank_two(lambda _: {"vision": nn.Linear(1, 1)})),
        "mesh": attempt(on_rank_two(on_a_mesh_of_all_modules)),
        "sparse": attempt(on_rank_two(sparse)),
        "max_norm": attempt(plain_modules_of, max_norm=-1.0),
        "nan": attempt(plain_modules_of, max_norm=math.nan),
        "norm_type": attempt(plain_modules_of, norm_type=0.0),
    }
    return refused, float(ctx.clip_grad_norm_(plain_modules_of(ctx), 1.0))


def test_a_refusal_on_one_rank_is_an_error_on_all():
    found = run_ranks(refusals, WORLD)

    own = found[2][0]
    assert own["no module"] == "AxisError: no module 'audio'; there are vision, language"
    assert own["not its module"] == "AxisError: rank 2 does not run 'vision'; it runs language"
    assert own["mesh"].startswith(
        "GradientError: language.weight: the 10 ranks of its device mesh, 0 to 9, are not all ranks of"
    )
    assert own["sparse"].startswith("GradientError: language.weight: its gradient is torch.sparse_coo; use a dense one")
    elsewhere = "GradientError: clip_grad_norm_ failed on other ranks; their errors name the cause"
    for rank, (refused, norm) in enumerate(found):
        assert refused["max_norm"].startswith("GradientError: max_norm=-1.0; use 0 or more")
        assert refused["nan"].startswith("GradientError: max_norm=nan; use 0 or more")
        assert refused["norm_type"] == "GradientError: norm_type=0.0; use a number above 0, or math.inf"
        if rank != 2:
            assert {refused[name] for name in ("no module", "not its module", "mesh", "sparse")} == {elsewhere}
        assert norm == found[0][1]  # and the ranks go on together


class Heard(logging.Handler):
    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def a_step_with(rank, value, norm_type, error_if_nonfinite=False):
    """One rank of one module has a number that is not finite, in a replica that is not counted."""
    ctx = mimo_role.current()
    heard = Heard()
    logging.getLogger("mimo_role.training.gradient_norm").addHandler(heard)
    modules = modules_of(ctx)
    parameters = [parameter for module in modules.values() for parameter in module.parameters() if parameter.requires_grad]
    plain = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
    optimizer = torch.optim.AdamW(plain, lr=0.1, weight_decay=0.5, fused=True)
    if ctx.rank == rank:
        plain[0].grad[0, 0] = value
    before = [parameter.detach().clone() for parameter in plain]
    raised = None
    try:
        norm = ctx.clip_grad_norm_(modules, 1.0, norm_type, error_if_nonfinite=error_if_nonfinite)
        optimizer.step()
    except MimoError as error:
        norm, raised = torch.tensor(0.0), str(error)
    same = all(torch.equal(old, new) for old, new in zip(before, plain, strict=True))
    logging.getLogger("mimo_role.training.gradient_norm").removeHandler(heard)
    return float(norm), same, all(parameter.grad is None for parameter in parameters), heard.messages, raised


def steps_that_are_not_finite():
    return [
        a_step_with(1, math.nan, math.inf),  # vision's second lane, under MAX
        a_step_with(5, math.inf, 2.0),
        a_step_with(5, math.nan, 2.0, error_if_nonfinite=True),
    ]


def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_all():
    found = run_ranks(steps_that_are_not_finite, WORLD)

    message = "the norm of the gradients is not finite, so all are set to None: no rank updates"
    for rank, (nan, infinite, error) in enumerate(found):
        assert nan[:3] == infinite[:3] == (math.inf, True, True)
        assert nan[3] == {0: [message], 1: [f"{message}; on this rank: vision.plain"]}.get(rank, [])
        assert infinite[3] == {0: [message], 5: [f"{message}; on this rank: language.plain0"]}.get(rank, [])
        assert error[1:4] == (True, False, [])
        assert error[4] == "the norm of the gradients is not finite" + ("; on this rank: language.plain0" if rank == 5 else "")
