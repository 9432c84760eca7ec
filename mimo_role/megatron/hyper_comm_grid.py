"""HyperCommGrid: a grid of ranks with process groups, with Megatron-Core's interface.

The private names that Megatron-Core's own code and examples use are here as well, so that this module can take the place of
`megatron.core.hyper_comm_grid`: `_is_process_group_member`, `_views` with their fields, `_pgs`, `_gen_rank_enum` and
`_order_dims_for`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from operator import index
from typing import Any

import torch.distributed as dist

from mimo_role.errors import AxisError, GridError, WorldSizeError
from mimo_role.groups.creation import CreatedGroup, free, make_rows
from mimo_role.groups.names import CountedGroup
from mimo_role.groups.options import Communicator
from mimo_role.groups.process_groups import ProcessGroups, shared
from mimo_role.groups.row_set import RowSet
from mimo_role.host import environ
from mimo_role.topology.grid import RankGrid

BASE_VIEW = "base"
EXPERT_VIEW = "expert"

_Key = str | tuple[str, tuple[str, ...]]
"""Some axes, slowest first: those of the grid joined by `-`, those of another view behind its name."""


@dataclass(frozen=True)
class RankView:
    """One factorization of a grid's ranks."""

    name: str
    shape: list[int]
    dim_names: list[str]
    shared_dims: list[str]
    """Axes whose groups are those of the grid."""
    grid: RankGrid


