"""Idefics3 and SmolVLM: square images, a connector that joins neighbouring patches, and a language model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mimo_role.errors import HfError
from mimo_role.hf.family import Config, Encoder, Family, Inputs, Model, Sample


def _images_of(config: Config, sample: Sample) -> Inputs | None:
    """The images of a sample, without those with which a processor pads a batch: as in transformers, those of zeros only."""
    pixels = sample.get("pixel_values")
    if pixels is None:
        return None
    if pixels.dim() != 4:
        raise HfError(f"the pixel_values of a sample are {list(pixels.shape)}, not [images, channels, height, width]")
    height, width = pixels.shape[2:]
    side = config.vision_config.patch_size * config.scale_factor
    if height != width or height % side:
        raise HfError(f"images have {height} x {width} pixels; {config.model_type} takes squares with a multiple of {side}")
    mask = sample.get("pixel_attention_mask")
    mask = torch.ones(len(pixels), height, width, dtype=torch.bool) if mask is None else mask.bool()
    if mask.shape != (len(pixels), height, width):
        raise HfError(f"the pixel_attention_mask of a sample is {list(mask.shape)}, its pixel_values {list(pixels.shape)}")
    real = pixels.flatten(1).ne(0).any(1)
    return {"pixel_values": pixels[real], "pixel_attention_mask": mask[real]}


def _join(config: Config, samples: Sequence[Sample]) -> Inputs | None:
    images = [found for sample in samples if (found := _images_of(config, sample)) and len(found["pixel_values"])]
    if not images:
        return None
    sides = {found["pixel_values"].shape[-1] for found in images}
    if len(sides) > 1:
        raise HfError(f"images have sides of {' and '.join(map(str, sorted(sides)))} pixels; resize them to one size")
    return {name: torch.cat([found[name] for found in images])[None] for name in images[0]}


def _count(config: Config, sample: Sample) -> int:
    found = _images_of(config, sample)
    if found is None:
        return 0
    images, _, side, _ = found["pixel_values"].shape
    return int(images * (side // config.vision_config.patch_size // config.scale_factor) ** 2)


def _blank(config: Config, dtype: torch.dtype) -> Inputs:
    vision = config.vision_config
    side = vision.patch_size * config.scale_factor
    # The model leaves out images of zeros.
    return {"pixel_values": torch.ones(1, 1, vision.num_channels, side, side, dtype=dtype)}


def _embed(model: Model, inputs: Inputs) -> Mapping[str, torch.Tensor]:
    return {"embeddings": torch.cat(model.get_image_features(**inputs, return_dict=True).pooler_output)}


def _idefics3() -> Any:
    from transformers import Idefics3ForConditionalGeneration

    return Idefics3ForConditionalGeneration


def _smolvlm() -> Any:
    from transformers import SmolVLMForConditionalGeneration

    return SmolVLMForConditionalGeneration


def _family(model_type: str, model_class: Callable[[], Any]) -> Family:
    vision = Encoder(
        paths=("model.vision_model", "model.connector"),
        tower="model.vision_model",
        token_id=lambda config: config.image_token_id,
        join=_join,
        count=_count,
        blank=_blank,
        embed=_embed,
    )
    return Family(
        model_types=(model_type,),
        encoders={"vision": vision},
        language="model.text_model",
        model_class=model_class,
    )


IDEFICS3 = _family("idefics3", _idefics3)
SMOLVLM = _family("smolvlm", _smolvlm)
