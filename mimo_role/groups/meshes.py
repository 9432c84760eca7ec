"""Device meshes over groups that exist."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from mimo_role.errors import AxisError
from mimo_role.groups.families import locate
from mimo_role.topology.topology import Topology

Dimension = str | tuple[str, ...]
"""An axis, or several that form one dimension."""


def dimensions_of(topology: Topology, module: str, axes: tuple[Dimension, ...]) -> tuple[tuple[str, ...], ...]:
    """The axes of each dimension of a mesh, from the arguments of `RoleContext.mesh`.

    Raises:
        AxisError: an argument is neither an axis nor a tuple of axes.
    """
    for axis in axes:
        if axis == () or not isinstance(axis, str | tuple):
            raise AxisError(f"a dimension of a mesh is an axis or a tuple of axes, not {axis!r}")
    if not axes:
        return tuple((axis,) for axis in reversed(topology.grids[module].dim_names))
    if any(isinstance(axis, tuple) for axis in axes):
        return tuple((axis,) if isinstance(axis, str) else axis for axis in axes)
    return (tuple(map(str, axes)),)


def mesh_over(
    topology: Topology,
    module: str,
    rank: int,
    dimensions: tuple[tuple[str, ...], ...],
    group_of: Callable[..., dist.ProcessGroup],
    device_type: str,
) -> DeviceMesh:
    """The rank's row along all axes of the dimensions as a mesh over its groups, named `dp_cp`, `tp`; no group is created.

    Within a dimension ranks ascend, whatever the order of its axes, as they do in the group.

    Raises:
        AxisError: there is no such axis or group, an axis is in two dimensions, or no grid has them all.
    """
    grid, own = locate(topology, module, tuple(axis for axes in dimensions for axis in axes))
    first = grid.row_of(rank, own)[0]
    ranks = torch.tensor(first)
    for axes in dimensions:
        row = torch.tensor(grid.row_of(first, locate(topology, module, axes)[1]))
        ranks = ranks.unsqueeze(-1) + (row - first)
    names = tuple("_".join(axes) for axes in dimensions)
    return DeviceMesh.from_group(
        [group_of(module, *axes) for axes in dimensions], device_type, mesh=ranks, mesh_dim_names=names
    )