class HyperCommGrid:
    """The ranks `rank_offset` to `rank_offset + size - 1`, arranged along named axes, fastest first.

    The interface is that of `megatron.core.hyper_comm_grid.HyperCommGrid`: `create_pg` creates groups and `get_pg` returns
    them. If a `RoleContext` has groups of the same rows, `create_pg` uses them and creates none; otherwise it is collective
    over the world, in one round. A context's own grids (`module_to_grid_map`) have all of its groups.

    Attributes:
        shape: the sizes of the axes.
        dim_names: their names.
        rank_offset: the first rank.
        size: the number of ranks.
        backend: of the groups; `None` for the world's.
    """

    def __init__(
        self, shape: Sequence[int], dim_names: Sequence[str], rank_offset: int = 0, backend: str | None = None
    ) -> None:
        """
        Raises:
            GridError: (a ValueError) shape and names differ in length, an axis is duplicate, a size is not positive, or
                the offset is negative.
            WorldSizeError: (a RuntimeError) the grid does not fit into the world from the offset on, or the world's size is
                unknown.
        """
        _check_lengths(shape, dim_names)
        world_size = _world_size()
        if rank_offset < 0:
            raise GridError(f"rank_offset must be non-negative, got {rank_offset}")
        if math.prod(shape) > world_size - rank_offset:
            raise WorldSizeError(
                f"Grid shape {list(shape)} is over sized with world size {world_size} and rank offset {rank_offset}"
            )
        self._set_base(_rank_grid("Grid", shape, dim_names, rank_offset), backend)

    def _set_base(self, grid: RankGrid, backend: str | None) -> None:
        self.shape = list(grid.shape)
        self.dim_names = list(grid.dim_names)
        self.rank_offset = grid.rank_offset
        self.size = grid.size
        self.backend = backend
        self._views = {BASE_VIEW: _view(BASE_VIEW, grid, ())}
        self._pgs: dict[_Key, dist.ProcessGroup | None] = {}
        self._own: list[CreatedGroup] = []
        self._context_groups: ProcessGroups | None = None
        self._communicator_of: Callable[[tuple[str, ...]], Communicator | None] = lambda _: None

    @classmethod
    def over(
        cls,
        grid: RankGrid,
        experts: RankGrid | None,
        groups: ProcessGroups,
        communicator_of: Callable[[tuple[str, ...]], Communicator],
    ) -> "HyperCommGrid":
        """A module's grid of a context, whose groups exist already; the experts' grid is the view `expert`.

        Args:
            grid: the module's.
            experts: the grid of the module's experts, see `expert_grid_of`.
            groups: the context's.
            communicator_of: how the module's group along some axes was created.
        """
        made = cls.__new__(cls)
        made._set_base(grid, None)
        made._context_groups = groups
        made._communicator_of = communicator_of
        if experts is not None:
            made.register_view(EXPERT_VIEW, experts.shape, experts.dim_names, shared_axes(grid, experts))
        return made

    def __repr__(self) -> str:
        return f"HyperCommGrid(shape={self.shape}, dim_names={self.dim_names}, rank_offset={self.rank_offset})"

    def register_view(
        self, name: str, shape: Sequence[int], dim_names: Sequence[str], shared_dims: Sequence[str] | None = None
    ) -> None:
        """Factor the grid's ranks a second time, for example along the axes of experts.

        Args:
            name: for `create_pg`, `get_pg` and `get_rank_enum`.
            shape: the sizes of its axes; their product is the grid's size.
            dim_names: their names, fastest first.
            shared_dims: axes that are the same in both: their groups are those of the grid.

        Raises:
            GridError: (a ValueError) an argument that does not fit the grid.
        """
        if name in self._views:
            raise GridError(f"View {name!r} is already registered")
        _check_lengths(shape, dim_names)
        view = _rank_grid(f"View {name!r}", shape, dim_names, self.rank_offset)
        if view.size != self.size:
            raise GridError(f"View {name!r} shape {list(shape)} has size {view.size}, but the grid size is {self.size}")
        shared_dims = tuple(shared_dims or ())
        if len(set(shared_dims)) != len(shared_dims):
            raise GridError(f"View {name!r} has duplicate shared_dims: {list(shared_dims)}")
        for axis in shared_dims:
            for place, known in (("base view", self.dim_names), ("view's dim_names", list(dim_names))):
                if axis not in known:
                    raise GridError(f"Shared dim {axis!r} of view {name!r} is not in the {place} {known}")
        for axes in (*((axis,) for axis in shared_dims), shared_dims):
            self._check_same_rows(name, view, axes)
        self._views[name] = _view(name, view, shared_dims)

    def _check_same_rows(self, name: str, view: RankGrid, axes: tuple[str, ...]) -> None:
        base = self._views[BASE_VIEW].grid
        if RowSet.of(base, axes) == RowSet.of(view, axes):
            return
        what = f"Shared dim {axes[0]!r} has" if len(axes) == 1 else f"Shared dims {list(axes)} have"
        rows = f"{list(base.row(axes, 0))} in the base, {list(view.row(axes, 0))} in view {name!r}"
        raise GridError(f"{what} different membership across views: the first row has ranks {rows}")

    def get_rank_enum(self, dims: str | Sequence[str], view: str | None = None) -> list[list[int]]:
        """All rows: lists of ranks, ascending, that differ only along `dims`.

        Raises:
            AxisError: (a KeyError) no such view.
            GridError: (a ValueError) no such axis.
        """
        _, grid, ordered = self._resolve(dims, view)
        return [list(row) for row in grid.rows(ordered)]

    def _gen_rank_enum(self, dims: Sequence[str]) -> list[list[int]]:
        """The base view's rows, each enumerated with the last of `dims` fastest, whatever their order."""
        grid = self._views[BASE_VIEW].grid
        self._resolve(list(dims), None)
        found = []
        for first, *_ in grid.rows(dims):
            row = [first]
            for axis in dims:
                row = [rank + step * grid.stride(axis) for rank in row for step in range(grid.axis_size(axis))]
            found.append(row)
        return found

    def _order_dims_for(self, dim_names: Sequence[str], dims: str | Sequence[str]) -> tuple[list[str], str]:
        """Some of the axes `dim_names`, slowest first, as a list and joined by `-`."""
        wanted = {dims} if isinstance(dims, str) else set(dims)
        ordered = [axis for axis in reversed(dim_names) if axis in wanted]
        return ordered, "-".join(ordered)

    def create_pg(
        self,
        dims: str | Sequence[str],
        view: str | None = None,
        *,
        timeout: timedelta | None = None,
        pg_options: Any = None,
        group_desc: str | None = None,
    ) -> dist.ProcessGroup | None:
        """Create the groups of all rows along `dims`, or use a context's. Collective over the world.

        A context's groups keep their names; with `timeout` or `pg_options` groups are always created.

        Returns:
            This rank's group; `None` for a rank outside the grid.

        Raises:
            AxisError: (a KeyError) they have been created before, or there is no such view.
            GridError: (a ValueError) no such axis.
        """
        key, grid, ordered = self._resolve(dims, view)
        if key in self._pgs:
            raise AxisError(
                f"Process group {dims}{_of_view(key)} has already been created; use get_pg, since its options may differ"
            )
        rows, rank = RowSet.of(grid, ordered), dist.get_rank()
        inside = rank in rows.span
        groups = shared() if (timeout, pg_options) == (None, None) and self.backend in (None, dist.get_backend()) else None
        communicator = self._communicator(ordered)
        if groups is not None and groups.schedule.makes(rows, communicator):
            self._pgs[key] = groups.find(rows, communicator) if inside else None
            return self._pgs[key]
        group = make_rows(
            rows, rank, timeout=timeout, backend=self.backend, pg_options=pg_options, group_desc=group_desc or "_".join(ordered)
        )
        self._own.append(group)
        self._pgs[key] = None if isinstance(group, CountedGroup) else group
        return self._pgs[key]

    def get_pg(self, dims: str | Sequence[str], view: str | None = None) -> dist.ProcessGroup | None:
        """This rank's group along `dims`, or `None` for a rank outside the grid.

        Raises:
            AxisError: (a KeyError) it has not been created, or there is no such view.
            GridError: (a ValueError) no such axis.
        """
        key, grid, ordered = self._resolve(dims, view)
        if key in self._pgs:
            return self._pgs[key]
        rows, communicator = RowSet.of(grid, ordered), self._communicator(ordered)
        if self._context_groups is not None and self._context_groups.schedule.makes(rows, communicator):
            return self._context_groups.find(rows, communicator) if self.is_current_rank_in_grid() else None
        raise AxisError(f"Process group for {'-'.join(ordered)}{_of_view(key)} hasn't been created. Call create_pg first.")

    def is_current_rank_in_grid(self) -> bool:
        """Whether this process's rank is one of the grid's."""
        return dist.get_rank() in self._views[BASE_VIEW].grid

    def destroy(self) -> None:
        """Destroy each group that this grid has created, once, and forget the others. A context destroys its own."""
        own, self._own = self._own, []
        self._pgs.clear()
        for group in own:
            free(group)

    def _communicator(self, axes: tuple[str, ...]) -> Communicator | None:
        """How a context's group of the same rows was created; `None`, which is any, for axes of a script's own view."""
        try:
            return self._communicator_of(axes)
        except AxisError:
            return None

    def _resolve(self, dims: str | Sequence[str], view: str | None) -> tuple[_Key, RankGrid, tuple[str, ...]]:
        """The key of the groups along `dims`, the grid that enumerates them, and `dims` with the slowest axis first."""
        name = BASE_VIEW if view is None else view
        if name not in self._views:
            raise AxisError(f"View {name!r} is not registered. Registered views: {sorted(self._views)}")
        factors, base = self._views[name], self._views[BASE_VIEW]
        wanted = (dims,) if isinstance(dims, str) else tuple(dims)
        for axis in wanted:
            if axis not in factors.dim_names:
                raise GridError(f"{axis!r} is not in view {name!r} with dim_names {factors.dim_names}")
        if len(set(wanted)) != len(wanted):
            raise GridError(f"duplicate axis: {list(wanted)}")
        if set(wanted) <= set(factors.shared_dims):
            factors = base
        ordered, joined = self._order_dims_for(factors.dim_names, wanted)
        return joined if factors is base else (name, tuple(ordered)), factors.grid, tuple(ordered)


