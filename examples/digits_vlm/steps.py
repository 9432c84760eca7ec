"""One training step and one evaluation, over all modules together."""

from collections.abc import Sequence

import torch
from data import IGNORED
from forward import ForwardPath
from torch import nn

from mimo_role import MicroBatch, RoleContext, Schedule1F1B


class Steps:
    """Trains and evaluates this rank's modules."""

    def __init__(
        self, ctx: RoleContext, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer, *, max_norm: float = 0.0
    ) -> None:
        self._ctx = ctx
        self._modules = modules
        self._optimizer = optimizer
        self._max_norm = max_norm
        self._path = path = ForwardPath(ctx, modules)
        self._schedule = Schedule1F1B(ctx, run=path.run, spec_of=path.spec_of, loss_of=path.loss_of)

    def train(self, micro_batches: Sequence[MicroBatch]) -> float:
        """Take all micro-batches forward and back, then make one update.

        Returns:
            The loss, a mean over the caption tokens of the global batch, on all ranks.
        """
        self._optimizer.zero_grad()
        self._path.count_predictions(micro_batches)
        losses = self._schedule.step(micro_batches)
        self._ctx.sum_gradients(self._modules)
        if self._max_norm:
            self._ctx.clip_grad_norm_(self._modules, self._max_norm)
        self._optimizer.step()
        return self._ctx.mean_loss(losses).item()

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> float:
        """The share of captions that the model writes without a fault, on all ranks."""
        exact, samples = [], 0
        # There are logits on the language model's last stage only.
        for logits, micro in zip(self._schedule.forward(micro_batches), micro_batches, strict=False):
            targets = self._path.targets_of(micro)
            # Letter by letter, greedy decoding reads what it wrote. That is the true caption exactly as long as every letter so
            # far was right, so it ends right if and only if each position is right after the true letters: one forward shows.
            right = ((logits.argmax(-1) == targets) | (targets == IGNORED)).all(dim=1)
            exact.append(right.sum())
            samples += len(targets)
        return self._ctx.mean_loss(exact, samples).item()
