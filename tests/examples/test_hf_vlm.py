"""examples/hf_vlm: its samples, and equal losses, resume and answers in several layouts."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText

from mimo_role.hf import Collation

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "hf_vlm"
SHORT = ("--dtype", "float64", "--batch-size", "6", "--log-every", "1")
NUMBERS = re.compile(r"step (\d+): loss (\S+), norm (\S+),")


def run(config, run_dir, *script_args, overrides=(), code=0):
    """Run a layout and return what the script printed."""
    environ = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "run", EXAMPLE / config, f"run_dir={run_dir}", *overrides, "--", *script_args],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def steps_in(text):
    """By step, loss and gradient norm."""
    return {int(step): (float(loss), float(norm)) for step, loss, norm in NUMBERS.findall(text)}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for step, numbers in found.items():
        assert numbers == pytest.approx(expected[step], rel=2e-7)  # of the digits that are printed


def module_of(name):
    """A module of the example, under a name of its own: another example has a `data` too."""
    spec = importlib.util.spec_from_file_location(f"hf_vlm_{name}", EXAMPLE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


data, small_models = module_of("data"), module_of("small_models")


@pytest.fixture(params=sorted(small_models.CONFIGS))
def config(request):
    return small_models.CONFIGS[request.param]()


def questions_of(config, *, held_out):
    return data.Questions(data.processor_of(config, None), 64, held_out=held_out)


def test_labels_are_the_words_of_the_answer_and_its_end(config):
    questions = questions_of(config, held_out=False)
    tokenizer = data.SmallProcessor(config).tokenizer
    for index in range(8):
        images, _, answer = questions.example(index)
        sample = questions[index]
        labels = sample["labels"]
        assert tokenizer.decode(labels[labels != -100]) == f"{answer} <end>"
        assert ("pixel_values" in sample) == bool(images)
        assert len(images) == data.PICTURES_OF[index]


def test_each_sample_has_a_place_for_every_token_of_its_images(config):
    """And transformers takes what the processor returns, a whole batch and a prompt."""
    questions = questions_of(config, held_out=True)
    model = AutoModelForImageTextToText.from_config(config)
    images, prompt, _ = questions.example(7)
    inputs = questions.inputs(images, prompt)
    expected = (inputs["input_ids"] == config.image_token_id).sum()
    features = {name: inputs[name] for name in ("pixel_values", "image_grid_thw") if name in inputs}
    assert sum(map(len, model.get_image_features(**features, return_dict=True).pooler_output)) == expected
    assert Collation(config, "vision")([questions[7]])["tokens"] == [expected]
    found = model.generate(**inputs, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert found.shape[1] > inputs["input_ids"].shape[1]


def test_held_out_questions_show_other_digits():
    config = small_models.CONFIGS["llava"]()
    seen = questions_of(config, held_out=False), questions_of(config, held_out=True)
    assert [len(each._images) for each in seen] == [1797 - data.HELD_OUT, data.HELD_OUT]
    rows = torch.cat([each._images.flatten(1) for each in seen])
    assert len(rows.unique(dim=0)) == 1797


def test_patches_that_are_merged_follow_one_another():
    config = small_models.CONFIGS["qwen3_vl"]()
    image = torch.arange(16.0).view(4, 4).kron(torch.ones(4, 4)).expand(3, -1, -1)
    fields = data.SmallProcessor(config)(text="<image>", images=[image])
    means = (fields["pixel_values"].mean(1) + 1) * 127.5
    expected = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert means.tolist() == pytest.approx(expected, abs=1e-4)
    assert fields["image_grid_thw"].tolist() == [[1, 4, 4]]


@settings(max_examples=30)
@given(sizes=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=3))
def test_images_of_any_size_have_as_many_places_as_groups_of_patches(sizes):
    config = small_models.CONFIGS["qwen3_vl"]()
    images = [torch.zeros(3, height, width, dtype=torch.uint8) for height, width in sizes]
    fields = data.SmallProcessor(config)(text="<image> " * len(images), images=images)
    grids = fields["image_grid_thw"]
    assert (grids[:, 1:] % 2 == 0).all()
    assert len(fields["pixel_values"]) == grids.prod(1).sum()
    assert (fields["input_ids"] == config.image_token_id).sum() == grids.prod(1).sum() // 4


@pytest.mark.ranks
@pytest.mark.timeout(360)
def test_qwen_trains_alike_in_three_layouts_and_a_resumed_run_continues_it(tmp_path):
    arguments = (*SHORT, "--steps", "4", "--every", "2")
    whole = run("pipeline.yaml", tmp_path / "whole", *arguments, "--micro-batches", "2")
    assert list(steps_in(whole)) == [1, 2, 3, 4]
    assert "exact answers to held-out questions with 3 pictures: " in whole
    (tmp_path / "whole" / "checkpoints" / "step_000004").rename(tmp_path / "step 4")
    again = run("tp_fsdp.yaml", tmp_path / "whole", *arguments, overrides=["modules.language.dp=1"])
    assert_equal(steps_in(again), {step: numbers for step, numbers in steps_in(whole).items() if step > 2})
    first = run("non_colocated.yaml", tmp_path / "other", *arguments)
    assert_equal(steps_in(first), steps_in(whole))
