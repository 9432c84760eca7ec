"""The schedule of rounds in which process groups are created: a pure value.

In a round a rank of the world creates at most one group: its row along some axes, or, once, a group of that rank only. So under
NCCL a round is one split of the world's communicator.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from mimo_role.errors import TopologyError
from mimo_role.groups.families import EMBEDDING, families_of, has_embedding_groups, locate
from mimo_role.groups.options import MEGATRON, GroupOptions
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.topology import Topology

ALONE = "self"
"""The name of a group of one rank."""


@dataclass(frozen=True)
class RowSet:
    """The rows of a span of ranks along some axes, described by steps: equal rows of two modules are equal values."""

    span: range
    steps: tuple[tuple[int, int], ...]
    """(stride, size) of each run of adjacent axes, fastest first."""
    ends_only: bool = False
    """Only the first and the last rank of each row belong to it; each rank between is alone."""

    @classmethod
    def of(cls, grid: RankGrid, axes: Iterable[str]) -> "RowSet":
        """The rows of a grid along `axes`."""
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

    @classmethod
    def ends_of(cls, grid: RankGrid, axis: str) -> "RowSet":
        """The first and last rank of each row along one axis."""
        rows = cls.of(grid, (axis,) if axis in grid.dim_names else ())
        return cls(rows.span, rows.steps, ends_only=rows.row_size > 2)

    @property
    def row_size(self) -> int:
        """The number of ranks of a row."""
        return 2 if self.ends_only else math.prod(size for _, size in self.steps)

    @property
    def row_count(self) -> int:
        """The number of rows, without ranks that are alone."""
        return len(self.span) // math.prod(size for _, size in self.steps)

    def row_of(self, rank: int) -> tuple[int, ...]:
        """The ranks of the rank's row, ascending."""
        row = self._whole_row(rank - self._offset_in_row(rank))
        if self.ends_only:
            return (row[0], row[-1]) if rank in (row[0], row[-1]) else (rank,)
        return row

    def rows(self) -> Iterator[tuple[int, ...]]:
        """All rows, each once, in the order of their first ranks."""
        for rank in self.span:
            if self._offset_in_row(rank) == 0:
                yield self.row_of(rank)
            elif self.ends_only and len(row := self.row_of(rank)) == 1:
                yield row

    def _offset_in_row(self, rank: int) -> int:
        index = rank - self.span.start
        return sum(index // stride % size * stride for stride, size in self.steps)

    def _whole_row(self, first: int) -> tuple[int, ...]:
        row = [first]
        for stride, size in self.steps:
            row = [other + step * stride for step in range(size) for other in row]
        return tuple(row)


@dataclass(frozen=True)
class GroupSet:
    """Rows for which groups are created."""

    rows: RowSet
    options: GroupOptions
    """The communicator's; the families are ignored."""
    names: tuple[str, ...]
    """All names of the rows, such as `language.tp` and `language.ep`, by the axes longer than one; groups get the first."""


@dataclass(frozen=True)
class Round:
    """Group sets of disjoint spans, whose groups are created at the same time."""

    group_sets: tuple[GroupSet, ...]

    def group_set_of(self, rank: int) -> GroupSet | None:
        """The rows to which the rank's group belongs; `None` for a group of that rank only."""
        return next((groups for groups in self.group_sets if rank in groups.rows.span), None)

    def row_of(self, rank: int) -> tuple[int, ...]:
        """The ranks of the group that `rank` creates in this round."""
        groups = self.group_set_of(rank)
        return (rank,) if groups is None else groups.rows.row_of(rank)

    def name_of(self, rank: int) -> str:
        """The name of that group; `self` for a group of one rank."""
        groups = self.group_set_of(rank)
        return ALONE if groups is None or len(groups.rows.row_of(rank)) == 1 else groups.names[0]

    def rows(self, world_size: int) -> Iterator[tuple[int, ...]]:
        """The groups of all ranks, each once."""
        covered = sorted((groups.rows for groups in self.group_sets), key=lambda rows: rows.span.start)
        rank = 0
        for rows in covered:
            yield from ((other,) for other in range(rank, rows.span.start))
            yield from rows.rows()
            rank = rows.span.stop
        yield from ((other,) for other in range(rank, world_size))


@dataclass(frozen=True)
class Schedule:
    """All rounds of a world."""

    world_size: int
    rounds: tuple[Round, ...]
    on_world: tuple[GroupSet, ...]
    """Rows that are the whole world: the world's group, which exists before any round."""

    def __len__(self) -> int:
        return len(self.rounds)

    def rows(self) -> Iterator[list[tuple[int, ...]]]:
        """The groups that each round creates, of all ranks. A rank is alone in one group at most, in its first such round."""
        alone: set[int] = set()
        for round_ in self.rounds:
            found = [row for row in round_.rows(self.world_size) if len(row) > 1 or row[0] not in alone]
            alone.update(row[0] for row in found if len(row) == 1)
            yield found

    def makes(self, rows: RowSet, communicator: GroupOptions | None = None) -> bool:
        """Whether each rank of the rows has its group after the last round; for rows of one rank, a group of that rank only.

        Args:
            rows: of any span.
            communicator: the options with which the groups are created; default: any.
        """
        if rows.row_size > 1:
            made = [groups for round_ in self.rounds for groups in round_.group_sets]
            return any(groups.rows == rows and communicator in (None, groups.options) for groups in (*made, *self.on_world))
        spans = [{groups.rows.span for groups in round_.group_sets} for round_ in self.rounds]
        return bool(spans) and all(
            any(span not in busy for busy in spans)
            for span in set().union(*spans)
            if span.start < rows.span.stop and rows.span.start < span.stop
        )

    def __str__(self) -> str:
        lines = [f"{len(self)} rounds for {self.world_size} ranks"]
        for number, round_ in enumerate(self.rounds):
            sets = "; ".join(
                f"{', '.join(groups.names)} ({groups.rows.row_count} groups of {groups.rows.row_size})"
                for groups in round_.group_sets
            )
            lines.append(f"{number}: {sets or ALONE}")
        return "\n".join(lines)

    def as_list(self) -> list[list[dict[str, Any]]]:
        """The JSON form: the groups that are created in each round, and their sizes; `self` if each rank is alone."""
        alone = [{"names": [ALONE], "groups": self.world_size, "group_size": 1}]
        return [
            [
                {"names": list(groups.names), "groups": groups.rows.row_count, "group_size": groups.rows.row_size}
                for groups in round_.group_sets
            ]
            or alone
            for round_ in self.rounds
        ]


def schedule(topology: Topology, options: Mapping[str, GroupOptions] | None = None) -> Schedule:
    """The rounds for a topology: its distinct row sets, those of disjoint spans at the same time.

    Ranks with an axis of size one need a group of that rank only: any round in which they have no row creates it; if there is
    none, a round is added. Rows that are the whole world use the world's group.

    Args:
        topology: the world.
        options: by module; others have the defaults.

    Raises:
        TopologyError: the options name an unknown module or axis.
    """
    options = options or {}
    for module in options:
        if module not in topology.grids:
            raise TopologyError(f"modules.{module}", f"no such module; there are {', '.join(topology.grids)}")
    whole = RowSet(range(topology.world_size), ((1, topology.world_size),))
    by_span: dict[range, dict[tuple[RowSet, GroupOptions], list[str]]] = {}
    on_world: dict[tuple[RowSet, GroupOptions], list[str]] = {}
    for module, grid in topology.grids.items():
        own = options.get(module, GroupOptions())
        for name, rows in _row_sets(topology, module, own):
            key = (rows, GroupOptions() if rows.row_size == 1 else own.communicator)
            home = on_world if key == (whole, GroupOptions()) else by_span.setdefault(grid.ranks, {})
            names = home.setdefault(key, [])
            if name not in names:
                names.append(name)
    columns = [[_group_set(key, names) for key, names in found.items()] for found in by_span.values()]
    rounds = []
    for step in zip_longest(*columns):
        rounds.append(Round(tuple(groups for groups in step if groups is not None and groups.rows.row_size > 1)))
    return Schedule(topology.world_size, tuple(rounds), tuple(_group_set(key, names) for key, names in on_world.items()))


def _row_sets(topology: Topology, module: str, options: GroupOptions) -> Iterator[tuple[str, RowSet]]:
    """The module's rows with their names; rows of one rank, which are all equal, last."""
    of_one = (ALONE, RowSet.of(topology.grids[module], ()))
    alone = of_one if options.families == MEGATRON else None  # for Megatron's fields of axes that the module does not have
    for axes in families_of(topology, module, options):
        grid, own = locate(topology, module, axes)
        rows = RowSet.of(grid, own)
        if rows.row_size == 1:
            alone = of_one
        else:
            yield f"{module}.{'_'.join(axis for axis in own if grid.axis_size(axis) > 1)}", rows
    if has_embedding_groups(module, options):
        rows = RowSet.ends_of(topology.grids[module], "pp")
        if rows.row_size == 1:
            alone = of_one
        else:
            yield f"{module}.{EMBEDDING}", rows
    if alone is not None:
        yield alone


def _group_set(key: tuple[RowSet, GroupOptions], names: list[str]) -> GroupSet:
    return GroupSet(*key, tuple(names))
