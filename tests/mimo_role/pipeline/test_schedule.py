"""Steps of real ranks in micro-batches against one process that computes the whole batch."""

import functools
from collections import Counter
from typing import NamedTuple

import pytest
import torch

import mimo_role
from mimo_role import ActivationSpec, BridgeError, ScheduleError, TokenSplit, Topology, lane_samples
from mimo_role.pipeline.schedule import Schedule1F1B
from mimo_role.pipeline.timeline import StageId
from mimo_role.testing import run_ranks

pytestmark = pytest.mark.ranks

TOKENS = {"vision": 3, "audio": 2}
HIDDEN = 4


class MicroBatch(NamedTuple):
    """Samples `first .. first + count - 1`."""

    first: int
    count: int


def raw(module, samples):
    numbers = torch.arange(TOKENS[module] * HIDDEN) + 100 * torch.tensor(samples, dtype=torch.float64).view(-1, 1)
    return torch.cos(numbers + len(module)).view(len(samples), TOKENS[module], HIDDEN)


def weights(at):
    return torch.linspace(0.5, 1.5, HIDDEN, dtype=torch.float64) + at.stage + len(at.module) / 10


def compute(at, weight, hidden):
    return torch.tanh(hidden * weight) + hidden / 2


def merge(inputs):
    return torch.cat([inputs[name] for name in sorted(inputs)], dim=1)


def loss_of(output, samples):
    scale = torch.arange(samples.start + 1.0, samples.stop + 1.0, dtype=torch.float64)[:, None, None]
    return (scale * output**2).sum()


def whole(topology, count):
    """Losses and gradients of one process; independent of micro-batches."""
    parameters = {
        StageId(module, stage): weights(StageId(module, stage)).requires_grad_()
        for module, grid in topology.grids.items()
        for stage in range(grid.axis_size("pp"))
    }

    def through(module, hidden):
        for stage in range(topology.grids[module].axis_size("pp")):
            at = StageId(module, stage)
            hidden = compute(at, parameters[at], hidden)
        return hidden

    encoded = {name: through(name, raw(name, range(count))) for name in topology.modality_module_names}
    loss = loss_of(through("language", merge(encoded)), range(count))
    loss.backward()
    return loss.item(), {at: parameter.grad for at, parameter in parameters.items()}


def step_with(returned):
    ctx = mimo_role.current()
    functions = {
        "run": lambda module, _, inputs: torch.ones(1, 2) if module == "vision" else inputs["vision"],
        "spec_of": lambda *_: ActivationSpec.of(1, (2,), torch.float32),
        "loss_of": lambda output, _: output.sum(),
    }
    functions |= {name: lambda *_, value=value: value for name, value in returned.items() if name in functions}
    settings = {name: value for name, value in returned.items() if name not in functions}
    try:
        Schedule1F1B(ctx, **functions, **settings).step([0, 1])
    except (ScheduleError, BridgeError) as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    ("returned", "rank", "message"),
    [
        ({"run": (1, 2)}, 0, "run('vision', ...) returned int as '0', where Tensor is needed"),
        ({"run": (torch.ones(1),)}, 0, "run('vision', ...) returned a tuple of 0; by spec_of() it returns one tensor"),
        ({"run": {"a": torch.ones(1)}}, 0, "run('vision', ...) returned a mapping of a; by spec_of() it returns one tensor"),
        ({"loss_of": 0.5}, 1, "loss_of() returned float; it returns a tensor of no dimensions"),
        ({"loss_of": torch.ones(2)}, 1, "loss_of() returned a tensor of shape [2]; it returns a tensor of no dimensions"),
        (
            {"micro_batches": {"vision": 1}},
            0,
            "run('vision', ...) returned Tensor; for 2 micro-batches at once it returns a sequence of as many",
        ),
        (
            {"spec_of": None},
            1,
            "spec_of(vision stage 0, ...) returned NoneType; it returns ActivationSpec, a tuple or a mapping of them",
        ),
    ],
)
def test_return_values_of_the_scripts_functions_are_checked(returned, rank, message):
    assert run_ranks(step_with, Topology.from_modules({"vision": {}, "language": {}}), returned)[rank] == message


