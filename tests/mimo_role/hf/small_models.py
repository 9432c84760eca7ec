"""Small models of transformers with random weights, and samples for them."""

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    Qwen3VLConfig,
)

WORDS, IMAGE = 96, 95


def llava():
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=WORDS,
        pad_token_id=0,
    )
    return LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, image_seq_length=4)


def qwen3_vl(tied=False):
    vision = {
        "depth": 4,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1, 2],
    }
    text = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": WORDS,
        "pad_token_id": 0,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
    }
    return Qwen3VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        video_token_id=94,
        vision_start_token_id=93,
        vision_end_token_id=92,
        tie_word_embeddings=tied,
    )


def images_of(config, number, generator):
    """The fields of a sample's images, and the number of tokens of each."""
    if config.model_type == "llava":
        return {"pixel_values": torch.randn(number, 3, 16, 16, generator=generator, dtype=torch.float64)}, [4] * number
    vision = config.vision_config
    side = vision.spatial_merge_size
    sizes = torch.randint(1, 4, (number, 2), generator=generator) * side
    grids = torch.cat([torch.ones(number, 1, dtype=torch.int64), sizes], dim=1)
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(int(grids.prod(1).sum()), width, generator=generator, dtype=torch.float64)
    return {"pixel_values": pixels, "image_grid_thw": grids}, (grids.prod(1) // side**2).tolist()


class Samples(torch.utils.data.Dataset):
    """Samples of any length with 0 to 3 images, as a processor returns them."""

    def __init__(self, config, count=96):
        self._config, self._count = config, count

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        number = int(torch.randint(0, 4, (), generator=generator)) if index % 5 else 0
        images, tokens = images_of(self._config, number, generator) if number else ({}, [])
        parts = [torch.randint(1, 90, (int(torch.randint(2, 7, (), generator=generator)),), generator=generator)]
        for count in tokens:
            parts += [torch.full((count,), IMAGE), torch.randint(1, 90, (3,), generator=generator)]
        ids = torch.cat(parts)
        return {"input_ids": ids, "labels": ids.masked_fill(ids == IMAGE, -100), **images}


def batch_of_one(config):
    """The arguments of the whole model for one sample with two images."""
    images, tokens = images_of(config, 2, torch.Generator().manual_seed(3))
    ids = torch.tensor([[5, *([IMAGE] * tokens[0]), 7, *([IMAGE] * tokens[1]), 9, 11]])
    types = {"mm_token_type_ids": (ids == IMAGE).int()} if "image_grid_thw" in images else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images, **types}
