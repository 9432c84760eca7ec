"""The forward path of one rank: which modules it runs, and what it hands to whom, follows from its role."""

import torch
from data import Batch
from model import ENCODERS, LANGUAGE
from torch import nn

from mimo_role import MIMO_LANGUAGE_MODULE_KEY, Bridge, ModuleLayout, RoleContext, lane_samples


class ForwardPass:
    """One batch's way through the modules of this rank.

    Afterwards `logits` holds the language model's answer on the ranks of its last stage, and `sent` what this rank gave
    away to other ranks: zeros in the order of sending, whose `backward()` takes up the gradient that comes back.
    """

    def __init__(self, ctx: RoleContext, modules: nn.ModuleDict, batch: Batch) -> None:
        self._ctx = ctx
        self._modules = modules
        self._batch = batch
        self._dtype = next(modules.parameters()).dtype
        self.sent: list[torch.Tensor] = []
        self.logits: torch.Tensor | None = None
        self._run()

    def lane(self, module: str) -> Batch:
        """The samples that this rank's lane of a module holds."""
        lanes = self._ctx.topology.grids[module].axis_size("dp")
        samples = lane_samples(len(self._batch), lanes, self._ctx.coords(module)["dp"])
        return self._batch.take(slice(samples.start, samples.stop))

    def _run(self) -> None:
        role = self._ctx.role
        if role.mode is ModuleLayout.COLOCATED:
            self._read({name: self._hand_over(name, self._encode(name)) for name in role.modality_module_names})
        elif role.has_modality_modules:
            for name in role.modality_module_names:
                self._hand_over(name, self._encode(name))
        elif role.has_language_module:
            self._read({name: self._hand_over(name, None) for name in self._ctx.topology.modality_module_names})

    def _encode(self, name: str) -> torch.Tensor | None:
        """Run this rank's stage of an encoder; the last stage returns the embeddings."""
        if self._ctx.role.is_first_stage(name):
            hidden = self.lane(name).inputs[name]
        else:
            hidden = self._from_stage_before(name, ENCODERS[name].width)
        return self._to_stage_after(name, self._modules[name](hidden))

    def _hand_over(self, name: str, embeddings: torch.Tensor | None) -> torch.Tensor | None:
        """From an encoder's last stage to the language model's first, which gets its own lane's share."""
        return self._cross(self._ctx.bridge(name), embeddings, name, LANGUAGE.width)

    def _read(self, embeddings: dict[str, torch.Tensor | None]) -> None:
        """Run this rank's stage of the language model over the embeddings of all modalities and the caption."""
        name = MIMO_LANGUAGE_MODULE_KEY
        if self._ctx.role.is_first_stage(name):
            received = {modality: values for modality, values in embeddings.items() if values is not None}
            hidden = self._modules[name].merge(self.lane(name).tokens, received)
        else:
            hidden = self._from_stage_before(name, LANGUAGE.width)
        self.logits = self._to_stage_after(name, self._modules[name](hidden))

    def _from_stage_before(self, module: str, width: int) -> torch.Tensor:
        bridge = self._ctx.bridge(module, stage=self._ctx.coords(module)["pp"] - 1)
        hidden = self._cross(bridge, None, module, width)
        assert hidden is not None
        return hidden

    def _to_stage_after(self, module: str, hidden: torch.Tensor) -> torch.Tensor | None:
        if self._ctx.role.is_last_stage(module):
            return hidden
        bridge = self._ctx.bridge(module, stage=self._ctx.coords(module)["pp"])
        return self._cross(bridge, hidden, module, hidden.shape[-1])

    def _cross(self, bridge: Bridge, values: torch.Tensor | None, module: str, width: int) -> torch.Tensor | None:
        """Take this rank's part in a bridge, if it has one; return what it receives."""
        if not (bridge.is_sender or bridge.is_receiver):
            return None
        tokens = self._batch.tokens.shape[1] if module == MIMO_LANGUAGE_MODULE_KEY else self._batch.inputs[module].shape[1]
        crossed = bridge(values, batch_size=len(self._batch), sample_shape=(tokens, width), dtype=self._dtype)
        if bridge.is_receiver:
            return crossed
        self.sent.append(crossed)
        return None
