"""The forward path of one rank: what each of its stages computes and hands over, which follows from its role."""

from collections.abc import Mapping, Sequence

import torch
from data import IGNORED, MODALITIES, sequence_tokens
from model import ENCODERS, LANGUAGE
from torch import nn
from torch.nn import functional

from mimo_role import MIMO_LANGUAGE_MODULE_KEY, ActivationSpec, MicroBatch, RoleContext, StageId


class ForwardPath:
    """What the schedule calls: `run` for each stage and micro-batch of this rank, `loss_of` at the end of the path."""

    def __init__(self, ctx: RoleContext, modules: nn.ModuleDict) -> None:
        self._ctx = ctx
        self._modules = modules
        self._dtype = next(modules.parameters()).dtype
        self._predictions = torch.ones(())

    def run(self, module: str, micro: MicroBatch, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute this rank's stage of a module.

        An encoder's first stage reads raw input, the language model's first merges the embeddings of all modalities into the
        caption, and the others take the hidden states of the stage before.
        """
        if not self._ctx.role.is_first_stage(module):
            hidden = inputs[module]
        elif module == MIMO_LANGUAGE_MODULE_KEY:
            tokens, _ = micro[module]
            hidden = self._modules[module].merge(tokens.to(self._ctx.device), inputs)
        else:
            hidden = micro[module].to(self._ctx.device)
        if not len(hidden):
            # torch's tensor-parallel layers cannot reshape an output without samples.
            return self._modules[module](_with_a_sample(hidden))[:0]
        return self._modules[module](hidden)

    def spec_of(self, at: StageId, micro: MicroBatch) -> ActivationSpec:
        """What leaves a stage of any rank: hidden states; from an encoder's last stage embeddings, of the language's width."""
        topology = self._ctx.topology
        if at.module == MIMO_LANGUAGE_MODULE_KEY:
            tokens, width = sequence_tokens(topology.modality_module_names), LANGUAGE.width
        else:
            is_last = at.stage == topology.grids[at.module].axis_size("pp") - 1
            tokens = MODALITIES[at.module].tokens
            width = LANGUAGE.width if is_last else ENCODERS[at.module].width
        return ActivationSpec.of(len(micro), (tokens, width), self._dtype)

    def count_predictions(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Count the caption tokens of a global batch, whose mean the losses are parts of. On all ranks, before the step."""
        if self._ctx.role.is_last_stage(MIMO_LANGUAGE_MODULE_KEY):
            targets = torch.cat([self.targets_of(micro) for micro in micro_batches])
            self._predictions = self._ctx.token_count((targets != IGNORED).sum())

    def loss_of(self, logits: torch.Tensor, micro: MicroBatch) -> torch.Tensor:
        """This lane's and micro-batch's part of the loss, the mean over the caption tokens of the global batch."""
        targets = self.targets_of(micro).flatten()
        total = functional.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum")
        return total / self._predictions

    def targets_of(self, micro: MicroBatch) -> torch.Tensor:
        """What this rank's lane of the language model predicts, `[samples, CAPTION_TOKENS]`."""
        _, targets = micro[MIMO_LANGUAGE_MODULE_KEY]
        return targets.to(self._ctx.device)


def _with_a_sample(hidden: torch.Tensor) -> torch.Tensor:
    """Zeros `[1, T, H]` in place of `[0, T, H]`, through which gradients reach the same parameters."""
    return functional.pad(hidden, (0, 0, 0, 0, 0, 1))
