import functools
import math
import re
import shutil

import pytest
import torch
from data import IGNORED, Digits
from model import ENCODERS, LANGUAGE, Encoder, LanguageModel, Stage, initialize
from torch import nn
from torch.nn import functional

from tests.examples.digits_runs import metrics, start, train
from tests.examples.whole_batches import whole_batches

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(180)]

STEPS = 50
BATCH_SIZE = 23  # it divides by no number of lanes or micro-batches
LARGE_BATCH_SIZE = 155
"""Nine steps are an epoch of 1,438 samples; what is left of it is not trained."""


def exact(batch_size: int) -> list[str]:
    return ["--dtype", "float64", "--batch-size", str(batch_size), "--eval-every", "0"]


@functools.cache
def single_process_losses(*modalities, max_norm=math.inf, batch_size=BATCH_SIZE, steps=STEPS):
    """The same training in one process, without roles, bridges or groups."""
    digits = Digits(modalities, torch.float64)
    modules = nn.ModuleDict({name: Encoder(name, Stage.whole(ENCODERS[name])) for name in modalities})
    modules["language"] = LanguageModel(modalities, Stage.whole(LANGUAGE))
    modules.double()
    for name, module in modules.items():
        initialize(module, name, seed=0)
    optimizer = torch.optim.AdamW(modules.parameters(), weight_decay=0.01)
    losses = []
    for step, batch in zip(range(1, steps + 1), whole_batches(digits, batch_size), strict=False):
        optimizer.param_groups[0]["lr"] = 3e-3 * step / 50
        tokens, targets = batch["language"]
        embeddings = {name: modules[name](batch[name]) for name in modalities}
        logits = modules["language"](modules["language"].merge(tokens, embeddings))
        loss = functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), max_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("layout", "overrides"),
    [
        pytest.param("colocated", [], id="colocated"),
        pytest.param("non_colocated", [], id="non_colocated"),
        pytest.param("uneven", [], id="uneven"),
        pytest.param("pipeline", [], id="pipeline"),
        pytest.param("tensor", [], id="tensor"),
        pytest.param("two_encoders", [], id="two_encoders"),
        pytest.param(
            "two_encoders",
            ["modules.vision={dp: 1}", "modules.profile={dp: 1, colocate_with: null}"],
            id="two_encoders_on_ranks_of_their_own",
        ),
        pytest.param(
            "colocated",
            ["modules.vision={dp: 2, pp: 2}", "modules.language={dp: 2, tp: 2}"],
            id="colocated_with_unlike_grids",
        ),
        pytest.param(
            "colocated",
            ["modules.vision={dp: 1, pp: 2}", "modules.language={dp: 1, pp: 2}"],
            id="colocated_pipelines",
        ),
        pytest.param(
            "pipeline",
            ["modules.vision={dp: 1}", "modules.language={pp: 2, tp: 2}"],
            id="pipeline_of_tensor_parallel_stages",
        ),
    ],
)
def test_fifty_steps_of_every_layout_equal_a_single_process(layout, overrides, tmp_path):
    losses = train(layout, tmp_path, *exact(BATCH_SIZE), "--steps", str(STEPS), overrides=overrides)

    expected = single_process_losses(*(["vision", "profile"] if layout == "two_encoders" else ["vision"]))
    print(f"largest relative difference: {max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True)):.1e}")
    assert losses == pytest.approx(expected, rel=1e-9, abs=0)


def test_tensor_parallel_lanes_without_samples_leave_the_training_as_it_is(tmp_path):
    tiny = [*exact(batch_size=3), "--micro-batches", "2", "--steps", "3"]
    sizes = [f"modules.{module}={{dp: 2, tp: 4}}" for module in ("vision", "language")]
    losses = train("colocated", tmp_path, *tiny, overrides=sizes)

    assert losses == pytest.approx(single_process_losses("vision", batch_size=3, steps=3), rel=1e-9, abs=0)


def test_clipped_steps_of_two_epochs_equal_a_single_process(tmp_path):
    losses = train("pipeline", tmp_path, *exact(LARGE_BATCH_SIZE), "--steps", "12", "--clip-grad-norm", "0.5")

    alone = functools.partial(single_process_losses, "vision", batch_size=LARGE_BATCH_SIZE, steps=12)
    assert losses == pytest.approx(alone(max_norm=0.5), rel=1e-9, abs=0)
    assert losses != pytest.approx(alone(), rel=1e-3, abs=0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Twenty straight steps, of three epochs, that saved a checkpoint on the way, and their losses."""
    run_dir = tmp_path_factory.mktemp("saved")
    return run_dir, train("tensor", run_dir, *exact(LARGE_BATCH_SIZE), "--steps", "20", "--checkpoint-every", "10")


@pytest.fixture
def interrupted(saved, tmp_path):
    """What the run folder held had that run been stopped at its fifteenth step or so."""
    run_dir, _ = saved
    shutil.copytree(run_dir / "checkpoints" / "step_000010", tmp_path / "checkpoints" / "step_000010")
    (tmp_path / "checkpoints" / "step_000020.tmp").mkdir()
    shutil.copy(run_dir / "losses.jsonl", tmp_path)
    return tmp_path


def test_resuming_continues_to_the_last_bit(saved, interrupted):
    losses = train("tensor", interrupted, *exact(LARGE_BATCH_SIZE), "--steps", "20", "--checkpoint-every", "10", "--resume")

    assert losses == saved[1]
    assert sorted(path.name for path in (interrupted / "checkpoints").iterdir()) == ["step_000010", "step_000020"]


def test_a_checkpoint_can_be_resumed_in_another_layout(saved, interrupted):
    losses = train("pipeline", interrupted, *exact(LARGE_BATCH_SIZE), "--steps", "20", "--resume")

    assert losses == pytest.approx(saved[1], rel=1e-9, abs=0)


def test_a_resumed_run_takes_its_weight_decay_from_the_command_line(saved, interrupted):
    losses = train("tensor", interrupted, *exact(LARGE_BATCH_SIZE), "--steps", "12", "--weight-decay", "9", "--resume")

    assert losses[:11] == saved[1][:11]
    assert losses[11] != saved[1][11]


def test_resume_without_a_checkpoint_says_so(tmp_path):
    ended = start("non_colocated", tmp_path, "--steps", "20", "--resume")

    assert ended.returncode == 2
    assert f"train.py: --resume: no checkpoint in {tmp_path}/checkpoints; save some with --checkpoint-every" in ended.stderr


@pytest.mark.slow
def test_the_demo_learns_to_name_held_out_digits(tmp_path):
    ended = start("non_colocated", tmp_path, timeout_s=170)

    assert ended.returncode == 0, ended.stderr
    accuracy = [record["accuracy"] for record in metrics(tmp_path) if "accuracy" in record]
    assert accuracy[-1] >= 0.95
    said = re.findall(r"^\[language\.dp0 r2\] step +(\d+)/500 .* accuracy +([\d.]+)% .* samples/s$", ended.stdout, re.MULTILINE)
    assert [(int(step), float(percent)) for step, percent in said] == [
        (100 * (number + 1), round(100 * value, 1)) for number, value in enumerate(accuracy)
    ]
    assert len(ended.stdout.splitlines()) == len(accuracy) == 5
