"""The number of tokens of each sample in an output `[tokens, hidden]`, where samples lie behind each other."""

from collections.abc import Sequence
from operator import index

import torch

from mimo_role.errors import BridgeError

_ATTRIBUTE = "_mimo_bridge_split_sizes"
"""Megatron-Core's `MimoModel` puts the counts there, where they differ."""


def set_token_counts(output: torch.Tensor, counts: Sequence[int]) -> None:
    """Note the tokens of each sample in a module's output, for `RoleContext.megatron_pipeline_communicator`.

    Needed where samples of one lane go to several lanes, or a lane's ranks divide the tokens of a sample, and the counts are
    not fixed. `MimoModel` does so by itself where the encoder has no more lanes than the language model.

    Args:
        output: `[tokens, hidden]`, what the model's forward returns for a module.
        counts: one for each sample of this rank's lane, of whole samples.

    Raises:
        BridgeError: a count that is no number of tokens.
    """
    try:
        numbers = [index(count) for count in counts]
    except TypeError:
        raise BridgeError(f"token counts {counts!r:.80} are not whole numbers; pass one for each sample") from None
    if min(numbers, default=0) < 0:
        raise BridgeError(f"token counts {numbers!r:.80}: a sample has 0 tokens or more")
    setattr(output, _ATTRIBUTE, numbers)


def token_counts(output: torch.Tensor) -> list[int] | None:
    """The counts of an output; `None` if none have been set."""
    found: list[int] | None = getattr(output, _ATTRIBUTE, None)
    return None if found is None else [int(count) for count in found]