def shared_axes(grid: RankGrid, experts: RankGrid) -> list[str]:
    """The axes that a module's grid and its experts' have in common; `Topology` checks that their rows are the same."""
    return [axis for axis in experts.dim_names if axis in grid.dim_names]


def _check_lengths(shape: Sequence[int], dim_names: Sequence[str]) -> None:
    if len(shape) != len(dim_names):
        raise GridError(f"len(shape) {list(shape)} != len(dim_names) {list(dim_names)}")


def _rank_grid(what: str, shape: Sequence[int], dim_names: Sequence[str], rank_offset: int) -> RankGrid:
    if len(set(dim_names)) != len(dim_names):
        raise GridError(f"{what} has duplicate dim_names: {list(dim_names)}")
    try:
        return RankGrid([index(size) for size in shape], dim_names, rank_offset)
    except (TypeError, ValueError):
        raise GridError(f"{what} shape must be positive ints, got {list(shape)}") from None


def _world_size() -> int:
    found = environ.world_size()
    if found is None and dist.is_initialized():
        found = dist.get_world_size()
    if found is None:
        raise WorldSizeError(
            "Cannot determine world size: WORLD_SIZE is not set and torch.distributed is not initialized; do one of the two "
            "before HyperCommGrid is created"
        )
    return found


def _of_view(key: _Key) -> str:
    return "" if isinstance(key, str) else f" for view {key[0]!r}"


def _view(name: str, grid: RankGrid, shared_dims: Iterable[str]) -> RankView:
    return RankView(name, list(grid.shape), list(grid.dim_names), list(shared_dims), grid)


def _is_process_group_member(group: dist.ProcessGroup | None) -> bool:
    """Whether this rank belongs to a group: `None`, or torch's stand-in for a group of others, if not."""
    non_member: object = dist.GroupMember.NON_GROUP_MEMBER
    return group is not None and group is not non_member
