"""Creation of single process groups, collectively over the world."""

from contextlib import suppress
from typing import Any

import torch.distributed as dist

from mimo_role.errors import ContextError
from mimo_role.groups.names import named, next_series
from mimo_role.groups.options import GroupOptions
from mimo_role.groups.rounds import GroupSet, Round, RowSet
from mimo_role.host import environ

CONNECT_AT_FIRST_USE = {"TORCH_GLOO_LAZY_INIT": "1"}
"""torch's switch for gloo: two ranks of a group connect at their first message, not all ranks when the group is created."""


def make_rows(rows: RowSet, rank: int, **settings: Any) -> dist.ProcessGroup:
    """Create the groups of one row set, in a separate round. Collective over the world.

    Args:
        rows: of any span of the world.
        rank: this process's.
        settings: `timeout`, `backend`, `pg_options` and `group_desc`, as `torch.distributed.new_group` takes them.

    Returns:
        The group of this rank's row; for a rank outside the span, a group of that rank only.
    """
    round_ = Round((GroupSet(rows, GroupOptions(), ()),))
    with named(next_series(world_group()), 0):
        return create_group(round_, dist.get_world_size(), rank, **settings)


def free(group: dist.ProcessGroup) -> None:
    """Destroy one group, unless it or its world has been destroyed already."""
    with suppress(ValueError):  # torch's error for an unknown group
        dist.destroy_process_group(group)


def uses_nccl() -> bool:
    """Whether the world's GPU tensors are transferred by NCCL."""
    backend = dist.get_backend()
    return "nccl" in backend or (backend == "undefined" and dist.is_nccl_available())


def create_group(
    round_: Round, world_size: int, rank: int, *, backend: str | None = None, pg_options: Any = None, **settings: Any
) -> dist.ProcessGroup:
    """Create one round\'s group of a rank. Collective over the world."""
    if dist.get_backend() == "nccl" and world_group().bound_device_id is not None and backend in (None, "nccl"):
        # One ncclCommSplit for the whole world; the new groups need no rendezvous.
        rows = [list(row) for row in round_.rows(world_size)]
        group = dist.split_group(split_ranks=rows, pg_options=pg_options, **settings)
    else:
        row = list(round_.row_of(rank))
        with environ.defaults(CONNECT_AT_FIRST_USE):
            group = dist.new_group(row, backend=backend, pg_options=pg_options, use_local_synchronization=True, **settings)
    assert group is not None, "every rank is in a row of the round"
    return group


def backend_options(options: GroupOptions) -> Any:
    """The options of torch's backend; `None` if they are its defaults or the backend is not NCCL.

    Raises:
        ContextError: this build of torch or NCCL lacks one of them.
    """
    if not uses_nccl() or (options.nccl == GroupOptions().nccl and not options.is_high_priority_stream):
        return None
    nccl = dist.ProcessGroupNCCL.Options(is_high_priority_stream=options.is_high_priority_stream)
    for name, value in options.as_dict().get("nccl", {}).items():
        if not hasattr(nccl.config, name):
            raise ContextError(f"groups.nccl.{name}: this torch's NCCL has no such option")
        setattr(nccl.config, name, value)
    return nccl


def world_group() -> dist.ProcessGroup:
    """The group of all ranks."""
    world = dist.group.WORLD
    assert isinstance(world, dist.ProcessGroup)
    return world
