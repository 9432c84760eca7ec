"""LLaVA: a CLIP-like tower, a projector of two layers, and a language model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mimo_role.hf.family import Config, Encoder, Family, Inputs, Model, Sample


def _join(_config: Config, samples: Sequence[Sample]) -> Inputs | None:
    images = [sample["pixel_values"] for sample in samples if sample.get("pixel_values") is not None]
    return {"pixel_values": torch.cat(images)} if images else None


def _count(config: Config, sample: Sample) -> int | None:
    if sample.get("pixel_values") is None:
        return 0
    if config.vision_config.model_type != "clip_vision_model":
        return None
    images, _, height, width = sample["pixel_values"].shape
    patch = config.vision_config.patch_size
    has_class = config.vision_feature_select_strategy == "full"
    return int(images * ((height // patch) * (width // patch) + has_class))


def _blank(config: Config, dtype: torch.dtype) -> Inputs:
    size = config.vision_config.image_size
    return {"pixel_values": torch.zeros(1, config.vision_config.num_channels, size, size, dtype=dtype)}


def _embed(model: Model, inputs: Inputs) -> Mapping[str, torch.Tensor]:
    return {"embeddings": torch.cat(model.get_image_features(**inputs, return_dict=True).pooler_output)}


def _model_class() -> Any:
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration


FAMILY = Family(
    model_types=("llava",),
    encoders={
        "vision": Encoder(
            paths=("model.vision_tower", "model.multi_modal_projector"),
            tower="model.vision_tower",
            token_id=lambda config: config.image_token_id,
            join=_join,
            count=_count,
            blank=_blank,
            embed=_embed,
        )
    },
    language="model.language_model",
    model_class=_model_class,
)
