"""Assigns ranks to the nodes of pools."""

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.config.schema import PoolConfig
from launcher.errors import PlacementError
from mimo_role import Topology

LOCAL_POOL = "local"
"""The pool of a config without pools: this machine."""


@dataclass(frozen=True)
class Node:
    """A host of the plan and the ranks that it runs."""

    name: str
    pool: str
    first_rank: int
    procs: int

    @property
    def ranks(self) -> range:
        """Its ranks, in the order of their local ranks."""
        return range(self.first_rank, self.first_rank + self.procs)


def place(topology: Topology, pools: Mapping[str, PoolConfig], pool_of: Mapping[str, str | None]) -> list[Node]:
    """Put ranks on nodes in rank order, each module on its pool.

    Modules without a pool fill the pools in their order, except for nodes that later modules with a pool need.

    Raises:
        PlacementError: a pool is too small, or modules that share ranks name different pools.
    """
    free = {name: pool.nodes for name, pool in pools.items()}
    nodes: list[Node] = []
    spans = [(span, modules, _common_pool(modules, pool_of)) for span, modules in _spans(topology).items()]
    for at, (span, modules, wanted) in enumerate(spans):
        promised = _promised(pools, [(later, pool) for later, _, pool in spans[at + 1 :]])
        rank = span.start
        while rank < span.stop:
            last = nodes[-1] if nodes else None
            room = pools[last.pool].procs_per_node - last.procs if last is not None else 0
            if last is not None and room and wanted in (None, last.pool):
                nodes.pop()
                taken = min(room, span.stop - rank)
                nodes.append(Node(last.name, last.pool, last.first_rank, last.procs + taken))
            else:
                pool = wanted or _next_pool(free, promised)
                if pool is None or not free[pool]:
                    raise _too_small(topology, pools, modules, wanted, span)
                free[pool] -= 1
                taken = min(pools[pool].procs_per_node, span.stop - rank)
                nodes.append(Node(f"node{len(nodes)}", pool, rank, taken))
            rank += taken
    return nodes


def _spans(topology: Topology) -> dict[range, list[str]]:
    spans: dict[range, list[str]] = {}
    for name, grid in sorted(topology.grids.items(), key=lambda item: item[1].rank_offset):
        spans.setdefault(grid.ranks, []).append(name)
    return spans


def _promised(pools: Mapping[str, PoolConfig], later: list[tuple[range, str | None]]) -> dict[str, int]:
    """How many nodes of each pool the later modules need there."""
    ranks = dict.fromkeys(pools, 0)
    for span, pool in later:
        if pool is not None:
            ranks[pool] += len(span)
    return {name: -(-count // pools[name].procs_per_node) for name, count in ranks.items()}


def _next_pool(free: Mapping[str, int], promised: Mapping[str, int]) -> str | None:
    unpromised = (name for name, left in free.items() if left > promised[name])
    return next(unpromised, None) or next((name for name, left in free.items() if left), None)


def _common_pool(modules: list[str], pool_of: Mapping[str, str | None]) -> str | None:
    named = {name: pool for name in modules if (pool := pool_of[name]) is not None}
    if len(set(named.values())) > 1:
        each = ", ".join(f"modules.{name}.pool={pool}" for name, pool in named.items())
        raise PlacementError(f"{each}: modules on the same ranks must be on the same pool")
    return next(iter(named.values()), None)


def _too_small(
    topology: Topology, pools: Mapping[str, PoolConfig], modules: list[str], wanted: str | None, span: range
) -> PlacementError:
    shown = [wanted] if wanted else list(pools)
    slots = " + ".join(f"{pools[name].nodes} x {pools[name].procs_per_node} on pool {name}" for name in shown)
    return PlacementError(
        f"modules.{modules[0]}: ranks {span.start}-{span.stop - 1} of {topology.world_size} do not fit: there are {slots}; "
        "add nodes, or make the modules smaller"
    )