def two_steps_of_which_the_first_fails():
    ctx = mimo_role.current()
    failing = True

    def run(module, batch, inputs):
        if failing and batch == 1:
            raise ValueError("a bad image")
        return torch.ones(1, 2, requires_grad=True) * 2 if module == "vision" else inputs["vision"]

    schedule = Schedule1F1B(
        ctx,
        run=run,
        spec_of=lambda *_: ActivationSpec.of(1, (2,), torch.float32),
        loss_of=lambda output, _: output.sum(),
    )
    found = []
    for _ in range(2):
        try:
            schedule.step([0, 1, 2])
        except (ValueError, BridgeError) as error:
            found.append(f"{type(error).__name__}: {error}")
        failing = False
    return found


def test_no_step_runs_after_a_failed_one():
    vision, _ = run_ranks(two_steps_of_which_the_first_fails, Topology.from_modules({"vision": {}, "language": {}}))
    assert vision == [
        "ValueError: a bad image",
        "ScheduleError: an earlier step failed on this rank, and its messages may still be in flight; start the job again",
    ]


def schedule_of_nothing(settings):
    unused = lambda *_: None  # noqa: E731
    try:
        Schedule1F1B(mimo_role.current(), run=unused, spec_of=unused, loss_of=unused, **settings)
    except ScheduleError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frozen": "visoin"}, "frozen: no module 'visoin'; there are vision, language"),
        (
            {"frozen": "language"},
            "frozen: 'language' computes the loss, so it has a backward; set requires_grad_(False) instead",
        ),
        ({"splits": {"languag": TokenSplit()}}, "splits: no module 'languag'; there are vision, language"),
        ({"slack": -1}, "slack=-1: it is 0 or more"),
        ({"frozen": "vision", "splits": {"language": TokenSplit(cp_order="zigzag")}}, "no error"),
    ],
)
def test_invalid_arguments_are_refused_by_the_constructor(settings, message):
    assert run_ranks(schedule_of_nothing, Topology.from_modules({"vision": {}, "language": {}}), settings) == [message] * 2


def step(batches, frozen, slack):
    """One step; results of one rank: losses, gradients by stage, most micro-batches kept at a time, outputs."""
    ctx = mimo_role.current()
    mine = {
        at: weights(at).requires_grad_(at.module not in frozen)
        for at in (StageId(module, ctx.coords(module)["pp"]) for module in ctx.role.modules)
    }
    kept, most = Counter(), Counter()

    def own(module, batch):
        samples = lane_samples(batch.count, ctx.topology.grids[module].axis_size("dp"), ctx.coords(module)["dp"])
        return range(batch.first + samples.start, batch.first + samples.stop)

    def run(module, batch, inputs):
        at = StageId(module, ctx.coords(module)["pp"])
        if module == "language" and ctx.role.is_first_stage(module):
            hidden = merge(inputs)
        else:
            hidden = inputs[module] if inputs else raw(module, own(module, batch))
        output = compute(at, mine[at], hidden)
        if output.requires_grad:
            kept[at] += 1
            most[at] = max(most[at], kept[at])
            output.register_hook(lambda _: kept.subtract([at]))
        return output

    def spec_of(at, batch):
        tokens = (
            sum(TOKENS[name] for name in ctx.topology.modality_module_names) if at.module == "language" else TOKENS[at.module]
        )
        return ActivationSpec.of(batch.count, (tokens, HIDDEN), torch.float64)

    schedule = Schedule1F1B(
        ctx,
        run=run,
        spec_of=spec_of,
        loss_of=lambda output, batch: loss_of(output, own("language", batch)),
        frozen=frozen,
        slack=slack,
    )
    losses = schedule.step(batches)
    gradients = {at: weight.grad for at, weight in mine.items()}
    outputs = schedule.forward(batches)
    assert not any(output.requires_grad for output in outputs)
    return losses, gradients, dict(most), outputs


