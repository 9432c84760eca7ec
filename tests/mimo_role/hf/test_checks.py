"""Models that a layout would compute otherwise than one process are refused before they are built."""

import re
from dataclasses import replace

import pytest
import torch
from transformers import GraniteConfig, LlavaConfig, Qwen2Config

from mimo_role import Topology
from mimo_role.errors import HfError
from mimo_role.hf import building, checks
from mimo_role.hf.families import family_of
from mimo_role.hf.parts import EncoderPart
from tests.mimo_role.hf import small_models


def llava_with(text):
    config = small_models.llava()
    return LlavaConfig(vision_config=config.vision_config, text_config=text, image_token_id=small_models.IMAGE)


def check(config, fsdp=(), **language):
    family = family_of(config)
    (encoder,) = family.encoders
    model = building.build_on_meta(config, family, torch.float32)
    checks.check_layout(model, family, Topology.from_modules({encoder: {"dp": 2}, "language": language}).grids, fsdp)


GRANITE = GraniteConfig(**small_models.TEXT, embedding_multiplier=2.0)
WINDOWS = Qwen2Config(**small_models.TEXT, use_sliding_window=True, sliding_window=8, max_window_layers=2)


@pytest.mark.parametrize(
    ("config", "layout", "message"),
    [
        pytest.param(small_models.llava(), {"tp": 4}, "tp=4 does not divide num_key_value_heads=2", id="heads"),
        pytest.param(llava_with(GRANITE), {"pp": 2}, "GraniteModel changes embeddings before its first", id="stages"),
        pytest.param(llava_with(WINDOWS), {"cp": 2}, "layers of 'qwen2' have sliding_attention", id="windows"),
        pytest.param(small_models.idefics3(attention_dropout=0.1), {"tp": 2}, "attention_dropout=0.1", id="dropout"),
        pytest.param(
            small_models.qwen2_audio(encoder_layerdrop=0.2), {"fsdp": ["audio"]}, "encoder_layerdrop=0.2", id="layerdrop"
        ),
    ],
)
def test_a_layout_that_changes_numbers_is_refused(config, layout, message):
    with pytest.raises(HfError, match=message):
        check(config, **layout)


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        pytest.param(llava_with(GRANITE), {"tp": 2, "cp": 2}, id="one stage"),
        pytest.param(llava_with(WINDOWS), {"tp": 2, "pp": 2}, id="windows"),
        pytest.param(small_models.idefics3(attention_dropout=0.1), {"dp": 2}, id="dropout"),
        pytest.param(small_models.qwen2_audio(encoder_layerdrop=0.2), {"dp": 2}, id="layerdrop"),
    ],
)
def test_the_same_model_runs_in_another_layout(config, layout):
    check(config, **layout)


@pytest.mark.parametrize("kind", ["llava", "idefics3", "smolvlm", "qwen2_audio", "qwen2_5_vl", "qwen3_vl"])
def test_known_families_have_stages(kind):
    check(getattr(small_models, kind)(), tp=2, cp=2, pp=2)


def test_tied_parameters_stay_tied_when_they_get_memory():
    config = small_models.smolvlm(tied=True)
    family = family_of(config)
    model = building.build_on_meta(config, family, torch.float32)

    building.materialize(model, torch.device("cpu"))

    assert building.is_tied(model, family)
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def test_a_frozen_name_that_no_parameter_has_is_refused():
    config = small_models.smolvlm(tied=True)
    model = building.build_on_meta(config, family_of(config), torch.float32)

    checks.check_frozen(model, ["lm_head.weight", "model.vision_model.*"])
    with pytest.raises(HfError, match=r"no parameter is named 'vision_tower\.\*'"):
        checks.check_frozen(model, ["vision_tower.*"])


LLAVA = family_of(small_models.llava())
VISION = LLAVA.encoders["vision"]


def family_with(**changes):
    own = {name: changes.pop(name) for name in list(changes) if hasattr(LLAVA, name)}
    return replace(LLAVA, encoders={"vision": replace(VISION, **changes)}, **own)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (family_with(language="model.text"), "family 'llava': language is 'model.text', which is no module of the model"),
        (family_with(tower="model.tower"), "tower of 'vision' is 'model.tower', which is no module"),
        (family_with(paths="model.vision_tower"), "paths of 'vision' is a text; it is a list, such as"),
        (family_with(paths=["model.vision_tower"]), "model.multi_modal_projector.linear_1.weight is in none of the paths"),
    ],
    ids=["language", "tower", "a text", "a part is missing"],
)
def test_a_family_that_does_not_fit_the_model_is_refused(family, message):
    model = building.build_on_meta(small_models.llava(), LLAVA, torch.float32)
    checks.check_family(model, LLAVA)
    with pytest.raises(HfError, match=re.escape(message)):
        checks.check_family(model, family)


IMAGES = {"inputs": {"pixel_values": torch.zeros(1, 3, 16, 16)}, "tokens": [4]}
NO_IMAGES = {"inputs": None, "tokens": [0]}


@pytest.mark.parametrize(
    ("changes", "batch", "message"),
    [
        ({"embed": lambda *_: torch.zeros(4, 32)}, IMAGES, "embed returned Tensor; it returns"),
        ({"embed": lambda *_: {"embeddings": (torch.zeros(4, 32),)}}, IMAGES, "embed returned tuple as embeddings"),
        ({"embed": lambda *_: {"embeddings": torch.zeros(1, 4, 32)}}, IMAGES, "embed returned [1, 4, 32] as embeddings"),
        ({"embed": lambda *_: {"embeddings": torch.zeros(3, 32)}}, IMAGES, "have places for 4 tokens"),
        ({"blank": lambda *_: {}}, NO_IMAGES, "the encoder fails on the inputs of `blank`, which a lane without any gets"),
    ],
    ids=["a tensor", "a tuple", "three dimensions", "too few", "blank"],
)
def test_what_a_familys_functions_return_is_checked(changes, batch, message):
    config = small_models.llava()
    model = LLAVA.model_class()(config)
    part = EncoderPart(model, replace(VISION, **changes), config, torch.float32)
    with pytest.raises(HfError, match=re.escape(message)):
        part(batch, {}, torch.device("cpu"))
    assert EncoderPart(model, VISION, config, torch.float32)(IMAGES, {}, torch.device("cpu"))["embeddings"].shape == (4, 32)
