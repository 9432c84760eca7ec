"""The rows of a grid as a value: which ranks form a group."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mimo_role.topology.grid import RankGrid


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
        """All rows, each once, in the order of their first ranks; without ranks that are alone between the ends."""
        return (self.row_of(rank) for rank in self.span if self._offset_in_row(rank) == 0)

    def _offset_in_row(self, rank: int) -> int:
        index = rank - self.span.start
        return sum(index // stride % size * stride for stride, size in self.steps)

    def _whole_row(self, first: int) -> tuple[int, ...]:
        row = [first]
        for stride, size in self.steps:
            row = [other + step * stride for step in range(size) for other in row]
        return tuple(row)
