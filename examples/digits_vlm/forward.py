"""The forward path of one rank: what each of its stages computes and hands over, which follows from its role."""

from collections.abc import Mapping

import torch
from data import IGNORED, Batch
from model import ENCODERS, LANGUAGE
from torch import nn
from torch.nn import functional

from mimo_role import MIMO_LANGUAGE_MODULE_KEY, ActivationSpec, RoleContext, StageId, lane_samples


class ForwardPath:
    """What the schedule calls: `run` for each stage and micro-batch of this rank, `loss_of` at the end of the path."""

    def __init__(self, ctx: RoleContext, modules: nn.ModuleDict) -> None:
        self._ctx = ctx
        self._modules = modules
        self._dtype = next(modules.parameters()).dtype

    def run(self, module: str, batch: Batch, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute this rank's stage of a module.

        An encoder's first stage reads raw input, the language model's first merges the embeddings of all modalities into the
        caption, and the others go on with the hidden states of the stage before.
        """
        if not self._ctx.role.is_first_stage(module):
            hidden = inputs[module]
        elif module == MIMO_LANGUAGE_MODULE_KEY:
            hidden = self._modules[module].merge(self.lane(module, batch).tokens, inputs)
        else:
            hidden = self.lane(module, batch).inputs[module]
        return self._modules[module](hidden)

    def spec_of(self, at: StageId, batch: Batch) -> ActivationSpec:
        """What leaves a stage of any rank: hidden states; from an encoder's last stage embeddings, of the language's width."""
        if at.module == MIMO_LANGUAGE_MODULE_KEY:
            tokens, width = batch.tokens.shape[1], LANGUAGE.width
        else:
            is_last = at.stage == self._ctx.topology.grids[at.module].axis_size("pp") - 1
            tokens = batch.inputs[at.module].shape[1]
            width = LANGUAGE.width if is_last else ENCODERS[at.module].width
        return ActivationSpec.of(len(batch), (tokens, width), self._dtype)

    def loss_of(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """This lane's and micro-batch's part of the loss, the mean over the caption tokens of the global batch."""
        targets = self.lane(MIMO_LANGUAGE_MODULE_KEY, batch).targets
        total = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
        return total / batch.predictions_in_whole

    def lane(self, module: str, batch: Batch) -> Batch:
        """The samples that this rank's lane of a module holds."""
        lanes = self._ctx.topology.grids[module].axis_size("dp")
        samples = lane_samples(len(batch), lanes, self._ctx.coords(module)["dp"])
        return batch.take(slice(samples.start, samples.stop))
