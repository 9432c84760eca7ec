"""Qwen2.5-VL and Qwen3-VL: images of any size, positions in three dimensions, and in Qwen3-VL features of several levels."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mimo_role.errors import HfError
from mimo_role.hf.family import Config, Encoder, Family, Inputs, Model, Sample


def _join(_config: Config, samples: Sequence[Sample]) -> Inputs | None:
    if any(sample.get("pixel_values_videos") is not None for sample in samples):
        raise HfError("a sample has pixel_values_videos; mimo_role.hf knows images of Qwen-VL only: leave videos out")
    names = ("pixel_values", "image_grid_thw")
    with_images = [sample for sample in samples if sample.get("pixel_values") is not None]
    return {name: torch.cat([sample[name] for sample in with_images]) for name in names} if with_images else None


def _count(config: Config, sample: Sample) -> int:
    if sample.get("pixel_values") is None:
        return 0
    return int(sample["image_grid_thw"].prod(1).sum() // config.vision_config.spatial_merge_size**2)


def _blank(config: Config, dtype: torch.dtype) -> Inputs:
    vision = config.vision_config
    side = vision.spatial_merge_size
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return {
        "pixel_values": torch.zeros(side * side, width, dtype=dtype),
        "image_grid_thw": torch.tensor([[1, side, side]]),
    }


def _embed(model: Model, inputs: Inputs) -> Mapping[str, torch.Tensor]:
    found = model.get_image_features(**inputs, return_dict=True)
    levels = getattr(found, "deepstack_features", None) or []
    named = {f"level_{number}": torch.cat(tuple(level)) for number, level in enumerate(levels)}
    return {"embeddings": torch.cat(tuple(found.pooler_output)), **named}


def _positions(model: Model, batch: Mapping[str, Any]) -> torch.Tensor:
    ids = batch["input_ids"]
    grids = batch.get("image_grid_thw")
    types = (ids == model.config.image_token_id).int()
    positions: torch.Tensor = model.get_rope_index(
        ids, mm_token_type_ids=types, image_grid_thw=grids, attention_mask=batch["attention_mask"]
    )[0]
    return positions


def _with_levels(mask: torch.Tensor, levels: list[torch.Tensor]) -> Mapping[str, Any]:
    return {"visual_pos_masks": mask, "deepstack_visual_embeds": levels}


def _tp_plan_2(config: Config) -> Mapping[str, str]:
    from transformers import Qwen2Config

    return {**Qwen2Config.base_model_tp_plan, **(config.base_model_tp_plan or {})}


def _tp_plan_3(config: Config) -> Mapping[str, str]:
    from transformers import Qwen3Config

    return {**Qwen3Config.base_model_tp_plan, **(config.base_model_tp_plan or {})}


def _model_class_2() -> Any:
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration


def _model_class_3() -> Any:
    from transformers import Qwen3VLForConditionalGeneration

    return Qwen3VLForConditionalGeneration


def _encoder(**more: Any) -> Encoder:
    return Encoder(
        paths=("model.visual",),
        tower="model.visual",
        token_id=lambda config: config.image_token_id,
        join=_join,
        count=_count,
        blank=_blank,
        embed=_embed,
        **more,
    )


QWEN2_5 = Family(
    model_types=("qwen2_5_vl",),
    encoders={"vision": _encoder()},
    language="model.language_model",
    model_class=_model_class_2,
    tp_plan=_tp_plan_2,
    positions=_positions,
    position_inputs=("image_grid_thw",),
)
QWEN3 = Family(
    model_types=("qwen3_vl",),
    encoders={"vision": _encoder(levels=lambda config: range(len(config.vision_config.deepstack_visual_indexes)))},
    language="model.language_model",
    model_class=_model_class_3,
    tp_plan=_tp_plan_3,
    positions=_positions,
    position_inputs=("image_grid_thw",),
    with_levels=_with_levels,
)
