"""The process groups of all grids, made by the schedule of rounds."""

import logging
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from mimo_role import environ
from mimo_role.errors import AxisError, ContextError
from mimo_role.families import GroupOptions, locate
from mimo_role.rounds import GroupSet, Round, RowSet, Schedule, schedule
from mimo_role.topology import Topology

logger = logging.getLogger(__name__)

CONNECT_AT_FIRST_USE = {"TORCH_GLOO_LAZY_INIT": "1"}
"""torch's switch for gloo: two ranks of a group connect when they first talk, instead of each with each when it is made."""

_freed = 0
"""How many groups this process has freed since it last made some; see `_keep_names_new`."""

_shared: "Groups | None" = None


class Groups:
    """This rank's process groups, by module and axes."""

    def __init__(
        self, topology: Topology, rank: int, timeout: timedelta, options: Mapping[str, GroupOptions] | None = None
    ) -> None:
        """Make them. Collective over the world: every rank makes the same number of groups in the same order.

        Args:
            topology: the world.
            rank: this process's.
            timeout: for each collective, where a module's options say nothing else.
            options: of each module; those left out have the defaults.

        Raises:
            TopologyError: the options name an axis that a module does not have.
        """
        self._topology = topology
        self._rank = rank
        self._options = dict(options or {})
        self.schedule: Schedule = schedule(topology, self._options)
        self._made: dict[tuple[RowSet, GroupOptions], dist.ProcessGroup] = {}
        self._alone: list[dist.ProcessGroup] = []
        _keep_names_new(rank)
        for number, round_ in enumerate(self.schedule.rounds):
            started = time.perf_counter()
            self._keep(round_.group_set_of(rank), make_round(round_, topology.world_size, rank, timeout))
            logger.info("round %d (%s): %.3f s", number, round_.name_of(rank), time.perf_counter() - started)

    def _keep(self, groups: GroupSet | None, group: dist.ProcessGroup) -> None:
        if groups is None:
            self._alone.append(group)
        else:
            self._made[groups.rows, groups.options] = group

    def get(self, module: str, axes: tuple[str, ...]) -> dist.ProcessGroup:
        """The group of the ranks that differ from this one only along `axes` of the module's grid.

        Raises:
            AxisError: the module has no such axes, or its options do not ask for this group.
        """
        rows = RowSet.of(*locate(self._topology, module, axes))
        group = self.find(rows, self._options.get(module, GroupOptions()).communicator)
        if group is None:
            raise AxisError(
                f"module {module!r} has no group along {', '.join(axes)}; ask for it with "
                f"modules.{module}.groups.families: [[{', '.join(axes)}]]"
            )
        return group

    def get_ends(self, module: str) -> dist.ProcessGroup:
        """The group of this rank's counterparts on the module's first and last stages, itself among them.

        Raises:
            AxisError: the module's options do not ask for it.
        """
        rows = RowSet.ends_of(self._topology.grids[module], "pp")
        group = self.find(rows, self._options.get(module, GroupOptions()).communicator)
        if group is None:
            raise AxisError(
                f"module {module!r} has no group of its first and last stages; ask for it with "
                f"modules.{module}.groups.families: megatron"
            )
        return group

    def find(self, rows: RowSet, communicator: GroupOptions | None = None) -> dist.ProcessGroup | None:
        """This rank's group among the rows; `None` where no round makes them. Every rank of the rows gets the same answer.

        Args:
            rows: of a span in which this rank is.
            communicator: the options that the group was made with; default: any.
        """
        if rows.row_size == 1:
            return self._alone[0] if self._alone else None
        whole = any(groups.rows == rows for groups in self.schedule.on_world)
        if whole and communicator in (None, GroupOptions()):
            return _world()
        if communicator is not None:
            return self._made.get((rows, communicator))
        return next((group for (made, _), group in self._made.items() if made == rows), None)

    def destroy(self) -> None:
        """Free every group once."""
        for group in (*self._made.values(), *self._alone):
            free(group)
        self._made.clear()
        self._alone.clear()


def share(groups: Groups | None) -> None:
    """Let grids that are made from now on, such as `HyperCommGrid`, take these groups; `None` ends it."""
    global _shared
    _shared = groups


def shared() -> Groups | None:
    """The groups that a context shares."""
    return _shared


def make_rows(rows: RowSet, rank: int, **settings: Any) -> dist.ProcessGroup:
    """Make the groups of one row set in a round of its own. Collective over the world.

    Args:
        rows: of any span of the world.
        rank: this process's.
        settings: `timeout`, `backend`, `pg_options` and `group_desc`, as `torch.distributed.new_group` takes them.

    Returns:
        This rank's row as a group; for a rank outside the span, a group of itself alone.
    """
    _keep_names_new(rank)
    round_ = Round((GroupSet(rows, GroupOptions(), (settings.get("group_desc") or "grid",)),))
    return _create(round_, dist.get_world_size(), rank, **settings)


def make_round(round_: Round, world_size: int, rank: int, timeout: timedelta) -> dist.ProcessGroup:
    """Make one round's group of this rank. Collective over the world."""
    groups = round_.group_set_of(rank)
    options = GroupOptions() if groups is None else groups.options
    return _create(
        round_,
        world_size,
        rank,
        timeout=timeout if options.timeout_s is None else timedelta(seconds=options.timeout_s),
        pg_options=_backend_options(options),
        group_desc=round_.name_of(rank),
    )


def free(group: dist.ProcessGroup) -> None:
    """Destroy one group."""
    global _freed
    dist.destroy_process_group(group)
    _freed += 1


def _create(
    round_: Round, world_size: int, rank: int, *, backend: str | None = None, pg_options: Any = None, **settings: Any
) -> dist.ProcessGroup:
    if "nccl" in dist.get_backend() and _world().bound_device_id is not None and backend in (None, dist.get_backend()):
        # One ncclCommSplit for the whole world; the new groups need no rendezvous of their own.
        rows = [list(row) for row in round_.rows(world_size)]
        group = dist.split_group(split_ranks=rows, pg_options=pg_options, **settings)
    else:
        row = list(round_.row_of(rank))
        with environ.defaults(CONNECT_AT_FIRST_USE):
            group = dist.new_group(row, backend=backend, pg_options=pg_options, use_local_synchronization=True, **settings)
    assert group is not None, "every rank is in a row of the round"
    return group


def _keep_names_new(rank: int) -> None:
    """Let groups that are made after others were freed have names that no freed group had.

    torch names a group after its ranks and the number of groups that the process has. A group that came to an old name
    would find its predecessor's addresses in the store. A placeholder for each freed group keeps the number growing.
    """
    global _freed
    for _ in range(_freed):
        dist.new_group([rank], group_desc="placeholder")
    _freed = 0


def _backend_options(options: GroupOptions) -> Any:
    """The options as torch's backend takes them; `None` where they are its defaults or the backend is not NCCL.

    Raises:
        ContextError: this build of torch or NCCL does not know one of them.
    """
    if "nccl" not in dist.get_backend() or (options.nccl == GroupOptions().nccl and not options.is_high_priority_stream):
        return None
    nccl = dist.ProcessGroupNCCL.Options(is_high_priority_stream=options.is_high_priority_stream)
    for name, value in options.as_dict().get("nccl", {}).items():
        if not hasattr(nccl.config, name):
            raise ContextError(f"groups.nccl.{name}: this torch's NCCL has no such option")
        setattr(nccl.config, name, value)
    return nccl


def _world() -> dist.ProcessGroup:
    world = dist.group.WORLD
    assert isinstance(world, dist.ProcessGroup)
    return world
