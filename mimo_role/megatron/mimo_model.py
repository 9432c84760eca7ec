"""Megatron-Core's `MimoModel` for any number of lanes."""

from typing import Any

import torch

from mimo_role.megatron.imports import imported
from mimo_role.megatron.token_counts import set_token_counts

_CoreMimoModel: Any = imported("megatron.core.models.mimo").MimoModel


class MimoModel(_CoreMimoModel):  # type: ignore[misc]
    """Megatron-Core's `MimoModel`, whose encoders note the token counts of their outputs in every layout.

    Megatron-Core's own notes them only where they differ, and only if the encoder has no more lanes than the language model:
    its communicator cannot take other layouts. `RoleContext.megatron_pipeline_communicator` can. Counts come from `input_ids`
    on the encoder's ranks, `[samples of the lane, length]`; without, call `set_token_counts`.
    """

    def _attach_modality_split_sizes(self, output: torch.Tensor, input_ids: torch.Tensor | None, encoder_name: str) -> None:
        token = self.special_token_ids.get(encoder_name)
        if token is not None and input_ids is not None:
            set_token_counts(output, (input_ids == token).sum(dim=1).tolist())
