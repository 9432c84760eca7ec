"""One training step and one evaluation, over all modules together."""

import torch
import torch.distributed as dist
from data import IGNORED, Batch
from forward import ForwardPass
from parallel import sum_gradients
from torch import nn
from torch.nn import functional

from mimo_role import MIMO_LANGUAGE_MODULE_KEY, RoleContext


def train_step(
    ctx: RoleContext, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer, batch: Batch, micro_batches: int
) -> float | None:
    """Forward all micro-batches, then backward all, then one update.

    Returns:
        The loss, the mean over the caption tokens of the global batch, on the language model's last stage; elsewhere `None`.
    """
    predictions = batch.predictions
    passes = [ForwardPass(ctx, modules, part) for part in batch.split(micro_batches)]
    losses = [_loss(each, predictions) for each in passes]
    optimizer.zero_grad()
    for each, loss in zip(passes, losses, strict=True):
        # What left this rank last comes back first.
        for root in reversed([*each.sent, loss]):
            if root is not None:
                root.backward()
    sum_gradients(ctx, modules)
    optimizer.step()
    return _sum_over_lanes(ctx, [loss.detach() for loss in losses if loss is not None])


@torch.no_grad()
def evaluate(ctx: RoleContext, modules: nn.ModuleDict, batch: Batch) -> float | None:
    """The share of captions that the model writes without a fault, on the language model's last stage; elsewhere `None`."""
    forward = ForwardPass(ctx, modules, batch)
    if forward.logits is None:
        return None
    targets = forward.lane(MIMO_LANGUAGE_MODULE_KEY).targets
    # Letter by letter, greedy decoding reads what it wrote. That is the true caption exactly as long as every letter so
    # far was right, so it ends right if and only if each position is right after the true letters: one forward tells.
    right = ((forward.logits.argmax(-1) == targets) | (targets == IGNORED)).all(dim=1)
    exact = _sum_over_lanes(ctx, [right.sum(dtype=torch.float64)])
    assert exact is not None
    return exact / len(batch)


def _loss(forward: ForwardPass, predictions: int) -> torch.Tensor | None:
    """This lane's part of the loss."""
    if forward.logits is None:
        return None
    targets = forward.lane(MIMO_LANGUAGE_MODULE_KEY).targets
    total = functional.cross_entropy(forward.logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / predictions


def _sum_over_lanes(ctx: RoleContext, parts: list[torch.Tensor]) -> float | None:
    if not parts:
        return None
    total = torch.stack(parts).sum()
    dist.all_reduce(total, group=ctx.group(MIMO_LANGUAGE_MODULE_KEY, "dp"))
    return total.item()
