"""Small models of transformers with random weights, and samples for them."""

import torch
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    LlamaConfig,
    LlavaConfig,
    Qwen2_5_VLConfig,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2Config,
    Qwen3VLConfig,
    SmolVLMConfig,
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


TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": WORDS,
    "pad_token_id": 0,
}


def _idefics3(config_class, tied, **text):
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    text = LlamaConfig(**{**TEXT, **text})
    return config_class(vision_config=vision, text_config=text, image_token_id=IMAGE, scale_factor=2, tie_word_embeddings=tied)


def idefics3(tied=False, **text):
    return _idefics3(Idefics3Config, tied, **text)


def smolvlm(tied=False):
    return _idefics3(SmolVLMConfig, tied)


def qwen2_audio(**audio):
    tower = {
        "num_mel_bins": 6,
        "d_model": 16,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "max_source_positions": 12,
    }
    return Qwen2AudioConfig(
        audio_config=Qwen2AudioEncoderConfig(**{**tower, **audio}), text_config=Qwen2Config(**TEXT), audio_token_index=IMAGE
    )


def qwen2_5_vl(tied=False):
    vision = {
        "depth": 3,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 16,
        "fullatt_block_indexes": [1],
        "out_hidden_size": 32,
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    return Qwen2_5_VLConfig(
        vision_config=vision,
        text_config={**TEXT, "rope_parameters": rope},
        image_token_id=IMAGE,
        video_token_id=94,
        vision_start_token_id=93,
        vision_end_token_id=92,
        tie_word_embeddings=tied,
    )


def _padded_images(number, generator):
    """Images as Idefics3's processor pads them: masked at the right and below, and then whole images of zeros."""
    pixels = torch.zeros(number + 1, 3, 16, 16, dtype=torch.float64)
    mask = torch.zeros(number + 1, 16, 16, dtype=torch.int64)
    for image in range(number):
        height, width = (4 * torch.randint(1, 5, (2,), generator=generator)).tolist()
        pixels[image, :, :height, :width] = torch.randn(3, height, width, generator=generator, dtype=torch.float64)
        mask[image, :height, :width] = 1
    return {"pixel_values": pixels, "pixel_attention_mask": mask}, [4] * number


def _sounds(config, number, generator):
    audio = config.audio_config
    frames = 2 * audio.max_source_positions
    lengths = torch.randint(5, frames + 1, (number,), generator=generator)
    features = torch.randn(number, audio.num_mel_bins, frames, generator=generator, dtype=torch.float64)
    mask = (torch.arange(frames) < lengths[:, None]).int()
    tokens = (((lengths - 1) // 2 + 1) - 2) // 2 + 1
    return {"input_features": features, "feature_attention_mask": mask}, tokens.tolist()


def images_of(config, number, generator):
    """The fields of a sample's images or sounds, and the number of tokens of each."""
    if config.model_type in ("llava", "internvl"):
        return {"pixel_values": torch.randn(number, 3, 16, 16, generator=generator, dtype=torch.float64)}, [4] * number
    if config.model_type in ("idefics3", "smolvlm"):
        return _padded_images(number, generator)
    if config.model_type == "qwen2_audio":
        return _sounds(config, number, generator)
    vision = config.vision_config
    side = vision.spatial_merge_size
    sizes = torch.randint(1, 4, (number, 2), generator=generator) * side
    grids = torch.cat([torch.ones(number, 1, dtype=torch.int64), sizes], dim=1)
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(int(grids.prod(1).sum()), width, generator=generator, dtype=torch.float64)
    return {"pixel_values": pixels, "image_grid_thw": grids}, (grids.prod(1) // side**2).tolist()


class Samples(torch.utils.data.Dataset):
    """Samples of any length with 0 to 3 images or sounds, as a processor returns them."""

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
