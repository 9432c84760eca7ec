"""Data loaders in real ranks: worker processes, training over them, and ranks that disagree."""

from dataclasses import replace
from itertools import chain, islice, repeat

import pytest
import torch

import mimo_role
from mimo_role import (
    ActivationSpec,
    DataError,
    GlobalBatchSampler,
    RoleDataLoader,
    Schedule1F1B,
    Topology,
    balanced_lanes,
    exchange_sizes,
)
from mimo_role.testing import run_ranks
from tests.mimo_role.data.datasets import LAYOUTS, Numbers, indices_and_noise, place

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(120)]

SAMPLER = GlobalBatchSampler(length=11, global_batch_size=4, micro_batches=2, seed=5)
WIDTH = 3
WORKERS = {"num_workers": 2, "multiprocessing_context": "fork"}
"""In the processes of `run_ranks` the default is to start new interpreters."""


def read(ctx, state, steps, **options):
    """What each micro-batch of some steps was on this rank, and the state after them; in workers if there are options."""
    options = WORKERS | options if options else {}
    loader = RoleDataLoader(ctx, Numbers(11), SAMPLER, collate_fn=indices_and_noise, **options)
    if state:
        loader.load_state_dict(state)
    found = chain.from_iterable(islice(chain.from_iterable(repeat(loader)), steps))
    return [(micro.epoch, micro.step, micro.number, micro.indices, micro.data) for micro in found], loader.state_dict()


def shields(ctx):
    """Whether samples were read where SIGUSR1 is ignored, and which workers the script's function was called in."""
    started = []
    loader = RoleDataLoader(ctx, Numbers(11), SAMPLER, worker_init_fn=started.append, **WORKERS)
    found = [bool(own["is_shielded"].all()) for micro in next(iter(loader)) for own in micro.data.values()]
    return found, started


class Pairs(torch.utils.data.Dataset):
    """Inputs and targets that follow from the index, with random noise on the inputs."""

    def __len__(self):
        return 11

    def __getitem__(self, index):
        values = torch.arange(WIDTH, dtype=torch.float64) + index
        return {"x": values.sin() + 0.1 * torch.rand(WIDTH, dtype=torch.float64), "y": values.cos()}


def train(ctx, state, steps):
    """Gradients of this rank's modules over some steps with the schedule, summed over lanes."""
    weights = {name: torch.nn.Parameter(torch.ones(WIDTH, dtype=torch.float64)) for name in ctx.role.modules}

    def run(module, micro, inputs):
        return weights[module] * (micro["vision"]["x"] if module == "vision" else inputs["vision"])

    def spec_of(at, micro):
        return ActivationSpec.of(len(micro), (WIDTH,), torch.float64)

    def loss_of(output, micro):
        return (output - micro["language"]["y"]).square().sum() / micro.samples_in_step

    loader = RoleDataLoader(ctx, Pairs(), SAMPLER, **WORKERS)
    loader.load_state_dict(state)
    schedule = Schedule1F1B(ctx, run=run, spec_of=spec_of, loss_of=loss_of)
    for micro_batches in islice(chain.from_iterable(repeat(loader)), steps):
        schedule.step(micro_batches)
    for name, weight in weights.items():
        torch.distributed.all_reduce(weight.grad, group=ctx.group(name, "dp"))
    return {name: weight.grad for name, weight in weights.items()}, loader.state_dict()


def disagree(ctx):
    """The error on this rank in each of several jobs in which one rank differs."""
    is_odd = ctx.rank == 3
    cases = {
        "seed": (replace(SAMPLER, seed=6) if is_odd else SAMPLER, {}, 0),
        "length": (replace(SAMPLER, length=9) if is_odd else SAMPLER, {}, 0),
        "step": (SAMPLER, {"check_every": 1}, int(is_odd)),
        "lanes": (SAMPLER, {"assign_lanes": {"vision": lambda indices, _: [int(is_odd)] * len(indices)}}, 0),
        "order": (replace(SAMPLER, shuffle=not is_odd), {}, 0),
    }
    errors = {}
    for name, (sampler, options, skipped) in cases.items():
        loader = RoleDataLoader(ctx, range(sampler.length), sampler, **options)
        if skipped:
            loader.load_state_dict({**loader.state_dict(), "samples": 4, "steps": 1})
        try:
            list(loader)
        except DataError as error:
            errors[name] = str(error)
    return errors


def in_uneven_world():
    ctx = mimo_role.current()
    without, with_workers = read(ctx, None, 7), read(ctx, None, 7, persistent_workers=True)
    first, state = read(ctx, None, 4, num_workers=1)
    second, after = read(ctx, state, 3)
    return {
        "workers change nothing": without == with_workers,
        "a restart changes nothing": ([*first, *second], after) == without,
        "shields": shields(ctx),
        "read": without,
        "trained": train(ctx, RoleDataLoader(ctx, Pairs(), SAMPLER).state_dict(), 4),
        "errors": disagree(ctx),
    }


def in_colocated_world(state):
    ctx = mimo_role.current()
    return read(ctx, state, 3, prefetch_factor=1), train(ctx, state, 3)


COLOCATED = Topology.from_modules({"vision": {"dp": 2}, "language": {"dp": 2}}, layout="colocated")


@pytest.fixture(scope="module")
def uneven():
    return run_ranks(in_uneven_world, LAYOUTS["uneven"], timeout_s=100)


