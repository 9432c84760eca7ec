"""examples/megatron_mimo on real gloo ranks: Megatron-Core's MimoModel over our groups, and over Megatron-Core's own."""

import logging
import subprocess
import sys
import warnings
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import mimo_role
from mimo_role import GroupOptions, Topology
from mimo_role.megatron import run_on_cpu
from mimo_role.testing import run_ranks

EXAMPLE = Path(__file__).parents[2] / "examples" / "megatron_mimo"
OPTIONS = {"batch_size": 24, "micro_batches": 3, "lr": 3e-3, "clip_grad": 1.0, "dropout": 0.0, "freeze": [], "seed": 1234}
OPTIONS |= {"communicator": "megatron", "freeze_encoder": [], "prefetch": False}

pytestmark = [pytest.mark.ranks, pytest.mark.peer, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def has_mimo_optimizer():
    """Without the import of Megatron-Core, which takes seconds."""
    core = find_spec("megatron.core") if find_spec("megatron") else None
    return core is not None and (Path(core.origin).parent / "models" / "mimo" / "optimizer.py").exists()


needs_mimo = pytest.mark.skipif(not has_mimo_optimizer(), reason="Megatron-Core without MimoOptimizer")

WIDE = {"vision": {"dp": 2}, "audio": {"dp": 2}, "language": {"tp": 2, "pp": 2, "ep": 2}}
OTHER = {"vision": {"dp": 3}, "audio": {"dp": 1}, "language": {"dp": 2, "pp": 2, "ep": 2}}
ALONE = {module: {"dp": 1} for module in WIDE}
STEPS, MORE = 20, 4


def joined(sizes):
    """A context; the example's files can be imported."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    sys.path.insert(0, str(EXAMPLE))
    run_on_cpu()
    groups = dict.fromkeys(sizes, GroupOptions(families="megatron"))
    return mimo_role.init(Topology.from_modules(sizes), backend="gloo", groups=groups)


def trained(context, first, last, **changed):
    """A trainer after some steps from the start, the loss and norm of each, and all parameters and states of this rank."""
    from trainer import Trainer

    from tests.examples.megatron_own_groups import tensors_of

    trainer = Trainer(context, Namespace(**{**OPTIONS, **changed}))
    steps = [trainer.step(step) for step in range(first, last + 1)]
    return trainer, steps, [each.detach().clone() for each in tensors_of(trainer)]


def our_groups_and_megatrons(folder):
    from tests.examples.megatron_own_groups import MegatronsOwn

    context = joined(WIDE)
    own = MegatronsOwn(context, WIDE)
    trainer, ours, our_tensors = trained(context, 1, STEPS)
    trainer.save(folder, STEPS)
    continued = [trainer.step(step) for step in range(STEPS + 1, STEPS + 1 + MORE)]
    _, theirs, their_tensors = trained(own, 1, STEPS)
    _, over_bridges, _ = trained(context, 1, 4, communicator="mimo")
    _, ours_with_dropout, _ = trained(context, 1, 2, dropout=0.2)
    _, theirs_with_dropout, _ = trained(own, 1, 2, dropout=0.2)
    return {
        "ours": ours + ours_with_dropout,
        "theirs": theirs + theirs_with_dropout,
        "over_bridges": over_bridges,
        "tensors": len(our_tensors),
        "equal": all(torch.equal(one, other) for one, other in zip(our_tensors, their_tensors, strict=True)),
        "continued": continued,
    }


def resumed_and_frozen(folder, sizes):
    context = joined(sizes)
    trainer, _, _ = trained(context, 1, 0, communicator="mimo")
    done = trainer.load(folder)
    continued = [trainer.step(step) for step in range(done + 1, done + 1 + MORE)]
    frozen, _, before = trained(context, 1, 0, freeze=["vision"], communicator="mimo")
    frozen.step(1)
    changed = [not torch.equal(one, other) for one, other in zip(before, frozen.model.parameters(), strict=True)]
    only_projection = {"freeze_encoder": ["vision"], "communicator": "mimo"}
    _, plain, plain_tensors = trained(context, 1, 3, **only_projection)
    _, ahead, tensors = trained(context, 1, 3, **only_projection, prefetch=True)
    return {
        "continued": continued,
        "changed": sum(changed),
        "module": next(iter(context.role.modules)),
        "ahead": plain == ahead and all(torch.equal(one, other) for one, other in zip(plain_tensors, tensors, strict=True)),
    }


@needs_mimo
@pytest.mark.timeout(900)
def test_our_groups_give_the_numbers_of_megatrons_own_and_a_checkpoint_continues_in_another_layout(tmp_path):
    wide = run_ranks(our_groups_and_megatrons, world_size(WIDE), tmp_path, timeout_s=450)
    assert all(answers["equal"] for answers in wide)
    assert min(answers["tensors"] for answers in wide) > 10
    assert all(answers["ours"] == wide[0]["ours"] == answers["theirs"] for answers in wide)
    assert all(answers["over_bridges"] == wide[0]["ours"][:4] for answers in wide)
    losses = [loss for loss, _ in wide[0]["ours"]]
    assert losses[STEPS - 1] < losses[0] - 0.3
    assert losses[-2] != losses[0]  # dropout is on

    for sizes in (OTHER, ALONE):
        for answers in run_ranks(resumed_and_frozen, world_size(sizes), tmp_path, sizes, timeout_s=200):
            for step, expected in zip(answers["continued"], wide[0]["continued"], strict=True):
                assert step == pytest.approx(expected, rel=1e-4)  # float32 sums over other lanes and shards
            assert (answers["changed"] == 0) == (answers["module"] == "vision")
            assert answers["ahead"]


def world_size(sizes):
    return Topology.from_modules(sizes).world_size


@pytest.mark.skipif(has_mimo_optimizer(), reason="for versions of Megatron-Core without MimoOptimizer")
@pytest.mark.timeout(120)
def test_an_older_megatron_is_refused_with_what_is_needed(tmp_path):
    sizes = ["modules.vision.dp=1", "modules.audio.dp=1", *(f"modules.language.{axis}=1" for axis in ("tp", "pp", "ep"))]
    command = [sys.executable, "-m", "launcher", "run", str(EXAMPLE / "one_node.yaml"), *sizes]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 1
    assert "this example needs megatron-core 0.19 or newer, and with it Python 3.12 or newer" in done.stdout + done.stderr
