"""The process groups of all grids, made by the schedule of rounds."""

import logging
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from mimo_role.errors import AxisError
from mimo_role.grid import RankGrid
from mimo_role.rounds import Round, RowSet, schedule
from mimo_role.topology import Topology

logger = logging.getLogger(__name__)


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
