"""One training step and one evaluation, over all modules together."""

import torch
import torch.distributed as dist
from data import IGNORED, Batch
from forward import ForwardPath
from parallel import sum_gradients
from torch import nn

from mimo_role import MIMO_LANGUAGE_MODULE_KEY, RoleContext, Schedule1F1B

Summing = tuple[torch.Tensor, dist.Work]
"""A sum over ranks on its way: where it ends up, and what to wait for."""


class Steps:
    """Trains and evaluates this rank's modules."""

    def __init__(
        self, ctx: RoleContext, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer, *, max_norm: float = 0.0
    ) -> None:
        self._ctx = ctx
        self._modules = modules
        self._optimizer = optimizer
        self._max_norm = max_norm
        self._path = ForwardPath(ctx, modules)
        self._schedule = Schedule1F1B(ctx, run=self._path.run, spec_of=self._path.spec_of, loss_of=self._path.loss_of)

    def train(self, batch: Batch, micro_batches: int) -> float | None:
        """Take all micro-batches forward and back, then make one update.

        Returns:
            The loss, a mean over the caption tokens of the global batch, on the language model's last stage; else `None`.
        """
        self._optimizer.zero_grad()
        summing = self._start_sum(self._schedule.step(batch.split(micro_batches)))
        sum_gradients(self._ctx, self._modules)
        if self._max_norm:
            self._ctx.clip_grad_norm_(self._modules, self._max_norm)
        self._optimizer.step()
        return _result_of(summing)

    def evaluate(self, batch: Batch) -> float | None:
        """The share of captions that the model writes without a fault, on the language model's last stage; else `None`."""
        exact = []
        for logits in self._schedule.forward([batch]):
            targets = self._path.lane(MIMO_LANGUAGE_MODULE_KEY, batch).targets
            # Letter by letter, greedy decoding reads what it wrote. That is the true caption exactly as long as every letter so
            # far was right, so it ends right if and only if each position is right after the true letters: one forward tells.
            right = ((logits.argmax(-1) == targets) | (targets == IGNORED)).all(dim=1)
            exact.append(right.sum(dtype=torch.float64))
        total = _result_of(self._start_sum(exact))
        return None if total is None else total / len(batch)

    def _start_sum(self, parts: list[torch.Tensor]) -> Summing | None:
        """Begin to add up parts over micro-batches and the language model's lanes."""
        if not parts:
            return None
        total = torch.stack(parts).sum()
        return total, dist.all_reduce(total, group=self._ctx.group(MIMO_LANGUAGE_MODULE_KEY, "dp"), async_op=True)


def _result_of(summing: Summing | None) -> float | None:
    if summing is None:
        return None
    total, work = summing
    work.wait()
    return total.item()
