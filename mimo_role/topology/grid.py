"""RankGrid: ranks, coordinates along named axes, and rows, by arithmetic."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mimo_role.errors import AxisError, RankNotInGridError


@dataclass(frozen=True, init=False)
class RankGrid:
    """The ranks of one module, `rank_offset` to `rank_offset + size - 1`, arranged along named axes.

    Axes are listed fastest first, as in Megatron-Core's `HyperCommGrid`: `shape=[2, 3], dim_names=["tp", "dp"]` puts
    ranks 0 and 1 in one tp row and ranks 0, 2 and 4 in one dp row. No ranks are enumerated unless requested.
    """

    shape: tuple[int, ...]
    dim_names: tuple[str, ...]
    rank_offset: int
    size: int

    def __init__(self, shape: Sequence[int], dim_names: Sequence[str], rank_offset: int = 0) -> None:
        """
        Raises:
            ValueError: shape and names differ in length, a name is duplicate, a size is not positive, or the offset is
                negative.
        """
        if len(shape) != len(dim_names):
            raise ValueError(f"len(shape) {len(shape)} != len(dim_names) {len(dim_names)}")
        if len(set(dim_names)) != len(dim_names):
            raise ValueError(f"dim_names {list(dim_names)} has an axis twice")
        if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in shape):
            raise ValueError(f"shape {list(shape)} has a size that is not a positive integer")
        if rank_offset < 0:
            raise ValueError(f"rank_offset {rank_offset} is negative")
        object.__setattr__(self, "shape", tuple(shape))
        object.__setattr__(self, "dim_names", tuple(dim_names))
        object.__setattr__(self, "rank_offset", rank_offset)
        object.__setattr__(self, "size", math.prod(shape))

    @property
    def ranks(self) -> range:
        """The grid's ranks, in order."""
        return range(self.rank_offset, self.rank_offset + self.size)

    def __contains__(self, rank: object) -> bool:
        return rank in self.ranks

    def axis_size(self, axis: str) -> int:
        """The number of ranks along one axis."""
        self._check_axes([axis])
        return self.shape[self.dim_names.index(axis)]

    def stride(self, axis: str) -> int:
        """The step in rank from one position along the axis to the next."""
        self._check_axes([axis])
        return math.prod(self.shape[: self.dim_names.index(axis)])

    def coords(self, rank: int) -> dict[str, int]:
        """The rank's coordinate along every axis, fastest axis first.

        Raises:
            RankNotInGridError: the rank is not in the grid.
        """
        rest = self._index(rank)
        coords = {}
        for name, size in zip(self.dim_names, self.shape, strict=True):
            rest, coords[name] = divmod(rest, size)
        return coords

    def rank_at(self, coords: Mapping[str, int]) -> int:
        """The rank at the coordinates; 0 for axes that are not given.

        Raises:
            AxisError: an unknown axis.
            ValueError: a coordinate outside its axis.
        """
        self._check_axes(coords)
        index = 0
        for name, size, stride in self._axes():
            coordinate = coords.get(name, 0)
            if not 0 <= coordinate < size:
                raise ValueError(f"{name}={coordinate} is outside its axis of size {size}")
            index += coordinate * stride
        return self.rank_offset + index

    def row_of(self, rank: int, axes: Iterable[str]) -> tuple[int, ...]:
        """`rank` and those that differ from it only along `axes`, in ascending order."""
        wanted = self._check_axes(axes)
        coords = self.coords(rank)
        first = rank - sum(coords[name] * stride for name, _, stride in self._axes() if name in wanted)
        return self._row_from(first, wanted)

    def row_count(self, axes: Iterable[str]) -> int:
        """The number of rows along `axes`."""
        return self.size // self.row_size(axes)

    def row_size(self, axes: Iterable[str]) -> int:
        """The number of ranks of a row along `axes`."""
        wanted = self._check_axes(axes)
        return math.prod(size for name, size, _ in self._axes() if name in wanted)

    def row(self, axes: Iterable[str], index: int) -> tuple[int, ...]:
        """Row number `index` along `axes`; rows are numbered by their first rank.

        Raises:
            IndexError: there is no such row.
        """
        wanted = self._check_axes(axes)
        count = self.row_count(wanted)
        if not 0 <= index < count:
            raise IndexError(f"row {index} of {count} rows along {', '.join(wanted)}")
        first, rest = self.rank_offset, index
        for name, size, stride in self._axes():
            if name not in wanted:
                rest, coordinate = divmod(rest, size)
                first += coordinate * stride
        return self._row_from(first, wanted)

    def rows(self, axes: Iterable[str]) -> Iterator[tuple[int, ...]]:
        """All rows along `axes`, one at a time, as Megatron-Core's `get_rank_enum` lists them."""
        wanted = self._check_axes(axes)
        return (self.row(wanted, index) for index in range(self.row_count(wanted)))

    def _axes(self) -> Iterator[tuple[str, int, int]]:
        stride = 1
        for name, size in zip(self.dim_names, self.shape, strict=True):
            yield name, size, stride
            stride *= size

    def _row_from(self, first: int, axes: Sequence[str]) -> tuple[int, ...]:
        row = [first]
        for name, size, stride in self._axes():
            if name in axes:
                row = [rank + step * stride for step in range(size) for rank in row]
        return tuple(row)

    def _index(self, rank: int) -> int:
        if rank not in self.ranks:
            raise RankNotInGridError(f"rank {rank} is not among ranks {self.ranks.start}-{self.ranks.stop - 1}")
        return rank - self.rank_offset

    def _check_axes(self, axes: Iterable[str]) -> tuple[str, ...]:
        names = (axes,) if isinstance(axes, str) else tuple(axes)
        for name in names:
            if name not in self.dim_names:
                raise AxisError(f"no axis {name!r}; the grid has {', '.join(self.dim_names)}")
        if len(set(names)) != len(names):
            raise AxisError(f"duplicate axis: {', '.join(names)}")
        return names
