"""The process groups of all grids, created in rounds."""

import logging
import time
from collections.abc import Mapping
from datetime import timedelta

import torch.distributed as dist

from mimo_role.errors import AxisError, ContextError
from mimo_role.groups.communicators import communicator_of
from mimo_role.groups.creation import CreatedGroup, backend_options, create_alone, create_group, free, world_group
from mimo_role.groups.families import EMBEDDING, SECOND_GROUPS, locate
from mimo_role.groups.names import CountedGroup, named, next_series
from mimo_role.groups.options import MEGATRON, Communicator, GroupOptions
from mimo_role.groups.rounds import Round, Schedule, schedule
from mimo_role.groups.row_set import RowSet
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
        self._made: dict[tuple[RowSet, Communicator], dist.ProcessGroup] = {}
        self._by_family: dict[tuple[str, tuple[str, ...]], dist.ProcessGroup] = {}
        """What `get` has found: scripts may ask for a group in each step."""
        self._created: list[CreatedGroup] = []
        self._destroyed = False
        self.schedule: Schedule = schedule(topology, self._options)
        for round_ in self.schedule.rounds:
            for groups in round_.group_sets:
                backend_options(groups.options)  # on every rank, before any of them waits in a round
        series = next_series(world_group())
        self._alone: dist.ProcessGroup | None = create_alone(rank, series, timeout=timeout)
        self._created.append(self._alone)
        try:
            for number, round_ in enumerate(self.schedule.rounds):
                started = time.perf_counter()
                with named(series, number):
                    made = self._make(round_)
                logger.info("round %d (%s): %.3f s", number, made, time.perf_counter() - started)
        except BaseException:
            self.destroy()
            raise

    def _make(self, round_: Round) -> str:
        """Create one round's group of this rank, if it has one, and return its name. Collective over the world."""
        groups = round_.group_set_of(self._rank)
        options = Communicator() if groups is None else groups.options
        name = "none" if groups is None else groups.names[0]
        created = create_group(
            round_.rows(),
            None if groups is None else groups.rows.row_of(self._rank),
            timeout=self._timeout if options.timeout_s is None else timedelta(seconds=options.timeout_s),
            pg_options=backend_options(options),
            group_desc=name,
        )
        self._created.append(created)
        if groups is not None and not isinstance(created, CountedGroup):
            self._made[groups.rows, groups.options] = created
        return name

    def communicator(self, module: str, family: tuple[str, ...]) -> Communicator:
        """How a module's group of some axes, or of a name, was created.

        Raises:
            AxisError: the module has no such axes.
        """
        return communicator_of(self._topology, module, self._options.get(module, GroupOptions()), family)

    def get(self, module: str, axes: tuple[str, ...]) -> dist.ProcessGroup:
        """The group of the ranks that differ from this one only along `axes` of the module's grid.

        Raises:
            AxisError: the module has no such axes, or its options do not include this group.
            ContextError: the groups have been destroyed.
        """
        are_names = all(isinstance(axis, str) for axis in axes)  # `locate` refuses others, such as a list
        if are_names and (known := self._by_family.get((module, axes))) is not None:
            return known
        rows = RowSet.of(*locate(self._topology, module, axes))
        what, families = f"along {', '.join(axes) or 'no axis'}", f"[[{', '.join(axes)}]]"
        if axes and axes[0] in SECOND_GROUPS:
            what, families = axes[0], MEGATRON
        found = self._by_family[module, axes] = self._require(module, rows, axes, what, families)
        return found

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
        return self._require(module, rows, (EMBEDDING,), "of its first and last stages", MEGATRON)

    def _require(self, module: str, rows: RowSet, family: tuple[str, ...], what: str, families: str) -> dist.ProcessGroup:
        group = self.find(rows, self.communicator(module, family))
        if group is None:
            raise AxisError(
                f"module {module!r} has no group {what}; ask for it with modules.{module}.groups.families: {families}"
            )
        return group

    def find(self, rows: RowSet, communicator: Communicator | None = None) -> dist.ProcessGroup | None:
        """This rank's group among the rows; `None` if no round creates them. The result is the same on every rank of the rows.

        Args:
            rows: of a span that has this rank.
            communicator: how the group was created; default: any but a second group.

        Raises:
            ContextError: the groups have been destroyed.
        """
        if self._destroyed:
            raise ContextError("the groups have been destroyed: mimo_role.shutdown() was called")
        if rows.row_size == 1:
            return self._alone
        if rows.ends_only and len(rows.row_of(self._rank)) == 1:
            return self._alone if self.schedule.makes(rows, communicator) else None
        whole = any(groups.rows == rows for groups in self.schedule.on_world)
        if whole and communicator in (None, Communicator()):
            return world_group()
        if communicator is not None:
            return self._made.get((rows, communicator))
        return next((group for (made, own), group in self._made.items() if made == rows and not own.purpose), None)

    def destroy(self) -> None:
        """Destroy every group, once."""
        self._destroyed = True
        created, self._created = self._created, []
        self._made.clear()
        self._by_family.clear()
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
