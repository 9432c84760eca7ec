"""Functional collectives of fake tensors, which torch does not pass on to the group: they are counted here."""

from typing import Any

import torch
from torch.distributed import distributed_c10d as c10d
from torch.utils._pytree import tree_leaves

from mimo_role.rehearsal.process_group import RehearsalGroup

_NAMES = {
    "all_reduce": "all_reduce",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_to_all_single": "all_to_all",
    "broadcast": "broadcast",
}
"""By the beginnings of torch's names, those of traffic."""


def count_functional(func: Any, args: Any) -> None:
    """Count one call of an operator of `_c10d_functional`; of others, nothing.

    Args:
        func: the operator.
        args: its arguments; the last text is the name of the group.
    """
    name = func._schema.name.partition("::")[2]
    operation = next((ours for theirs, ours in _NAMES.items() if name.startswith(theirs)), None)
    texts = [argument for argument in args if isinstance(argument, str)]
    if operation is None or not texts:
        return
    group = c10d._resolve_process_group(texts[-1])  # type: ignore[attr-defined,arg-type]
    if isinstance(group, RehearsalGroup):
        group.count(operation, [leaf for leaf in tree_leaves(args[0]) if isinstance(leaf, torch.Tensor)])
