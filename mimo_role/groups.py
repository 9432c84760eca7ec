"""The process groups of all grids, made in rounds.

In a round every rank of the world creates exactly one group: its row along some axes, or, where its modules have no row
left to make, a group of itself alone. `new_group(..., use_local_synchronization=True)` names a group by a counter local
to the rank, so ranks that had made different numbers of groups would disagree on the name and hang.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import combinations, zip_longest

import torch
import torch.distributed as dist

from mimo_role.errors import AxisError
from mimo_role.grid import RankGrid
from mimo_role.topology import Topology

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowSet:
    """The rows of a span of ranks along some axes, told by steps: axes of two modules with equal rows give one value."""

    span: range
    steps: tuple[tuple[int, int], ...]
    """(stride, size) of each run of adjacent axes, fastest first."""

    @classmethod
    def of(cls, grid: RankGrid, axes: Iterable[str]) -> "RowSet":
        wanted = set(axes)
        steps: list[tuple[int, int]] = []
        for name in grid.dim_names:
            size, stride = grid.axis_size(name), grid.stride(name)
            if name not in wanted or size == 1:
                continue
            if steps and steps[-1][0] * steps[-1][1] == stride:
                steps[-1] = (steps[-1][0], steps[-1][1] * size)
            else:
                steps.append((stride, size))
        return cls(grid.ranks, tuple(steps))

    def row_of(self, rank: int) -> tuple[int, ...]:
        """The ranks of the rank's row, ascending."""
        index = rank - self.span.start
        first = rank - sum(index // stride % size * stride for stride, size in self.steps)
        row = [first]
        for stride, size in self.steps:
            row = [other + step * stride for step in range(size) for other in row]
        return tuple(row)


@dataclass(frozen=True)
class Round:
    """Row sets of disjoint spans, whose groups are made at the same time."""

    row_sets: tuple[RowSet, ...]
    names: tuple[str, ...]
    """What each row set is first used for, such as `language.tp`."""

    def row_of(self, rank: int) -> tuple[int, ...]:
        """The ranks of the one group that `rank` makes in this round."""
        return next((rows.row_of(rank) for rows in self.row_sets if rank in rows.span), (rank,))

    def name_of(self, rank: int) -> str:
        """What that group is for; `self` for a rank that has nothing to make."""
        pairs = zip(self.row_sets, self.names, strict=True)
        return next((name for rows, name in pairs if rank in rows.span), "self")


def families(grid: RankGrid, expert_grid: RankGrid | None = None) -> Iterator[tuple[RankGrid, tuple[str, ...]]]:
    """The axis sets that get groups: every choice of axes longer than one, of the grid and of its expert grid."""
    for view in (grid, expert_grid):
        if view is None:
            continue
        long = [axis for axis in view.dim_names if view.axis_size(axis) > 1]
        for count in range(1, len(long) + 1):
            for axes in combinations(long, count):
                yield view, axes


def schedule(topology: Topology) -> list[Round]:
    """The rounds for a topology: its distinct row sets, those of disjoint spans side by side.

    The first round gives every rank a group of itself alone, for axes of size one. Rows that are the whole world are
    left to the world's own group.
    """
    by_span: dict[range, dict[RowSet, str]] = {}
    for name, grid in topology.grids.items():
        row_sets = by_span.setdefault(grid.ranks, {})
        for view, axes in families(grid, topology.expert_grids.get(name)):
            rows = RowSet.of(view, axes)
            if rows.steps != ((1, topology.world_size),):
                row_sets.setdefault(rows, f"{name}.{'_'.join(axes)}")
    rounds = [Round(row_sets=(), names=())]
    for step in zip_longest(*(row_sets.items() for row_sets in by_span.values())):
        made = [item for item in step if item is not None]
        rounds.append(Round(row_sets=tuple(rows for rows, _ in made), names=tuple(name for _, name in made)))
    return rounds


class Groups:
    """This rank's process groups, by module and axes."""

    def __init__(self, topology: Topology, rank: int, timeout: timedelta) -> None:
        """Make them. Collective over the world: every rank makes the same number of groups in the same order."""
        self._topology = topology
        self._rank = rank
        self._made: dict[tuple[int, ...], dist.ProcessGroup] = {}
        for number, round_ in enumerate(schedule(topology)):
            started = time.perf_counter()
            self._made[round_.row_of(rank)] = _make(round_, topology.world_size, rank, timeout)
            logger.info("round %d (%s): %.3f s", number, round_.name_of(rank), time.perf_counter() - started)

    def get(self, module: str, axes: tuple[str, ...]) -> dist.ProcessGroup:
        """The group of the ranks that differ from this one only along `axes` of the module's grid.

        Raises:
            AxisError: the module has no such axis.
        """
        row = RowSet.of(self._view(module, axes), axes).row_of(self._rank)
        if len(row) == self._topology.world_size:
            world = dist.group.WORLD
            assert world is not None
            return world
        return self._made[row]

    def destroy(self) -> None:
        """Free every group once."""
        for group in self._made.values():
            dist.destroy_process_group(group)
        self._made.clear()

    def _view(self, module: str, axes: tuple[str, ...]) -> RankGrid:
        views = [self._topology.grids[module]]
        if module in self._topology.expert_grids:
            views.append(self._topology.expert_grids[module])
        for view in views:
            if set(axes) <= set(view.dim_names):
                return view
        known = "; or ".join(", ".join(view.dim_names) for view in views)
        raise AxisError(f"module {module!r} has no grid with the axes {', '.join(axes) or '(none)'}; it has {known}")


def _make(round_: Round, world_size: int, rank: int, timeout: timedelta) -> dist.ProcessGroup:
    world = dist.group.WORLD
    assert world is not None
    description = round_.name_of(rank)
    if dist.get_backend() == "nccl" and isinstance(world.bound_device_id, torch.device):
        rows = sorted({round_.row_of(other) for other in range(world_size)})
        group = dist.split_group(split_ranks=[list(row) for row in rows], timeout=timeout, group_desc=description)
    else:
        group = dist.new_group(
            list(round_.row_of(rank)), timeout=timeout, use_local_synchronization=True, group_desc=description
        )
    assert isinstance(group, dist.ProcessGroup)
    return group
