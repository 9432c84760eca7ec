"""The schedule of rounds in which process groups are made: a pure value.

In a round every rank of the world creates exactly one group: its row along some axes, or, where its modules have no row
left to make, a group of itself alone. `new_group(..., use_local_synchronization=True)` names a group by a counter local
to the rank, so ranks that had made different numbers of groups would disagree on the name and hang.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, zip_longest

from mimo_role.grid import RankGrid
from mimo_role.topology import Topology


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
