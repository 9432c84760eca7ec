"""The process groups of all grids, created in rounds."""

import logging
import time
from collections.abc import Mapping
from datetime import timedelta

import torch.distributed as dist

from mimo_role.errors import AxisError, ContextError
from mimo_role.groups.creation import CreatedGroup, backend_options, create_group, free, world_group
from mimo_role.groups.families import locate
from mimo_role.groups.names import CountedGroup, named, next_series
from mimo_role.groups.options import MEGATRON, GroupOptions
from mimo_role.groups.rounds import Round, RowSet, Schedule, schedule
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY
from mimo_role.topology.topology import Topology

logger = logging.getLogger(__name__)

_shared: "ProcessGroups | None" = None


class ProcessGroups:
    """This rank's process groups, by module and axes."""

    def __init__(
        self, topology: Topology, rank: int, timeout: timedelta, options: Mapping[str, GroupOptions] | None = None
    ) -> None:
        """Create the groups. Collective over the world.

        Args:
            topology: the world.
            rank: this process's.
            timeout: for each collective, if a module's options set no other.
            options: by module; others have the defaults.

        Raises:
            TopologyError: the options name an axis that a module does not have.
            ContextError: this build of torch or NCCL lacks one of the options.
        """
        self._topology = topology
        self._rank = rank
        self._timeout = timeout
        self._options = dict(options or {})
        self._made: dict[tuple[RowSet, GroupOptions], dist.ProcessGroup] = {}
        self._alone: dist.ProcessGroup | None = None
        self._created: list[CreatedGroup] = []
        self._destroyed = False
        self.schedule: Schedule = schedule(topology, self._options)
        for own in self._options.values():
            backend_options(own)  # on every rank, before any of them waits in a round
        series = next_series(world_group())
        try:
            for number, (round_, rows) in enumerate(zip(self.schedule.rounds, self.schedule.rows(), strict=True)):
                started = time.perf_counter()
                with named(series, number):
                    self._make(round_, rows)
                logger.info("round %d (%s): %.3f s", number, round_.name_of(rank), time.perf_counter() - started)
        except BaseException:
            self.destroy()
            raise

    def _make(self, round_: Round, rows: list[tuple[int, ...]]) -> None:
        """Create one round's group of this rank, if it has one. Collective over the world."""
        groups, row = round_.group_set_of(self._rank), round_.row_of(self._rank)
        is_alone = len(row) == 1
        options = GroupOptions() if groups is None or is_alone else groups.options
        created = create_group(
            rows,
            None if is_alone and self._alone is not None else row,
            timeout=self._timeout if options.timeout_s is None else timedelta(seconds=options.timeout_s),
            pg_options=backend_options(options),
            group_desc=round_.name_of(self._rank),
        )
        self._created.append(created)
        if isinstance(created, CountedGroup):
            group = self._alone
        else:
            group = created
            self._alone = group if is_alone else self._alone
        if groups is not None and group is not None:
            self._made[groups.rows, groups.options] = group

    def communicator(self, module: str) -> GroupOptions:
        """The options with which a module's groups were created."""
        return self._options.get(module, GroupOptions()).communicator

    def get(self, module: str, axes: tuple[str, ...]) -> dist.ProcessGroup:
        """The group of the ranks that differ from this one only along `axes` of the module's grid.

        Raises:
            AxisError: the module has no such axes, or its options do not include this group.
            ContextError: the groups have been destroyed.
        """
        rows = RowSet.of(*locate(self._topology, module, axes))
        return self._require(module, rows, f"along {', '.join(axes) or 'no axis'}", f"[[{', '.join(axes)}]]")

    def get_ends(self, module: str) -> dist.ProcessGroup:
        """The group of this rank and its counterparts on the module's first and last stages.

        Raises:
            AxisError: the module's options do not include it.
            ContextError: the groups have been destroyed.
        """
        rows = RowSet.ends_of(self._topology.grids[module], "pp")
        if rows.ends_only and module != MIMO_LANGUAGE_MODULE_KEY:
            raise AxisError(
                f"module {module!r} has no group of its first and last stages: with more than two stages, only "
                f"{MIMO_LANGUAGE_MODULE_KEY!r} can have one"
            )
        return self._require(module, rows, "of its first and last stages", MEGATRON)

    def _require(self, module: str, rows: RowSet, what: str, families: str) -> dist.ProcessGroup:
        group = self.find(rows, self.communicator(module))
        if group is None:
            raise AxisError(
                f"module {module!r} has no group {what}; ask for it with modules.{module}.groups.families: {families}"
            )
        return group

    def find(self, rows: RowSet, communicator: GroupOptions | None = None) -> dist.ProcessGroup | None:
        """This rank's group among the rows; `None` if no round creates them. The result is the same on every rank of the rows.

        Args:
            rows: of a span that has this rank.
            communicator: the options with which the group was created; default: any.

        Raises:
            ContextError: the groups have been destroyed.
        """
        if self._destroyed:
            raise ContextError("the groups have been destroyed: mimo_role.shutdown() was called")
        if rows.row_size == 1:
            return self._alone
        whole = any(groups.rows == rows for groups in self.schedule.on_world)
        if whole and communicator in (None, GroupOptions()):
            return world_group()
        if communicator is not None:
            return self._made.get((rows, communicator))
        return next((group for (made, _), group in self._made.items() if made == rows), None)

    def destroy(self) -> None:
        """Destroy every group, once."""
        self._destroyed = True
        created, self._created = self._created, []
        self._made.clear()
        self._alone = None
        for group in created:
            free(group)


def share(groups: ProcessGroups | None) -> None:
    """Make these the groups that grids such as `HyperCommGrid` use from now on; `None`: none."""
    global _shared
    _shared = groups


def shared() -> ProcessGroups | None:
    """The groups of the context; `None` without one."""
    return _shared
