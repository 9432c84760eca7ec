"""Replicas that differ in one bit, on real ranks."""

import math

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import mimo_role
from mimo_role import MimoError, Topology
from tests.mimo_role.fresh_worlds import Job, run_jobs

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(150)]

WORLD = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "dp": 2}})
STAGES = Topology.from_modules({"vision": {"dp": 2}, "language": {"cp": 2, "pp": 2}})
EXPERTS = Topology.from_modules({"vision": {"dp": 2}, "language": {"dp": 4, "ep": 2}})


class Holder(nn.Module):
    """Parameters under their names, each with a gradient."""

    def __init__(self, **parameters):
        super().__init__()
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))
            self.get_parameter(name).grad = value.detach().clone()


def attempt(modules, **settings):
    try:
        mimo_role.current().check_replicas(modules, **settings)
    except MimoError as error:
        return f"{type(error).__name__}: {error}"
    return "equal"


def numbers():
    return torch.arange(12, dtype=torch.float64).view(4, 3)


def language_module(ctx):
    """Copies, and shards of two kinds, which differ between tp ranks."""
    mesh, tp = ctx.mesh("language")["tp"], ctx.coords("language")["tp"]
    module = Holder(
        copies=torch.tensor([math.nan, 1.0]),
        plain_shard=numbers()[tp],
        rows=distribute_tensor(numbers(), mesh, [Shard(0)], src_data_rank=None),
        replicated=distribute_tensor(numbers(), mesh, [Replicate()], src_data_rank=None),
    )
    module.plain_shard.tensor_model_parallel = True
    return {"language": module}


def modules_of(ctx):
    if not ctx.role.has_language_module:
        return {"vision": Holder(w=numbers())}
    return language_module(ctx)


def flip(ctx, module, name, rank, *, gradient=False):
    modules = modules_of(ctx)
    if ctx.rank == rank:
        parameter = modules[module].get_parameter(name)
        tensor = parameter.grad if gradient else parameter.data
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        local.view(-1)[0] = (
            torch.nextafter(local.view(-1)[0], torch.tensor(9.0, dtype=local.dtype)) if name != "copies" else 0.0
        )
    return modules


def differences(found):
    ctx = mimo_role.current()
    found.append(attempt(modules_of(ctx)))
    found.append(attempt(flip(ctx, "language", "copies", 3)))
    found.append(attempt(flip(ctx, "language", "rows", 5)))
    found.append(attempt(flip(ctx, "language", "replicated", 4, gradient=True)))
    found.append(attempt(flip(ctx, "language", "replicated", 4, gradient=True), gradients=False))
    found.append(attempt(flip(ctx, "vision", "w", 1)))
    modules = modules_of(ctx)
    if ctx.rank == 2:
        modules["language"].copies.grad = None
    found.append(attempt(modules))
    modules = modules_of(ctx)
    if ctx.role.has_language_module:
        del modules["language"].plain_shard.tensor_model_parallel
    found.append(attempt(modules))
    found.append(attempt({"audio": nn.Linear(1, 1)} if ctx.rank == 0 else modules_of(ctx)))
    found.append(attempt({} if ctx.rank == 0 else modules_of(ctx)))


EXPECTED = {
    "equal": [],
    "copies": ["language.copies differs along dp between rank 3 and rank 5", "along tp between rank 2 and rank 3"],
    "rows": ["language.rows differs along dp between rank 3 and rank 5"],
    "replicated": [
        "the gradient of language.replicated differs along dp between rank 2 and rank 4",
        "the gradient of language.replicated differs along tp between rank 4 and rank 5",
    ],
    "without gradients": [],
    "vision": ["vision.w differs along dp between rank 0 and rank 1"],
    "none": ["the gradient of language.copies differs along tp between rank 2 and rank 3"],
    "unmarked": ["language.plain_shard differs along tp between rank 2 and rank 3", "has the attribute tensor_model_parallel"],
}


def test_every_rank_names_what_differs_and_between_which_ranks():
    (outcomes,) = run_jobs(Job(differences, WORLD))
    assert [outcome.errors for outcome in outcomes] == [""] * 6
    for rank, outcome in enumerate(outcomes):
        found = dict(zip([*EXPECTED, "unknown", "left out"], outcome.found, strict=True))
        for name, parts in EXPECTED.items():
            assert found[name].startswith("ReplicaError: replicas are not equal: ") if parts else found[name] == "equal"
            assert [part for part in parts if part not in found[name]] == [], (name, found[name])
        unknown = "AxisError: no module 'audio'" if rank == 0 else "ReplicaError: check_replicas failed on other ranks"
        assert found["unknown"].startswith(unknown)
        assert "vision.w differs along dp between rank 0 and rank 1" in found["left out"]


def tied_and_experts(found):
    ctx = mimo_role.current()
    modules = {name: Holder(w=numbers()) for name in ctx.role.modules}
    if ctx.role.has_language_module and ctx.topology.expert_grids:
        modules["language"].w.allreduce = False
        modules["language"].w.data += ctx.rank % 2  # two experts, on every other rank
    elif ctx.role.has_language_module:
        modules = {"language": Holder(**{f"name{ctx.coords('language')['pp']}": numbers()})}
        next(modules["language"].parameters()).shared_embedding = True
    found.append(attempt(modules))
    if ctx.rank == 5:
        next(modules["language"].parameters()).data[0, 0] += 1
    found.append(attempt(modules))


def test_tied_embeddings_are_compared_between_stages_and_experts_along_expt_dp():
    tied, experts = run_jobs(Job(tied_and_experts, STAGES), Job(tied_and_experts, EXPERTS))
    assert [outcome.errors for outcome in (*tied, *experts)] == [""] * 12
    for outcome in tied:
        equal, different = outcome.found
        assert equal == "equal"
        assert "language: item 0 of the tied embeddings differs along embd between rank 3 and rank 5" in different
        assert "language.name1 differs along cp between rank 4 and rank 5" in different
    for outcome in experts:
        equal, different = outcome.found
        assert equal == "equal"
        assert "language.w differs along expt_dp between rank 3 and rank 5" in different
        assert "along dp" not in different