@pytest.fixture(scope="module")
def colocated(uneven):
    """The same job, resumed in another layout at its fourth step."""
    return run_ranks(in_colocated_world, COLOCATED, uneven[0]["trained"][1], timeout_s=100)


def seen(ranks):
    """By module, epoch, step and micro-batch, the samples that its lanes have seen; ranks in the order of lanes."""
    found = {}
    for micro_batches in ranks:
        for epoch, step, number, indices, data in micro_batches:
            for module, (own, *_) in data.items():
                found.setdefault((module, epoch, step, number, indices), []).extend(own)
    return found


def test_workers_and_restarts_change_nothing(uneven):
    assert all(rank["workers change nothing"] and rank["a restart changes nothing"] for rank in uneven)


def test_all_modules_see_the_same_samples_over_a_resume_in_another_layout(uneven, colocated):
    before = seen([[micro for micro in rank["read"][0] if micro[1] < 4] for rank in uneven])
    after = seen([reads for (reads, _), _ in colocated])
    assert all(tuple(own) == key[-1] for key, own in [*before.items(), *after.items()])
    for module in ("vision", "language"):
        for epoch in (0, 1):
            own = [index for key, found in [*before.items(), *after.items()] if key[:2] == (module, epoch) for index in found]
            assert sorted(own) == list(range(11)) if epoch == 0 else len(own) == len(set(own))
    assert len({key[:3] for key in [*before, *after]}) == 2 * 7


def test_workers_ignore_notices(uneven):
    assert all(rank["shields"] == ([True] * len(rank["shields"][0]), []) for rank in uneven)
    assert any(rank["shields"][0] for rank in uneven)


def one_process(steps, skipped=0):
    """The gradients of both modules, summed over steps."""
    vision, language = (torch.ones(WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(2))
    alone = Topology.from_modules({"vision": {}, "language": {}}, layout="colocated")
    loader = RoleDataLoader(place(alone, 0), Pairs(), SAMPLER, check_every=0)
    for micro_batches in islice(chain.from_iterable(repeat(loader)), skipped, skipped + steps):
        for micro in micro_batches:
            x, y = micro["vision"]["x"], micro["language"]["y"]
            ((language * (vision * x) - y).square().sum() / micro.samples_in_step).backward()
    return {"vision": vision.grad, "language": language.grad}


def test_training_equals_one_process_in_both_layouts(uneven, colocated):
    found = [
        *((rank["trained"][0], one_process(4)) for rank in uneven),
        *((trained[0], one_process(3, skipped=4)) for _, trained in colocated),
    ]
    for gradients, expected in found:
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("seed", "step 0: ranks read different samples. seed is 5 on 4 of 5 ranks, but rank 3 (language.dp1) has 6."),
        ("length", "step 0: ranks read different samples. length is 11 on 4 of 5 ranks, but rank 3 (language.dp1) has 9."),
        ("step", "step 0: ranks read different samples. step is 0 on 4 of 5 ranks, but rank 3 (language.dp1) has 1."),
        ("lanes", "digest of assign_lanes is "),
        ("order", "shuffle is True on 4 of 5 ranks, but rank 3 (language.dp1) has False."),
    ],
)
def test_ranks_that_read_other_samples_are_named_on_all_ranks(uneven, case, message):
    errors = {rank["errors"][case] for rank in uneven}
    assert len(errors) == 1
    assert message in errors.pop()


def size_of(index):
    return index % 4


def sizes_of_steps(_):
    """The exchanged sizes of three steps, what they should be, and messages for wrong ones."""
    ctx = mimo_role.current()
    assign = {"vision": lambda indices, lanes: balanced_lanes([size_of(index) + 1 for index in indices], lanes)}
    loader = RoleDataLoader(ctx, Numbers(11), SAMPLER, collate_fn=indices_and_noise, assign_lanes=assign)
    found, expected, messages = [], [], []
    for micros in islice(loader, 3):
        own = {
            name: [[size_of(index) for index in micro[name][0]] for micro in micros]
            for name in ctx.role.modules
            if ctx.role.is_first_stage(name)
        }
        sizes = exchange_sizes(ctx, ["vision", "language"], micros, own)
        found += [sizes[name][micro.number] for name in ("vision", "language") for micro in micros]
        expected += [tuple(map(size_of, micro.indices)) for _ in range(2) for micro in micros]
    for wrong in ({}, {"vision": [[1] * 9] * len(micros)}) if "vision" in ctx.role.modules else ():
        with pytest.raises(DataError) as caught:  # before any message
            exchange_sizes(ctx, ["vision"], micros, wrong)
        messages.append(str(caught.value))
    with pytest.raises(DataError) as caught:
        sizes["audio"]
    return found, expected, [*messages, str(caught.value)]


def test_every_rank_gets_the_sizes_of_all_samples():
    topology = Topology.from_modules({"vision": {"dp": 2}, "language": {"pp": 2, "tp": 2}})
    answers = run_ranks(sizes_of_steps, topology, None, timeout_s=60)
    for found, expected, _ in answers:
        assert found == expected
    without, too_many, unknown = answers[0][2]
    assert without == "'vision': pass the sizes of its samples for each of 2 micro-batches, not none"
    assert too_many.startswith("'vision', micro-batch 0: [1, 1, 1, 1, 1, 1, 1, 1, 1] are not the sizes of this lane's ")
    assert unknown == "the sizes of 'audio' are not exchanged, only those of: vision, language"
