"""The process groups of all grids, made by the schedule of rounds."""

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from mimo_role.errors import AxisError, ContextError
from mimo_role.groups.families import MEGATRON, GroupOptions, locate
from mimo_role.groups.names import named, next_series
from mimo_role.groups.rounds import GroupSet, Round, RowSet, Schedule, schedule
from mimo_role.host import environ
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY
from mimo_role.topology.topology import Topology

logger = logging.getLogger(__name__)

CONNECT_AT_FIRST_USE = {"TORCH_GLOO_LAZY_INIT": "1"}
"""torch's switch for gloo: two ranks of a group connect when they first talk, instead of each with each when it is made."""

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
            ContextError: this build of torch or NCCL does not know one of the options.
        """
        self._topology = topology
        self._rank = rank
        self._timeout = timeout
        self._options = dict(options or {})
        self._made: dict[tuple[RowSet, GroupOptions], dist.ProcessGroup] = {}
        self._alone: list[dist.ProcessGroup] = []
        self._destroyed = False
        self.schedule: Schedule = schedule(topology, self._options)
        for own in self._options.values():
            _backend_options(own)  # on every rank alike, before any of them waits in a round
        series = next_series(_world())
        try:
            for number, round_ in enumerate(self.schedule.rounds):
                started = time.perf_counter()
                with named(series, number):
                    self._make(round_)
                logger.info("round %d (%s): %.3f s", number, round_.name_of(rank), time.perf_counter() - started)
        except BaseException:
            self.destroy()
            raise

    def _make(self, round_: Round) -> None:
        """Make one round's group of this rank. Collective over the world."""
        groups = round_.group_set_of(self._rank)
        options = GroupOptions() if groups is None else groups.options
        group = _create(
            round_,
            self._topology.world_size,
            self._rank,
            timeout=self._timeout if options.timeout_s is None else timedelta(seconds=options.timeout_s),
            pg_options=_backend_options(options),
            group_desc=round_.name_of(self._rank),
        )
        if groups is None:
            self._alone.append(group)
        else:
            self._made[groups.rows, groups.options] = group

    def communicator(self, module: str) -> GroupOptions:
        """The options with which a module's groups were made."""
        return self._options.get(module, GroupOptions()).communicator

    def get(self, module: str, axes: tuple[str, ...]) -> dist.ProcessGroup:
        """The group of the ranks that differ from this one only along `axes` of the module's grid.

        Raises:
            AxisError: the module has no such axes, or its options do not ask for this group.
            ContextError: the groups have been freed.
        """
        rows = RowSet.of(*locate(self._topology, module, axes))
        return self._asked_for(module, rows, f"along {', '.join(axes) or 'no axis'}", f"[[{', '.join(axes)}]]")

    def get_ends(self, module: str) -> dist.ProcessGroup:
        """The group of this rank's counterparts on the module's first and last stages, itself among them.

        Raises:
            AxisError: the module's options do not ask for it.
            ContextError: the groups have been freed.
        """
        rows = RowSet.ends_of(self._topology.grids[module], "pp")
        if rows.ends_only and module != MIMO_LANGUAGE_MODULE_KEY:
            raise AxisError(
                f"module {module!r} has no group of its first and last stages: with more than two stages, only "
                f"{MIMO_LANGUAGE_MODULE_KEY!r} can have one"
            )
        return self._asked_for(module, rows, "of its first and last stages", MEGATRON)

    def _asked_for(self, module: str, rows: RowSet, what: str, families: str) -> dist.ProcessGroup:
        group = self.find(rows, self.communicator(module))
        if group is None:
            raise AxisError(
                f"module {module!r} has no group {what}; ask for it with modules.{module}.groups.families: {families}"
            )
        return group

    def find(self, rows: RowSet, communicator: GroupOptions | None = None) -> dist.ProcessGroup | None:
        """This rank's group among the rows; `None` where no round makes them. Every rank of the rows gets the same answer.

        Args:
            rows: of a span in which this rank is.
            communicator: the options that the group was made with; default: any.

        Raises:
            ContextError: the groups have been freed.
        """
        if self._destroyed:
            raise ContextError("the groups have been freed: mimo_role.shutdown() was called")
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
        self._destroyed = True
        groups = [*self._made.values(), *self._alone]
        self._made.clear()
        self._alone.clear()
        for group in groups:
            free(group)


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
    round_ = Round((GroupSet(rows, GroupOptions(), ()),))
    with named(next_series(_world()), 0):
        return _create(round_, dist.get_world_size(), rank, **settings)


def free(group: dist.ProcessGroup) -> None:
    """Destroy one group, unless its world has ended or somebody else has destroyed it."""
    with suppress(ValueError):  # torch's error for a group that it does not know
        dist.destroy_process_group(group)


def uses_nccl() -> bool:
    """Whether the world's GPU tensors go through NCCL."""
    backend = dist.get_backend()
    return "nccl" in backend or (backend == "undefined" and dist.is_nccl_available())


def _create(
    round_: Round, world_size: int, rank: int, *, backend: str | None = None, pg_options: Any = None, **settings: Any
) -> dist.ProcessGroup:
    if dist.get_backend() == "nccl" and _world().bound_device_id is not None and backend in (None, "nccl"):
        # One ncclCommSplit for the whole world; the new groups need no rendezvous of their own.
        rows = [list(row) for row in round_.rows(world_size)]
        group = dist.split_group(split_ranks=rows, pg_options=pg_options, **settings)
    else:
        row = list(round_.row_of(rank))
        with environ.defaults(CONNECT_AT_FIRST_USE):
            group = dist.new_group(row, backend=backend, pg_options=pg_options, use_local_synchronization=True, **settings)
    assert group is not None, "every rank is in a row of the round"
    return group


def _backend_options(options: GroupOptions) -> Any:
    """The options as torch's backend takes them; `None` where they are its defaults or the backend is not NCCL.

    Raises:
        ContextError: this build of torch or NCCL does not know one of them.
    """
    if not uses_nccl() or (options.nccl == GroupOptions().nccl and not options.is_high_priority_stream):
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
