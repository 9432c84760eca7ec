"""The family that docs/guides/hf.md describes as an example of a reader's own."""

import re
from pathlib import Path

import pytest
from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config

import mimo_role
from mimo_role import Topology
from tests.mimo_role.fresh_worlds import Job, run_jobs
from tests.mimo_role.hf import small_models
from tests.mimo_role.hf.oracle import oracle, steps_of

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(240)]

PAGE = Path(__file__).parents[3] / "docs" / "guides" / "hf.md"
STEPS = 4


def internvl():
    vision = InternVLVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=[16, 16],
        patch_size=[4, 4],
    )
    text = Qwen2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=small_models.WORDS,
        pad_token_id=0,
    )
    return InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=small_models.IMAGE,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )


def register_family():
    (code,) = re.findall(
        r"```python\n(import torch\n\nfrom mimo_role.hf import Encoder.*?)```", PAGE.read_text("utf-8"), re.DOTALL
    )
    exec(code, {"__name__": "own_family"})


def train(found, config, folder, fsdp):
    register_family()
    found += steps_of(mimo_role.current(), config, folder, fsdp, steps=STEPS)


def test_the_family_of_the_page_has_the_numbers_of_one_process(tmp_path):
    register_family()
    config, folder = internvl(), str(tmp_path)
    expected = oracle(config, folder, steps=STEPS)
    layouts = [({"dp": 2}, {"pp": 2}, ()), ({"dp": 2}, {"tp": 2}, ("vision",))]
    jobs = [
        Job(train, Topology.from_modules({"vision": vision, "language": language}), (config, folder, fsdp))
        for vision, language, fsdp in layouts
    ]
    for ranks in run_jobs(*jobs, timeout_s=200):
        assert [rank.errors for rank in ranks] == [""] * 4
        for rank in ranks:
            assert rank.found == [pytest.approx(step, rel=1e-12, abs=0) for step in expected]
