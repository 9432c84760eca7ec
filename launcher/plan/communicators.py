"""NCCL's communicators in a plan, and an estimate of the GPU memory that those of bridges take. Pure arithmetic."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from launcher.plan.launch_plan import LaunchPlan
from mimo_role.groups.options import GroupOptions, lean
from mimo_role.groups.rounds import Schedule
from mimo_role.resharding.message_groups import MessageGroup, message_groups
from mimo_role.topology.lanes import lane_count
from mimo_role.topology.topology import Topology

_RECEIVE_MIB, _SEND_MIB = 10, 2
"""Buffers for each CUDA block and peer from which a rank receives, and to which it sends (NVIDIA/nccl#1685)."""

_MOST_PARTS = 1 << 17

FORMULA = (
    f"bridge_mib: max_ctas x ({_RECEIVE_MIB} MiB for each peer received from + {_SEND_MIB} MiB for each peer sent to), summed "
    "over the communicators of bridges, for peers connected by NVLink (NVIDIA/nccl#1685)"
)


@dataclass(frozen=True)
class RankCommunicators:
    """What the first rank of a stage has under NCCL."""

    module: str
    stage: int
    rank: int
    communicators: int
    """The world's, those of its modules, and those of bridges."""
    of_bridges: int
    bridge_mib: int | None
    """An estimate of GPU memory, see `FORMULA`; `None` where ranks exchange so many parts that to list them takes seconds."""


def as_dict(plan: LaunchPlan, schedule: Schedule) -> dict[str, Any]:
    """The JSON form: the first rank of each stage, and how memory is estimated."""
    return {"formula": FORMULA, "stages": [asdict(found) for found in _of_stages(plan, schedule)]}


def _of_stages(plan: LaunchPlan, schedule: Schedule) -> Iterator[RankCommunicators]:
    groups = list(message_groups(plan.topology))
    of_ranks: dict[int, tuple[int, int, int | None]] = {}
    for module, grid in plan.topology.grids.items():
        for stage in range(grid.axis_size("pp")):
            rank = grid.rank_at({"pp": stage})
            if rank not in of_ranks:  # modules that share ranks have the same first rank
                of_ranks[rank] = _of_rank(plan, schedule, groups, rank)
            yield RankCommunicators(module, stage, rank, *of_ranks[rank])


def _of_rank(plan: LaunchPlan, schedule: Schedule, groups: Sequence[MessageGroup], rank: int) -> tuple[int, int, int | None]:
    """All communicators of a rank, those of bridges, and the memory of these."""
    own = [group for group in groups if rank in group.ranks]
    of_modules = 1 + sum(round_.group_set_of(rank) is not None for round_ in schedule.rounds)
    mib = sum(_mib(plan, group, rank) for group in own) if _parts(plan.topology) <= _MOST_PARTS else None
    return 1 + of_modules + len(own), len(own), mib


def _parts(topology: Topology) -> int:
    """A bound of the parts that one rank exchanges in a batch."""
    grids = topology.grids.values()
    sizes = {axis: max(grid.axis_size(axis) for grid in grids) for axis in ("tp", "cp")}
    lanes = [lane_count(grid) for grid in grids]
    of_lane = max(math.lcm(one, other) // min(one, other) for one in lanes for other in lanes)
    return int(of_lane * (sizes["tp"] * sizes["cp"]) ** 2)


def _mib(plan: LaunchPlan, group: MessageGroup, rank: int) -> int:
    ctas = lean(plan.groups.get(group.module, GroupOptions())).nccl.max_ctas
    assert ctas is not None, "lean options set it"
    pairs = group.pairs_of(plan.topology, rank)
    receives = sum(receiver == rank for _, receiver in pairs)
    return ctas * (receives * _RECEIVE_MIB + (len(pairs) - receives) * _SEND_MIB)