LAYOUTS = [
    pytest.param({"vision": {}, "language": {}}, "non_colocated", id="two ranks"),
    pytest.param({"vision": {"dp": 2}, "language": {"dp": 3}}, "non_colocated", id="2:3"),
    pytest.param({"vision": {"pp": 2}, "language": {"pp": 3, "dp": 2}}, "non_colocated", id="pipelines"),
    pytest.param({"vision": {"tp": 2}, "language": {"tp": 2, "pp": 2}}, "non_colocated", id="tp"),
    pytest.param(
        {"vision": {"dp": 2}, "audio": {"pp": 2, "colocate_with": "vision"}, "language": {"pp": 2}},
        "non_colocated",
        id="encoders that share ranks",
    ),
    pytest.param({"vision": {"pp": 2}, "audio": {}, "language": {"dp": 2}}, "non_colocated", id="encoders of unlike depth"),
    pytest.param({"vision": {"dp": 4}, "language": {"tp": 2, "dp": 2}}, "colocated", id="colocated"),
    pytest.param({"vision": {"pp": 2}, "language": {"pp": 2}}, "colocated", id="colocated pipelines"),
    pytest.param({"vision": {"dp": 2, "pp": 2}, "language": {"pp": 4}}, "colocated", id="colocated unlike pipelines"),
]


def check(topology, batches, found, frozen=(), slack=1):
    count = sum(batch.count for batch in batches)
    loss, expected = whole(topology, count)
    total, summed = 0.0, {}
    for rank, (losses, gradients, most, outputs) in enumerate(found):
        replicas = {module: coords["tp"] for module, coords in topology.coords_of(rank).items()}
        is_last = topology.role_of(rank).is_last_stage("language")
        assert len(losses) == len(outputs) == (len(batches) if is_last else 0)
        if is_last and not replicas["language"]:
            total += sum(losses).item()
        for at, gradient in gradients.items():
            if at.module in frozen:
                assert gradient is None
            elif not replicas[at.module] and gradient is not None:  # an empty lane may have none
                summed[at] = summed.get(at, 0) + gradient
            depth = topology.grids[at.module].axis_size("pp") - at.stage - 1
            depth += topology.grids["language"].axis_size("pp") if at.module != "language" else 0
            assert most.get(at, 0) <= depth + 1 + slack
    assert total == pytest.approx(loss, rel=1e-12)
    for at, gradient in expected.items():
        if at.module not in frozen:
            torch.testing.assert_close(summed[at], gradient, rtol=1e-12, atol=0)


def in_parts(*counts):
    firsts = [sum(counts[:number]) for number in range(len(counts))]
    return [MicroBatch(first, count) for first, count in zip(firsts, counts, strict=True)]


@pytest.mark.parametrize(("modules", "layout"), LAYOUTS)
def test_a_step_in_micro_batches_equals_one_process(modules, layout):
    topology = Topology.from_modules(modules, layout=layout)
    batches = in_parts(4, 5, 1, 4, 6, 4)
    check(topology, batches, run_ranks(step, topology, batches, (), 1))


def test_frozen_encoders_have_no_backward():
    topology = Topology.from_modules({"vision": {"pp": 2}, "audio": {}, "language": {"dp": 2}})
    batches = in_parts(4, 5, 1, 4, 6, 4)
    check(topology, batches, run_ranks(step, topology, batches, ("vision",), 1), frozen=("vision",))


def test_stages_keep_at_most_as_many_micro_batches_as_allowed():
    topology = Topology.from_modules({"vision": {}, "language": {"pp": 2}})
    batches = in_parts(*[2] * 9)
    found = run_ranks(step, topology, batches, (), 0)
    check(topology, batches, found, slack=0)
    kept = functools.reduce(lambda all_of, most: all_of | most, (most for _, _, most, _ in found))
    assert kept == {StageId("vision", 0): 3, StageId("language", 0): 2, StageId("language", 1): 1}
