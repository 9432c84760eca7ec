"""The tensors among the arguments or results of an operator."""

from typing import Any

import torch


def tensors_in(values: Any) -> list[torch.Tensor]:
    """The tensors in nested lists, tuples and dictionaries, in order. For operators: `tree_leaves` knows more containers, and
    takes ten times as long."""
    if isinstance(values, torch.Tensor):
        return [values]
    found: list[torch.Tensor] = []
    _collect(values, found)
    return found


def _collect(values: Any, found: list[torch.Tensor]) -> None:
    if isinstance(values, torch.Tensor):
        found.append(values)
    elif isinstance(values, list | tuple):
        for value in values:
            _collect(value, found)
    elif isinstance(values, dict):
        for value in values.values():
            _collect(value, found)
