"""Checkpoints of the example, saved in each layout and loaded in each other."""

from itertools import chain, islice, product, repeat

import pytest
import torch
from data import Digits
from parallel import build_modules, make_optimizer
from steps import Steps
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

import mimo_role
from mimo_role import RoleDataLoader, Topology, checkpoint
from tests.mimo_role.fresh_worlds import Job, run_jobs

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]

MODALITIES = ("vision", "profile")
BATCH_SIZE, MICRO_BATCHES, STEPS = 12, 2, 3
EXACT = 1e-9
ALONE = Topology.from_modules({"vision": {}, "profile": {}, "language": {}}, layout="colocated")
LAYOUTS = {
    "pp": Topology.from_modules({"vision": {}, "profile": {}, "language": {"pp": 2}}),
    "tp": Topology.from_modules({"vision": {"tp": 2}, "profile": {"tp": 2, "colocate_with": "vision"}, "language": {"tp": 2}}),
    "fsdp": Topology.from_modules({"vision": {}, "profile": {"colocate_with": "vision"}, "language": {"dp": 2}}),
    "dp": Topology.from_modules({"vision": {"dp": 2}, "profile": {"dp": 2, "colocate_with": "vision"}, "language": {"dp": 2}}),
    "colocated": Topology.from_modules({"vision": {"dp": 2}, "profile": {"dp": 2}, "language": {"dp": 2}}, layout="colocated"),
    "shared": Topology.from_modules(
        {"vision": {"pp": 2}, "profile": {"pp": 2, "colocate_with": "vision"}, "language": {"tp": 2}}
    ),
}


def shard_fully(ctx, modules):
    """FSDP2 over the language model's lanes: blocks and the module itself."""
    language, mesh = modules["language"], ctx.mesh("language")["dp"]
    for module in (*language.blocks.values(), language):
        fully_shard(module, mesh=mesh)
        module.set_gradient_divide_factor(1.0)  # lanes add up: their losses are parts of one mean
    register_fsdp_forward_method(language, "merge")


class Training:
    """One rank's training, with a learning rate that changes from step to step."""

    def __init__(self, seed, *, fsdp=False):
        self.ctx = ctx = mimo_role.current()
        self.modules = build_modules(ctx, MODALITIES, seed, torch.float64)
        if fsdp and ctx.role.has_language_module:
            shard_fully(ctx, self.modules)
        self.optimizer = make_optimizer(self.modules, 1e-2, 0.1)
        self.steps = Steps(ctx, self.modules, self.optimizer)
        digits = Digits(MODALITIES, torch.float64)
        sampler = digits.training_sampler(batch_size=BATCH_SIZE, micro_batches=MICRO_BATCHES, seed=0)
        self.loader = RoleDataLoader(ctx, digits.training, sampler)

    def train(self):
        """The losses of the next steps, the same on all ranks."""
        return [self.step(micro_batches) for micro_batches in islice(chain.from_iterable(repeat(self.loader)), STEPS)]

    def step(self, micro_batches):
        loss = self.steps.train(micro_batches)
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.9
        return loss


def train_alone(found):
    training = Training(seed=3)
    found.append(training.train() + training.train())


def train_and_save(found, layout, folder):
    training = Training(seed=3, fsdp=layout == "fsdp")
    found.append(training.train())
    checkpoint.save(training.ctx, folder / layout, STEPS, training.modules, training.optimizer, training.loader.state_dict())


def load_and_train(found, layout, folder):
    training = Training(seed=4, fsdp=layout == "fsdp")
    for other in LAYOUTS:
        loaded = checkpoint.load(training.ctx, folder / other, training.modules, training.optimizer)
        assert loaded.step == STEPS
        training.loader.load_state_dict(loaded.extra)
        found.append(training.train())
    if layout in ("tp", "fsdp"):
        assert any(isinstance(parameter, DTensor) for parameter in training.modules.parameters()) or training.ctx.rank == 0


def test_every_layout_resumes_every_others_training_as_one_process_that_was_not_interrupted(tmp_path):
    jobs = [Job(train_alone, ALONE)]
    jobs += [Job(train_and_save, topology, (layout, tmp_path)) for layout, topology in LAYOUTS.items()]
    jobs += [Job(load_and_train, topology, (layout, tmp_path)) for layout, topology in LAYOUTS.items()]

    outcomes = run_jobs(*jobs, timeout_s=280)

    assert not [own.errors for ranks in outcomes for own in ranks if own.errors]
    (expected,) = outcomes[0][0].found
    assert expected[-1] != pytest.approx(expected[STEPS - 1], rel=1e-3)
    worst = 0.0
    for ranks in outcomes[1 : len(LAYOUTS) + 1]:
        assert all(own.found == [pytest.approx(expected[:STEPS], rel=0, abs=EXACT)] for own in ranks)
    for (to, came), ranks in zip(
        product(LAYOUTS, LAYOUTS),
        [[own.found[at] for own in ranks] for ranks in outcomes[-len(LAYOUTS) :] for at in range(6)],
        strict=True,
    ):
        for losses in ranks:
            assert losses == pytest.approx(expected[STEPS:], rel=0, abs=EXACT), f"{came} loaded in {to}"
            worst = max(worst, *(abs(one - other) for one, other in zip(losses, expected[STEPS:], strict=True)))
    print(f"largest difference of a loss: {worst:.1e}")
