"""Attention of a language model whose sequences are divided over context-parallel ranks.

Each rank gathers the keys and values of the whole sequence and computes attention for its own tokens, as in A. Grattafiori et
al., "The Llama 3 Herd of Models", 2024, section 3.3.2.
"""

from typing import Any

import torch
import torch.distributed as dist

from mimo_role.context import RoleContext
from mimo_role.hf.family import Model
from mimo_role.resharding.samples import TokenSplit
from mimo_role.training.owned_tokens import owned_tokens

ATTENTION = "mimo_role_context_parallel"
"""The name of the function among those of transformers."""


class ContextParallel:
    """How the ranks of a lane divide the tokens of a sequence."""

    def __init__(self, ctx: RoleContext, module: str, split: TokenSplit) -> None:
        """
        Args:
            ctx: this rank's.
            module: the language model.
            split: how tokens are divided.
        """
        self.size = ctx.topology.grids[module].axis_size("cp")
        self._group = ctx.group(module, "cp") if self.size > 1 else None
        self._own = ctx.coords(module)["cp"]
        self._ranks = ctx.topology.grids[module].row_of(ctx.rank, ("cp",))
        self._topology, self._module, self._split = ctx.topology, module, split
        self._device = ctx.device

    def owned(self, length: int) -> torch.Tensor:
        """The numbers of this rank's tokens of a sequence, int64."""
        return self._owned_by(self._own, length)

    def gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """Tensors with this rank's tokens along `dim`, equally many on all ranks, as one with all tokens in their order."""
        if self.size == 1:
            return tensor
        length = tensor.shape[dim] * self.size
        order = torch.cat([self._owned_by(rank, length) for rank in range(self.size)])
        return torch.cat(self._all(tensor), dim).index_select(dim, order.argsort())

    def gather_packed(self, tensor: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """The same for samples of any `lengths`, one after another along dimension 0, each divided by itself."""
        if self.size == 1:
            return tensor
        owned = [[self._owned_by(rank, length) for length in lengths] for rank in range(self.size)]
        most = max(sum(map(len, of_rank)) for of_rank in owned)
        padded = torch.cat([tensor, tensor.new_zeros(most - len(tensor), *tensor.shape[1:])])
        starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
        rows = torch.empty(sum(lengths), dtype=torch.int64, device=self._device)
        for rank, of_rank in enumerate(owned):
            at = torch.cat([numbers + start for numbers, start in zip(of_rank, starts, strict=False)]) if of_rank else rows[:0]
            rows[at] = torch.arange(len(at), device=self._device) + rank * most
        return torch.cat(self._all(padded)).index_select(0, rows)

    def _all(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of all ranks of the lane, of one shape, in their order."""
        return list(_Gather.apply(tensor, self._group, self.size))  # type: ignore[no-untyped-call]

    def _owned_by(self, cp_rank: int, length: int) -> torch.Tensor:
        rank = self._ranks[cp_rank]
        return owned_tokens(self._topology, self._module, rank, length, self._split).to(self._device)


class _Gather(torch.autograd.Function):
    """`[...]` of each rank as `[ranks, ...]`; backward, each rank gets the sum of the gradients of what it gave."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: dist.ProcessGroup, size: int) -> torch.Tensor:
        ctx.group = group
        gathered = tensor.new_empty(size * tensor.numel())
        dist.all_gather_into_tensor(gathered, tensor.reshape(-1), group=group)
        return gathered.view(size, *tensor.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = gradients
        own = gradient.new_empty(gradient[0].numel())
        dist.reduce_scatter_tensor(own, gradient.reshape(-1), group=ctx.group)
        return own.view(gradient.shape[1:]), None, None


def mask_of(padding: torch.Tensor, owned: torch.Tensor) -> torch.Tensor:
    """Which of all tokens each own token attends to: causal, and not to padding.

    Args:
        padding: bool `[samples, tokens]`, false where there is padding.
        owned: int64 `[own tokens]`.

    Returns:
        bool `[samples, 1, own tokens, tokens]`.
    """
    causal = owned[:, None] >= torch.arange(padding.shape[1], device=padding.device)
    # A token attends to itself even in padding: a row without any would be NaN.
    own = owned[:, None] == torch.arange(padding.shape[1], device=padding.device)
    return (causal & padding[:, None, None, :]) | own


def enable(text: Model, parallel: ContextParallel) -> None:
    """Have the layers of a language model attend over all ranks."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)
    text.set_attn_implementation(ATTENTION)
    text.config.mimo_role_context_parallel = parallel


def _attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **settings: Any) -> Any:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    parallel: ContextParallel = module.config.mimo_role_context_parallel
    keys, values = parallel.gather(key, 2), parallel.gather(value, 2)
    return sdpa_attention_forward(module, query, keys, values, attention_mask, **{**settings, "is_causal": False})
