"""Functions of torch that only some backends have, such as gloo or NCCL, or that a peer's values would make zeros."""

from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d


def monitored_barrier(group: Any = None, timeout: Any = None, wait_all_ranks: bool = False) -> None:
    """A barrier, in place of `torch.distributed.monitored_barrier`, which is gloo's alone."""
    del timeout, wait_all_ranks
    dist.barrier(group)


def split_group(
    parent_pg: Any = None,
    split_ranks: Sequence[Sequence[int]] | None = None,
    timeout: Any = None,
    pg_options: Any = None,
    group_desc: str | None = None,
    **_: Any,
) -> Any:
    """This rank's part of a group, in place of `torch.distributed.split_group`, which only NCCL has.

    Returns:
        The new group; `None` on a rank of the parent that is in no part.

    Raises:
        ValueError: no parts, or an empty one.
    """
    del timeout, pg_options
    if not split_ranks or not all(split_ranks):
        raise ValueError("split_ranks cannot be None or empty, nor can one of its groups")
    parent = parent_pg or c10d._get_default_group()
    own = next((sorted(part) for part in split_ranks if parent.rank() in part), None)
    if own is None:
        return None
    ranks = [dist.get_global_rank(parent, place) for place in own]
    description = group_desc or f"{parent.group_desc}:split:{parent.rank()}"
    return dist.new_group(ranks, use_local_synchronization=True, group_desc=description)


def scattered_from_own(scatter: Callable[..., Any]) -> Callable[..., Any]:
    """What replaces DTensor's `mesh_scatter`: `distribute_tensor` has the whole tensor on all ranks, so this rank's shard is
    its own, and not zeros."""

    def scatter_own(output: Any, shards: Sequence[Any], mesh: Any, mesh_dim: int = 0, **settings: Any) -> Any:
        work = scatter(output, shards, mesh, mesh_dim, **settings)
        output.copy_(shards[mesh.get_local_rank(mesh_dim)])
        return work

    return scatter_own
