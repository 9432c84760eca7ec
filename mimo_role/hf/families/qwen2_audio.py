"""Qwen2-Audio: a Whisper-like tower over sounds that are padded to one length, a projector, and a language model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mimo_role.errors import HfError
from mimo_role.hf.family import Config, Encoder, Family, Inputs, Model, Sample

_FIELDS = ("input_features", "feature_attention_mask")


def _lengths(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For a mask `[sounds, frames]`, how many frames of each sound the layers have, and how many tokens it becomes."""
    frames = (mask.sum(-1) - 1) // 2 + 1
    return frames, (frames - 2) // 2 + 1


def _has_sounds(sample: Sample) -> bool:
    if sample.get("input_features") is None:
        return False
    mask = sample.get("feature_attention_mask")
    if mask is None:
        raise HfError("a sample has input_features without feature_attention_mask; have the processor return both")
    features = sample["input_features"]
    if features.dim() != 3 or mask.shape != (features.shape[0], features.shape[2]):
        raise HfError(
            f"the input_features of a sample are {list(features.shape)} and its feature_attention_mask {list(mask.shape)}; "
            "they are [sounds, mels, frames] and [sounds, frames]"
        )
    if not bool(mask.any(-1).all()):
        raise HfError("the feature_attention_mask of a sample has a sound without frames; leave the sound out")
    return True


def _join(_config: Config, samples: Sequence[Sample]) -> Inputs | None:
    with_sounds = [sample for sample in samples if _has_sounds(sample)]
    return {name: torch.cat([sample[name] for sample in with_sounds]) for name in _FIELDS} if with_sounds else None


def _count(_config: Config, sample: Sample) -> int:
    return int(_lengths(sample["feature_attention_mask"])[1].sum()) if _has_sounds(sample) else 0


def _blank(config: Config, dtype: torch.dtype) -> Inputs:
    audio = config.audio_config
    frames = 2 * audio.max_source_positions
    return {
        "input_features": torch.zeros(1, audio.num_mel_bins, frames, dtype=dtype),
        "feature_attention_mask": torch.ones(1, frames, dtype=torch.int64),
    }


def _embed(model: Model, inputs: Inputs) -> Mapping[str, torch.Tensor]:
    """What `Qwen2AudioModel.forward` computes before it merges sounds and text."""
    from transformers.masking_utils import create_bidirectional_mask

    features, mask = (inputs[name] for name in _FIELDS)
    frames, tokens = _lengths(mask)
    longest = features.shape[-1] // 2
    attention = create_bidirectional_mask(
        config=model.audio_tower.config,
        inputs_embeds=features.new_zeros(len(features), longest, 1),
        attention_mask=_first(frames, longest).long(),
    )
    encoded = model.audio_tower(features, attention_mask=attention).last_hidden_state
    embeddings = model.multi_modal_projector(encoded)
    return {"embeddings": embeddings[_first(tokens, embeddings.shape[1])]}


def _first(counts: torch.Tensor, length: int) -> torch.Tensor:
    """Bool `[rows, length]`, true at the first `counts` of each row."""
    return torch.arange(length, device=counts.device) < counts[:, None]


def _model_class() -> Any:
    from transformers import Qwen2AudioForConditionalGeneration

    return Qwen2AudioForConditionalGeneration


FAMILY = Family(
    model_types=("qwen2_audio",),
    encoders={
        "audio": Encoder(
            paths=("model.audio_tower", "model.multi_modal_projector"),
            tower="model.audio_tower",
            token_id=lambda config: config.audio_token_id,
            join=_join,
            count=_count,
            blank=_blank,
            embed=_embed,
        )
    },
    language="model.language_model",
    model_class=_model_class,
)
