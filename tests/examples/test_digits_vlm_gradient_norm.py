"""Norms and clipped gradients of the example in every layout, against one process."""

import functools
import itertools
import math

import pytest
import torch
from data import IGNORED, Digits
from model import ENCODERS, LANGUAGE, Encoder, LanguageModel, Stage, initialize
from parallel import build_modules
from steps import Steps
from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn import functional

import mimo_role
from launcher.config.loader import load
from launcher.plan.planner import make_plan
from mimo_role import RoleDataLoader, Topology
from mimo_role.testing import run_ranks
from tests.examples.digits_runs import EXAMPLE
from tests.examples.whole_batches import whole_batches

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(180)]

BATCH_SIZE, MICRO_BATCHES = 23, 2
NORM_TYPES = (2.0, 1.0, math.inf)
CLIPPED_TO = 0.25
"""The share of the norm that gradients are clipped to."""


@functools.cache
def gradients_of_one_process(modalities):
    """The whole batch's gradients by the parameters' full names."""
    digits = Digits(modalities, torch.float64)
    modules = nn.ModuleDict({name: Encoder(name, Stage.whole(ENCODERS[name])) for name in modalities})
    modules["language"] = LanguageModel(modalities, Stage.whole(LANGUAGE))
    modules.double()
    for name, module in modules.items():
        initialize(module, name, seed=0)
    batch = next(whole_batches(digits, BATCH_SIZE))
    tokens, targets = batch["language"]
    embeddings = {name: modules[name](batch[name]) for name in modalities}
    logits = modules["language"](modules["language"].merge(tokens, embeddings))
    functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED).backward()
    return {name: parameter.grad for name, parameter in modules.named_parameters()}


def shard_fully(ctx, modules):
    """FSDP2 over the language model's lanes, on top of tensor parallelism and pipeline stages."""
    language, mesh = modules["language"], ctx.mesh("language")["dp"]
    for module in (*language.blocks.values(), language):
        fully_shard(module, mesh=mesh)
        module.set_gradient_divide_factor(1.0)  # lanes add up: their losses are parts of one mean
    register_fsdp_forward_method(language, "merge")


def norms_and_gradients(modalities, fsdp=False):
    """One step's norms and clipped gradients on a rank."""
    ctx = mimo_role.current()
    modules = build_modules(ctx, modalities, 0, torch.float64)
    if fsdp:
        shard_fully(ctx, modules)
    digits = Digits(modalities, torch.float64)
    sampler = digits.training_sampler(batch_size=BATCH_SIZE, micro_batches=MICRO_BATCHES, seed=0)
    without_update = torch.optim.SGD(modules.parameters(), lr=0.0)
    Steps(ctx, modules, without_update).train(next(iter(RoleDataLoader(ctx, digits.training, sampler))))
    norms = [float(ctx.clip_grad_norm_(modules, math.inf, norm_type)) for norm_type in NORM_TYPES]
    norms.append(float(ctx.clip_grad_norm_(modules, CLIPPED_TO * norms[0])))
    kinds = {str(parameter.grad.placements) for parameter in modules.parameters() if isinstance(parameter, DTensor)}
    return norms, {name: full(parameter.grad) for name, parameter in modules.named_parameters()}, kinds


def full(gradient):
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def assert_equal_to_one_process(found, modalities):
    expected = gradients_of_one_process(tuple(modalities))
    norms = [float(nn.utils.get_total_norm(expected.values(), norm_type)) for norm_type in NORM_TYPES]
    assert all(own == found[0][0] for own, _, _ in found)
    pairs = list(zip(found[0][0], [*norms, norms[0]], strict=True))
    coefficient = CLIPPED_TO * norms[0] / (norms[0] + 1e-6)
    errors = []
    for _, gradients, _ in found:
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name] * coefficient, rtol=1e-12, atol=1e-12 * norms[0])
            errors.append(float((gradient - expected[name] * coefficient).abs().max()) / norms[0])
    assert set(itertools.chain(*(gradients for _, gradients, _ in found))) == set(expected)
    print(
        f"largest difference of norms: {max(abs(a / b - 1) for a, b in pairs):.1e}, of gradients: {max(errors):.1e} of the norm"
    )
    assert found[0][0] == pytest.approx([expected for _, expected in pairs], rel=1e-12, abs=0)


@pytest.mark.parametrize("layout", ["colocated", "non_colocated", "uneven", "pipeline", "tensor", "two_encoders"])
def test_the_norm_equals_one_process_in_every_layout(layout):
    config = EXAMPLE / f"{layout}.yaml"
    topology = make_plan(load(config, [])[0], config, []).topology
    modalities = topology.modality_module_names

    assert_equal_to_one_process(run_ranks(norms_and_gradients, topology, modalities, preload=["sklearn.datasets"]), modalities)


def test_the_norm_equals_one_process_with_fsdp2_tp_and_pp_at_once():
    topology = Topology.from_modules({"vision": {"dp": 8}, "language": {"tp": 2, "dp": 2, "pp": 2}}, layout="colocated")

    found = run_ranks(norms_and_gradients, topology, ["vision"], True, timeout_s=90, preload=["sklearn.datasets"])

    assert_equal_to_one_process(found, ["vision"])
    for _, _, kinds in found:
        assert any("_StridedShard" in kind for kind in kinds), kinds
        assert "(Shard(dim=0),)" in kinds
