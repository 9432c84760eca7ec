"""Warnings about a placement that works but wastes nodes or bandwidth."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from launcher.config.schema import PoolConfig
from launcher.formatting import counted, listed, runs_of
from launcher.plan.placement import Node
from mimo_role import RankGrid, Topology
from mimo_role.resharding.connections import usual_links

HEAVY_AXES = ("tp", "cp")
"""Axes whose ranks communicate in every layer: their rows should be on one node."""


@dataclass(frozen=True)
class PlanWarning:
    """One warning about a plan."""

    code: str
    message: str
    about: str = ""
    """The group, bridge or module whose traffic crosses nodes or pools, as a rehearsal names it: `language.tp`."""


def review(topology: Topology, nodes: Sequence[Node], pools: Mapping[str, PoolConfig]) -> list[PlanWarning]:
    """Find nodes and slots without a rank, and rows, modules and bridges that cross nodes or pools."""
    layout = _Layout(nodes)
    return [
        *_idle(nodes, pools),
        *_too_few_gpus(nodes, pools),
        *(warning for name, grid in topology.grids.items() for warning in _torn_rows(name, grid, layout)),
        *(warning for name, grid in topology.grids.items() for warning in _split_module(name, grid, layout)),
        *_bridges_between_pools(topology, layout),
    ]


def gpus_per_node(pool: PoolConfig) -> int | None:
    """The GPUs per node that a pool's sbatch options request; `None` if they request none.

    The forms are those of sbatch(1), `--gres` and `--gpus-per-node`: `gpu:4`, `gpu:h100:4`,
    `gpu:4,nvme:1`, `h100:4`, `4`.
    """
    counts = [
        *re.findall(r"(?:^|,)(?:gres/)?gpu(?::[^:,()]+)??(?::(\d+))?(?=[,(]|$)", str(pool.slurm.get("gres") or ""), re.ASCII)
    ]
    counts += re.findall(r"(?:^|,)(?:[^:,]+:)?(\d+)(?=,|$)", str(pool.slurm.get("gpus-per-node") or ""), re.ASCII)
    return sum(int(count or 1) for count in counts) if counts else None


class _Layout:
    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._first_ranks = [node.first_rank for node in nodes]

    def node_of(self, rank: int) -> Node:
        return self._nodes[bisect_right(self._first_ranks, rank) - 1]

    def pools_of(self, ranks: Sequence[int]) -> dict[str, int]:
        """How many of the ranks are on each pool."""
        counts: dict[str, int] = {}
        for rank in ranks:
            pool = self.node_of(rank).pool
            counts[pool] = counts.get(pool, 0) + 1
        return counts


def _idle(nodes: Sequence[Node], pools: Mapping[str, PoolConfig]) -> Iterator[PlanWarning]:
    procs = _procs_by_pool(nodes)
    for name, pool in pools.items():
        used = procs.get(name, [])
        if len(used) < pool.nodes:
            unused = pool.nodes - len(used)
            yield PlanWarning("unused_nodes", f"pool {name}: {unused} of {pool.nodes} nodes get no rank")
        slots = len(used) * pool.procs_per_node
        if idle := slots - sum(used):
            yield PlanWarning("idle_slots", f"pool {name}: {idle} of the {slots} slots on its used nodes get no rank")


def _too_few_gpus(nodes: Sequence[Node], pools: Mapping[str, PoolConfig]) -> Iterator[PlanWarning]:
    procs = _procs_by_pool(nodes)
    for name, pool in pools.items():
        most = max(procs.get(name, [0]))
        gpus = gpus_per_node(pool)
        if gpus is not None and gpus < most:
            yield PlanWarning(
                "fewer_gpus_than_ranks", f"pools.{name}: {most} ranks on a node, but slurm requests {gpus} GPUs per node"
            )


def _procs_by_pool(nodes: Sequence[Node]) -> dict[str, list[int]]:
    """How many ranks each used node of a pool runs, by pool."""
    procs: dict[str, list[int]] = {}
    for node in nodes:
        procs.setdefault(node.pool, []).append(node.procs)
    return procs


def _torn_rows(name: str, grid: RankGrid, layout: _Layout) -> Iterator[PlanWarning]:
    for axis in HEAVY_AXES:
        size = grid.axis_size(axis)
        if size == 1:
            continue
        torn = [row for row in grid.rows(axis) if layout.node_of(row[0]) is not layout.node_of(row[-1])]
        if torn:
            first, last = (layout.node_of(rank).name for rank in (torn[0][0], torn[0][-1]))
            yield PlanWarning(
                f"{axis}_across_nodes",
                f"modules.{name}.{axis}={size}: {len(torn)} of {grid.row_count(axis)} {axis} rows cross nodes, the first "
                f"(ranks {listed(runs_of(torn[0]), 4)}) from {first} to {last}; these ranks communicate in every layer",
                about=f"{name}.{axis}",
            )


def _split_module(name: str, grid: RankGrid, layout: _Layout) -> Iterator[PlanWarning]:
    counts = layout.pools_of(grid.ranks)
    if len(counts) > 1:
        shares = ", ".join(f"{count} on {pool}" for pool, count in counts.items())
        yield PlanWarning(
            "module_across_pools",
            f"modules.{name}: its {grid.size} ranks lie on {len(counts)} pools ({shares}); modules.{name}.pool puts it on one",
            about=name,
        )


def _bridges_between_pools(topology: Topology, layout: _Layout) -> Iterator[PlanWarning]:
    for link in usual_links(topology):
        source, target = link
        if link.is_within_module:
            continue
        senders, receivers = (
            [rank for rank in topology.grids[at.module].ranks if topology.grids[at.module].coords(rank)["pp"] == at.stage]
            for at in (source, target)
        )
        origin, to = layout.pools_of(senders), layout.pools_of(receivers)
        if set(origin) | set(to) != set(origin) & set(to):
            yield PlanWarning(
                "bridge_across_pools",
                f"bridge {source.module} -> {target.module}: {counted(len(senders), 'rank')} on {' and '.join(origin)} to "
                f"{counted(len(receivers), 'rank')} on {' and '.join(to)}; all of its data crosses between the pools",
                about=str(link),
            )
