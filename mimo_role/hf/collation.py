"""The samples of one lane as what a module's ranks compute with."""

from collections.abc import Sequence
from typing import Any

import torch

from mimo_role.errors import HfError
from mimo_role.hf.families import family_of
from mimo_role.hf.family import Config, Sample

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
            HfError: a sample without `input_ids`, or with labels of another length.
        """
        return self._of_language(samples) if self._module == "language" else self._of_encoder(samples)

    def _of_encoder(self, samples: Sequence[Sample]) -> dict[str, Any]:
        encoder = family_of(self._config).encoders[self._module]
        token = encoder.token_id(self._config)
        return {
            "inputs": encoder.join(self._config, samples),
            "tokens": [int((_ids_of(sample) == token).sum()) for sample in samples],
        }

    def _of_language(self, samples: Sequence[Sample]) -> dict[str, Any]:
        family = family_of(self._config)
        longest = max((len(_ids_of(sample)) for sample in samples), default=0)
        length = -(-longest // self._multiple) * self._multiple
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
    return ids
