"""Megatron-Core's `MimoModel` under its own schedule, over our bridges: the numbers of one process."""

from functools import partial

import pytest
import torch

import mimo_role
from mimo_role import Topology
from mimo_role.megatron import run_on_cpu
from mimo_role.megatron.encoders_first import check_encoders_first
from tests.mimo_role.fresh_worlds import Job, run_jobs
from tests.mimo_role.megatron import test_pipeline_communicator as schedule
from tests.mimo_role.megatron.pipeline_vlm import HIDDEN, LENGTH, MICRO_BATCHES
from tests.mimo_role.megatron.small_mimo import (
    LR,
    MAX_NORM,
    Case,
    Whole,
    build,
    gradients_of_wrapped,
    inputs_of,
    output_of,
    parameters_of,
    summed_gradients,
    whole_model,
)

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
    "colocated pp": Case({"dp": 2}, {"pp": 2}, colocated=True),
    "colocated pp, cp": Case({"dp": 4}, {"pp": 2, "cp": 2}, colocated=True),
    "colocated pp, sequence parallel, 3 samples": Case({"dp": 2, "cp": 2}, {"tp": 2, "pp": 2}, colocated=True, samples=3),
    "colocated pp, packed": Case({"dp": 4}, {"pp": 2, "dp": 2}, colocated=True, packed=True),
    "colocated pp, Megatron's DDP": Case({"dp": 4}, {"pp": 2, "dp": 2}, colocated=True, ddp=True),
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
    if case.colocated:
        encoders = ctx.megatron_encoders_first(config, samples=case.samples)
        losses = train_colocated(ctx, case, config, model, encoders)
        found += [losses, gradients_of_wrapped(ctx, model) if case.ddp else summed_gradients(ctx, model)]
        return
    communicator = ctx.megatron_pipeline_communicator(config, samples=case.samples)
    losses = schedule.run_schedule(ctx, model, communicator, lambda part, micro: output_of(ctx, case, part, micro))
    found += [losses, summed_gradients(ctx, model)]


STEPS = 20
LONG = {
    name: CASES[name]
    for name in ("dp 3:2", "fan-in with other token counts in each sample", "cp of both, dp 1:2", "colocated pp")
}
"""Layouts that Megatron-Core's own communicators refuse."""


def train_long(found, case):
    """The losses and the norm of each step, and this rank's parameters at the end."""
    run_on_cpu()
    ctx = mimo_role.current()
    config = configured(case)
    model = build(ctx, case, config)
    if case.colocated:
        encoders = ctx.megatron_encoders_first(config, samples=case.samples)
        step = partial(train_colocated, ctx, case, config, model, encoders)
    else:
        communicator = ctx.megatron_pipeline_communicator(config, samples=case.samples)
        step = partial(schedule.run_schedule, ctx, model, communicator, lambda part, micro: output_of(ctx, case, part, micro))
    modules = {"vision": model.modality_submodules, "language": model.language_model}
    adam = torch.optim.Adam(model.parameters(), lr=LR)
    for _ in range(STEPS):
        adam.zero_grad()
        losses = step()
        summed_gradients(ctx, model)
        norm = ctx.clip_grad_norm_({name: modules[name] for name in ctx.role.modules}, MAX_NORM)
        adam.step()
        found.append((losses, norm.item()))
    found.append(parameters_of(ctx, model))


def train_colocated(ctx, case, config, model, encoders):
    """Encoders, Megatron-Core's schedule of the language model over its own communicator, and the encoders' backwards."""
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
    from megatron.core.pipeline_parallel.schedules import forward_backward_pipelining_without_interleaving

    inputs = [inputs_of(ctx, case, micro, "vision") for micro in range(MICRO_BATCHES)]
    received = encoders.forward([model.encode(**each) for each in inputs])

    def forward_step(numbers, part):
        micro = next(numbers)
        output, mask = part(**inputs_of(ctx, case, micro, "language"), encoder_outputs=received[micro])
        return output, partial(schedule.loss_of_micro_batch, mask)

    lanes = ctx.topology.grids["language"].axis_size("dp")
    length = case.samples // lanes * LENGTH if case.packed else LENGTH
    losses = forward_backward_pipelining_without_interleaving(
        forward_step_func=forward_step,
        data_iterator=iter(range(MICRO_BATCHES)),
        model=[model],
        num_microbatches=MICRO_BATCHES,
        seq_length=length,
        micro_batch_size=1 if case.packed else case.samples // lanes,
        p2p_communicator=P2PCommunicator(ctx.group("language", "pp"), config),
        pg_collection=ctx.megatron_process_groups("language"),
    )
    encoders.backward()
    return [loss.item() for loss in losses]


