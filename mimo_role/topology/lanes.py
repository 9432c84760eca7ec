"""The lanes of a grid: its data-parallel replicas, by arithmetic.

A lane is the ranks that have the same samples. Generalized tensor parallelism divides weights among ranks with different
samples, so lanes lie along `gtp_remat` and `dp` together.
"""

from typing import NamedTuple

from mimo_role.topology.grid import RankGrid

LANE_AXES = ("gtp_remat", "dp")
"""The axes along which ranks have different samples."""


class Lane(NamedTuple):
    """One lane of a module."""

    number: int
    """Lanes are numbered by their first ranks."""
    lanes: int
    """The number of lanes of the module."""


def lane_count(grid: RankGrid) -> int:
    """The number of lanes."""
    return grid.row_size(_axes(grid))


def lane_of(grid: RankGrid, rank: int) -> Lane:
    """The lane of one of the grid's ranks.

    Raises:
        RankNotInGridError: the rank is not in the grid.
    """
    coords, number, lanes = grid.coords(rank), 0, 1
    for axis in _axes(grid):
        number += coords[axis] * lanes
        lanes *= grid.axis_size(axis)
    return Lane(number, lanes)


def lane_coords(grid: RankGrid, lane: int) -> dict[str, int]:
    """A lane's coordinates along the axes of lanes."""
    coords = {}
    for axis in _axes(grid):
        lane, coords[axis] = divmod(lane, grid.axis_size(axis))
    return coords


def _axes(grid: RankGrid) -> tuple[str, ...]:
    """The grid's axes of lanes, fastest first."""
    return tuple(axis for axis in grid.dim_names if axis in LANE_AXES)
