"""Token counts and mean losses over the language model's lanes and context-parallel ranks."""

from collections.abc import Sequence

import torch
import torch.distributed as dist


def token_count(tokens: int | torch.Tensor, group: dist.ProcessGroup, device: torch.device) -> torch.Tensor:
    """The sum of the ranks' counts. Collective over the group."""
    total = torch.as_tensor(tokens).to(device, torch.int64, copy=True)
    dist.all_reduce(total, group=group)
    return total


def mean_loss(
    losses: Sequence[torch.Tensor], tokens: int | torch.Tensor | None, device: torch.device, *, is_counted: bool
) -> torch.Tensor:
    """The sum of the counted ranks' losses, over the sum of their tokens if any rank passes some. Collective over the world."""
    numbers = torch.zeros(3, dtype=torch.float64, device=device)  # losses, tokens, number of ranks with tokens
    if is_counted and losses:
        numbers[0] = torch.stack([loss.detach() for loss in losses]).sum(dtype=torch.float64)
    if is_counted and tokens is not None:
        numbers[1], numbers[2] = tokens, 1
    dist.all_reduce(numbers)
    return torch.where(numbers[2] > 0, numbers[0] / numbers[1], numbers[0])
