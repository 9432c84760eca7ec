"""Creation of single process groups, collectively over the world."""

import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from mimo_role.errors import ContextError
from mimo_role.groups.names import CountedGroup, named, named_alone, named_by_ranks, next_series
from mimo_role.groups.options import Communicator, NcclOptions
from mimo_role.groups.row_set import RowSet
from mimo_role.host import environ

CreatedGroup = dist.ProcessGroup | CountedGroup
"""What a rank has after a round: its group, or what counts as one."""

CONNECT_AT_FIRST_USE = {"TORCH_GLOO_LAZY_INIT": "1"}
"""torch's switch for gloo: two ranks of a group connect at their first message, not all ranks when the group is created."""


def make_rows(rows: RowSet, rank: int, **settings: Any) -> CreatedGroup:
    """Create the groups of one row set, in a separate round. Collective over the world.

    Args:
        rows: of any span of the world.
        rank: this process's.
        settings: `timeout`, `backend`, `pg_options` and `group_desc`, as `torch.distributed.new_group` takes them.

    Returns:
        The group of this rank's row; for a rank outside the span, a `CountedGroup`.
    """
    with named(next_series(world_group()), 0):
        return create_group(rows.rows(), rows.row_of(rank) if rank in rows.span else None, **settings)


def free(group: CreatedGroup) -> None:
    """Destroy one group, unless it or its world has been destroyed already."""
    if isinstance(group, CountedGroup):
        group.free()
        return
    with suppress(ValueError):  # torch's error for an unknown group
        dist.destroy_process_group(group)


def uses_nccl() -> bool:
    """Whether the world's GPU tensors are transferred by NCCL."""
    backend = dist.get_backend()
    return "nccl" in backend or (backend == "undefined" and dist.is_nccl_available())


def create_group(
    rows: Iterable[Sequence[int]],
    own: Sequence[int] | None,
    *,
    backend: str | None = None,
    pg_options: Any = None,
    device: torch.device | None = None,
    **settings: Any,
) -> CreatedGroup:
    """Create the groups of one round. Collective over the world.

    Args:
        rows: the ranks of each group, the same on all ranks; disjoint, ascending.
        own: this rank's row; `None` if it is in none.
        backend: by default the world's.
        pg_options: the backend's options; `None` for its defaults.
        device: under NCCL, where to create the communicator at once. Without it, torch creates it at the first use, for which
            all members have to come.
        settings: `timeout` and `group_desc`, as `torch.distributed.new_group` takes them.

    Returns:
        This rank's group; a `CountedGroup` if it is in none.
    """
    if dist.get_backend() == "nccl" and world_group().bound_device_id is not None and backend in (None, "nccl"):
        # One ncclCommSplit for the whole world; the new groups need no rendezvous.
        splits = [list(row) for row in rows]
        group = dist.split_group(split_ranks=splits, pg_options=pg_options, **settings)
    elif own is None:
        group = None
    else:
        if device is not None and device.type == "cuda":
            settings["device_id"] = device
        with environ.defaults(CONNECT_AT_FIRST_USE), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="backend_options._timeout was specified"
            )  # `timeout` is meant to override
            group = dist.new_group(
                list(own), backend=backend, pg_options=pg_options, use_local_synchronization=True, **settings
            )
    return CountedGroup() if group is None else group


def new_group_of(ranks: Sequence[int], **settings: Any) -> dist.ProcessGroup | None:
    """`RoleContext.new_group`, which documents the arguments."""
    world = world_group()
    if dist.get_rank() not in ranks:
        return None
    with named_by_ranks(world):
        return _create_locally(ranks, **settings)


def create_alone(rank: int, series: int, **settings: Any) -> dist.ProcessGroup:
    """Create a group of this rank only, by a call on this rank only.

    Args:
        rank: this process's.
        series: of the groups that it is created beside.
        settings: `timeout`, as `torch.distributed.new_group` takes it.
    """
    with named_alone(series):
        group = _create_locally((rank,), group_desc="self", **settings)
    bound = world_group().bound_device_id
    if bound is not None:  # as groups that are split off the world have it, so that a barrier knows its device
        group.bound_device_id = bound
    return group


def _create_locally(ranks: Sequence[int], **settings: Any) -> dist.ProcessGroup:
    """Create a group by a call on its ranks only, also where the world is bound to devices."""
    world = world_group()
    bound = world.bound_device_id
    world.bound_device_id = None
    try:
        with environ.defaults(CONNECT_AT_FIRST_USE):
            group: dist.ProcessGroup = dist.new_group(list(ranks), use_local_synchronization=True, **settings)
            return group
    finally:
        world.bound_device_id = bound


def backend_options(options: Communicator) -> Any:
    """The options of torch's backend; `None` if they are its defaults or the backend is not NCCL.

    Raises:
        ContextError: this build of torch or NCCL lacks one of them.
    """
    if not uses_nccl() or (options.nccl == NcclOptions() and not options.is_high_priority_stream):
        return None
    nccl = dist.ProcessGroupNCCL.Options(is_high_priority_stream=options.is_high_priority_stream)
    for name, value in asdict(options.nccl).items():
        if value is None:
            continue
        if not hasattr(nccl.config, name):
            raise ContextError(f"groups.nccl.{name}: this torch's NCCL has no such option")
        setattr(nccl.config, name, value)
    return nccl


def world_group() -> dist.ProcessGroup:
    """The group of all ranks."""
    world = dist.group.WORLD
    assert isinstance(world, dist.ProcessGroup)
    return world
