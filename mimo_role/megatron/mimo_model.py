"""Megatron-Core's `MimoModel` for any number of lanes, and for colocated layouts with pipeline stages."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from mimo_role.errors import ContextError
from mimo_role.megatron.imports import imported
from mimo_role.megatron.token_counts import set_token_counts
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY, RankRole

_CoreMimoModel: Any = imported("megatron.core.models.mimo").MimoModel


class MimoModel(_CoreMimoModel):  # type: ignore[misc]
    """Megatron-Core's `MimoModel`, whose encoders note the token counts of their outputs in every layout.

    Megatron-Core's own notes them only where they differ, and only if the encoder has no more lanes than the language model:
    its communicator cannot take other layouts. `RoleContext.megatron_pipeline_communicator` can. Counts come from `input_ids`
    on the encoder's ranks, `[samples of the lane, length]`; without, call `set_token_counts`.

    In a colocated layout whose language model has several stages, which Megatron-Core's own refuses, `encode` runs the
    encoders, and `forward` this rank's stage of the language model only; `RoleContext.megatron_encoders_first` has what is
    between the two.
    """

    def encode(
        self, input_ids: torch.Tensor | None, modality_inputs: Mapping[str, Mapping[str, Any]] | None
    ) -> dict[str, torch.Tensor]:
        """The outputs of this rank's encoders for one micro-batch, by name.

        Args:
            input_ids: the text of the encoders' lane, `[samples of the lane, length]`.
            modality_inputs: by encoder, what Megatron-Core's `MimoModel.forward` takes.
        """
        found: dict[str, torch.Tensor] = self._forward_encoders(input_ids, modality_inputs, None)
        return found

    def forward(self, *args: Any, encoder_outputs: Mapping[str, torch.Tensor] | None = None, **kwargs: Any) -> Any:
        """As Megatron-Core's.

        Args:
            args, kwargs: as Megatron-Core's own takes them.
            encoder_outputs: in a colocated layout with several stages, what the first stage takes, by encoder.

        Returns:
            The output and the loss mask. In a colocated layout with several stages the output is this stage's tensor.

        Raises:
            ContextError: `encoder_outputs` in another layout.
        """
        if not self._has_stages_here:
            if encoder_outputs is not None:
                raise ContextError("encoder_outputs= is for colocated layouts whose language model has several stages")
            return super().forward(*args, **kwargs)
        return self._forward_stage(encoder_outputs, *args, **kwargs)

    def _forward_stage(
        self,
        encoder_outputs: Mapping[str, torch.Tensor] | None,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        loss_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        modality_inputs: None = None,
        packing_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if modality_inputs is not None:
            raise ContextError("modality_inputs= belongs to encode() in a colocated layout with several stages")
        is_first = self.role.is_first_stage(MIMO_LANGUAGE_MODULE_KEY)
        inputs = encoder_outputs or {} if is_first else {MIMO_LANGUAGE_MODULE_KEY: self.input_tensors}
        output, mask = self._forward_language_module(
            input_ids, position_ids, attention_mask, loss_mask, labels, inputs, packing_kwargs
        )
        return (output[MIMO_LANGUAGE_MODULE_KEY] if isinstance(output, dict) else output), mask

    @property
    def _has_stages_here(self) -> bool:
        """Whether the layout is colocated, with several stages of the language model."""
        stages = self.role.modules.get(MIMO_LANGUAGE_MODULE_KEY)
        is_apart = self.role.mode.value != "colocated"
        return not is_apart and stages is not None and not (stages.is_first_stage and stages.is_last_stage)

    def _build_colocated_communicators(self) -> None:
        """Where the language model has several stages, give this rank its true one, and build no communicators."""
        grids = self.mimo_config.module_to_grid_map
        grid = grids[MIMO_LANGUAGE_MODULE_KEY]
        if dict(zip(grid.dim_names, grid.shape, strict=True)).get("pp", 1) == 1:
            super()._build_colocated_communicators()
            return
        own = RankRole.build(list(self.mimo_config.modality_submodules_spec), grids, rank=dist.get_rank())
        for name, stage in own.modules.items():
            self.role.modules[name].is_first_stage = stage.is_first_stage
            self.role.modules[name].is_last_stage = stage.is_last_stage

    def _attach_modality_split_sizes(self, output: torch.Tensor, input_ids: torch.Tensor | None, encoder_name: str) -> None:
        token = self.special_token_ids.get(encoder_name)
        if token is not None and input_ids is not None:
            set_token_counts(output, (input_ids == token).sum(dim=1).tolist())
