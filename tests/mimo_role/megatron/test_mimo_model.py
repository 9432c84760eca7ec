"""Megatron-Core's `MimoModel` under its own schedule, over our bridges: the numbers of one process."""

import pytest
import torch

import mimo_role
from mimo_role import Topology
from mimo_role.megatron import run_on_cpu
from tests.mimo_role.fresh_worlds import Job, run_jobs
from tests.mimo_role.megatron import test_pipeline_communicator as schedule
from tests.mimo_role.megatron.pipeline_vlm import HIDDEN, MICRO_BATCHES
from tests.mimo_role.megatron.small_mimo import Case, build, output_of, summed_gradients, whole_model

pytestmark = schedule.pytestmark

CASES = {
    "fan-in with other token counts in each sample": Case({"dp": 3}, {"dp": 1}),
    "dp 3:2": Case({"dp": 3}, {"dp": 2}),
    "dp 1:3": Case({}, {"dp": 3}),
    "sequence parallel, pp": Case({"tp": 2}, {"tp": 2, "pp": 2}),
    "cp": Case({"dp": 2}, {"cp": 2}),
    "cp of both, dp 1:2": Case({"cp": 2}, {"cp": 2, "dp": 2}),
    "cp, sequence parallel": Case({"dp": 2}, {"cp": 2, "tp": 2}),
    "encoders without text": Case({"dp": 3}, {"dp": 2}, has_text=False),
    "packed": Case({"dp": 2}, {"dp": 2}, packed=True),
    "packed, dp 2:3": Case({"dp": 2}, {"dp": 3}, packed=True),
    "packed, dp 3:1, sequence parallel": Case({"dp": 3}, {"tp": 2}, packed=True),
}


def configured(case):
    from megatron.core.transformer import TransformerConfig

    return TransformerConfig(
        num_layers=2,
        hidden_size=HIDDEN,
        num_attention_heads=2,
        tensor_model_parallel_size=case.language.get("tp", 1),
        context_parallel_size=case.language.get("cp", 1),
        pipeline_model_parallel_size=case.language.get("pp", 1),
        sequence_parallel=case.language.get("tp", 1) > 1,
        params_dtype=torch.float64,
        pipeline_dtype=torch.float64,
        variable_seq_lengths=True,
        deallocate_pipeline_outputs=True,
        calculate_per_token_loss=True,
        moe_token_dispatcher_type="alltoall",
    )


def train(found, case):
    run_on_cpu()
    ctx = mimo_role.current()
    config = configured(case)
    model = build(ctx, case, config)
    communicator = ctx.megatron_pipeline_communicator(config, samples=case.samples)
    losses = schedule.run_schedule(ctx, model, communicator, lambda part, micro: output_of(ctx, case, part, micro))
    found += [losses, summed_gradients(ctx, model)]


def topology_of(case):
    return Topology.from_modules({"vision": dict(case.vision), "language": dict(case.language)})


@pytest.fixture(scope="module")
def outcomes():
    jobs = (Job(train, topology_of(case), (case,)) for case in CASES.values())
    return dict(zip(CASES, run_jobs(*jobs, timeout_s=400, preload=schedule.PRELOAD), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_one_process(outcomes, name):
    case, ranks = CASES[name], outcomes[name]
    assert [rank.errors for rank in ranks] == [""] * len(ranks)
    losses, gradients = whole_model(case)
    last = schedule.ranks_with_loss(topology_of(case))
    assert [sum(of_one) for of_one in zip(*(ranks[at].found[0] for at in last), strict=True)] == pytest.approx(
        losses, rel=1e-12
    )
    assert len(losses) == MICRO_BATCHES
    for rank in ranks:
        for key, gradient in rank.found[1].items():
            torch.testing.assert_close(gradient, gradients[key], rtol=1e-12, atol=1e-12)