def topology_of(case):
    layout = "colocated" if case.colocated else "non_colocated"
    return Topology.from_modules({"vision": dict(case.vision), "language": dict(case.language)}, layout=layout)


@pytest.fixture(scope="module")
def outcomes():
    jobs = [Job(train, topology_of(case), (case,)) for case in CASES.values()]
    jobs += [Job(train_long, topology_of(case), (case,)) for case in LONG.values()]
    names = [*CASES, *(f"long: {name}" for name in LONG)]
    return dict(zip(names, run_jobs(*jobs, timeout_s=400, preload=schedule.PRELOAD), strict=True))


@pytest.mark.parametrize("name", LONG)
def test_twenty_steps_of_an_optimizer_are_those_of_one_process(outcomes, name):
    case, ranks = LONG[name], outcomes[f"long: {name}"]
    assert [rank.errors for rank in ranks] == [""] * len(ranks)
    whole = Whole(case)
    expected = whole.train(STEPS)
    last = schedule.ranks_with_loss(topology_of(case))
    for at, (losses, norm) in enumerate(expected):
        steps = [rank.found[at] for rank in ranks]
        assert [sum(of_one) for of_one in zip(*(steps[rank][0] for rank in last), strict=True)] == pytest.approx(
            losses, rel=1e-9
        )
        assert [found for _, found in steps] == pytest.approx([norm] * len(ranks), rel=1e-9)
    assert sum(expected[-1][0]) < sum(expected[0][0])
    for rank in ranks:
        for key, parameter in rank.found[STEPS].items():
            torch.testing.assert_close(parameter, whole.parameters[key].detach(), rtol=1e-9, atol=1e-9)


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


def misuse(found, case):
    """What a rank is refused: two forwards, a backward without one, a missing output, inputs in the wrong call."""
    run_on_cpu()
    ctx = mimo_role.current()
    config = configured(case)
    encoders = ctx.megatron_encoders_first(config, samples=case.samples)
    output = torch.zeros(0, HIDDEN, dtype=torch.float64, requires_grad=True)
    calls = [
        encoders.backward,
        lambda: encoders.forward([{}]),
        lambda: encoders.forward([{"vision": output}]),
        lambda: encoders.forward([{"vision": output}]),
        encoders.backward,
        lambda: ctx.megatron_pipeline_communicator(config, samples=case.samples),
        lambda: build(ctx, case, config)(None, modality_inputs={"vision": {}}),
    ]
    for call in calls:
        try:
            call()
            found.append("")
        except mimo_role.MimoError as error:
            found.append(str(error))


def test_calls_that_do_not_fit_a_colocated_layout_are_refused():
    case = Case({"dp": 2}, {"pp": 2}, colocated=True)
    (ranks,) = run_jobs(Job(misuse, topology_of(case), (case,)), timeout_s=110, preload=schedule.PRELOAD)
    for rank in ranks:
        assert rank.errors == ""
        wanted = [
            "backward() without a forward()",
            "micro-batch 0 has no output of 'vision'",
            "",
            "the last step has had no backward()",
            "",
            "use ctx.megatron_encoders_first()",
            "modality_inputs= belongs to encode()",
        ]
        for text, found in zip(wanted, rank.found, strict=True):
            assert (text in found) if text else found == ""


@pytest.mark.parametrize(
    ("modules", "layout", "message"),
    [
        ({"vision": {}, "language": {}}, "non_colocated", "is for colocated layouts; use megatron_pipeline_communicator"),
        ({"vision": {"pp": 2}, "language": {"pp": 2}}, "colocated", "modules.vision.pp: encoders that run before the schedule"),
        (
            {"vision": {"dp": 2}, "audio": {"dp": 2, "after": "vision"}, "language": {"pp": 2}},
            "colocated",
            "'vision' does not feed the language model by itself",
        ),
    ],
)
def test_layouts_in_which_encoders_cannot_be_first_are_refused(modules, layout, message):
    with pytest.raises(mimo_role.ScheduleError, match=message):
        check_encoders_first(Topology.from_modules(modules, layout=layout))
