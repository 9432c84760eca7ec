"""The samples of one lane as what a module's ranks compute with."""

from collections.abc import Sequence
from typing import Any

import torch

from mimo_role.errors import HfError
from mimo_role.hf.families import family_of
from mimo_role.hf.family import Config, Encoder, Sample

IGNORED = -100
"""A label without a loss."""


class Collation:
    """A `collate_fn` of `RoleDataLoader` for one module."""

    def __init__(self, config: Config, module: str, *, multiple: int = 1) -> None:
        """
        Args:
            config: the whole model's.
            module: `language`, or one of the family's encoders.
            multiple: sequences are padded to a multiple of this length.

        Raises:
            HfError: the family has no such encoder.
        """
        self._config, self._module, self._multiple = config, module, multiple
        family = family_of(config)
        if module != "language" and module not in family.encoders:
            raise HfError(f"{config.model_type!r} has no encoder {module!r}, only {', '.join(family.encoders)}")

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The samples together.

        Returns:
            For an encoder, its `inputs`, `None` without any, and for each sample the `tokens` that it returns. For the language
            model, `input_ids`, `attention_mask` and `labels` (those of the next token), each `[samples, length]`, and what
            the family's positions need.

        Raises:
            HfError: a sample without `input_ids`, with padding, with labels of another length, or whose images or sounds become
                another number of embeddings than its text has places for.
        """
        return self._of_language(samples) if self._module == "language" else self._of_encoder(samples)

    def _of_encoder(self, samples: Sequence[Sample]) -> dict[str, Any]:
        encoder = family_of(self._config).encoders[self._module]
        inputs = encoder.join(self._config, samples)
        return {"inputs": inputs, "tokens": [self._tokens_of(encoder, sample) for sample in samples]}

    def _tokens_of(self, encoder: Encoder, sample: Sample) -> int:
        places = int((_ids_of(sample) == encoder.token_id(self._config)).sum())
        count = encoder.count(self._config, sample)
        if count not in (None, places):
            raise HfError(
                f"the {self._module} inputs of a sample become {count} embeddings, its input_ids have {places} places for them "
                f"(token {encoder.token_id(self._config)}); have the processor return both, and do not truncate its text"
            )
        return places

    def _of_language(self, samples: Sequence[Sample]) -> dict[str, Any]:
        family = family_of(self._config)
        longest = max((len(_ids_of(sample)) for sample in samples), default=0)
        length = max(-(-longest // self._multiple), 1) * self._multiple
        padding = family.text_config(self._config).pad_token_id or 0
        ids = torch.full((len(samples), length), padding)
        labels = torch.full((len(samples), length), IGNORED)
        mask = torch.zeros(len(samples), length, dtype=torch.bool)
        for row, sample in enumerate(samples):
            tokens, own = _ids_of(sample), sample.get("labels", sample["input_ids"])
            if len(own) != len(tokens):
                raise HfError(
                    f"a sample has {len(tokens)} tokens and {len(own)} labels; give each token one, {IGNORED} for none"
                )
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = True
            labels[row, : len(tokens) - 1] = own[1:]
        found: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        for name in family.position_inputs:
            rows = [sample[name] for sample in samples if sample.get(name) is not None]
            found[name] = torch.cat(rows) if rows else None
        return found


def _ids_of(sample: Sample) -> torch.Tensor:
    if "input_ids" not in sample:
        raise HfError(f"a sample has no input_ids; it has {', '.join(sample) or 'nothing'}")
    ids = sample["input_ids"]
    if ids.dim() != 1:
        raise HfError(f"the input_ids of a sample are {list(ids.shape)}; they have one dimension: take row 0 of a processor's")
    mask = sample.get("attention_mask")
    if mask is not None and not bool(mask.all()):
        raise HfError("the attention_mask of a sample has zeros; samples have no padding: have the processor add none")
    return ids
