"""What a picture of a plan shows: modules with their stages, bridges, and nodes, equal ones together. Pure."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import NamedTuple, TypeAlias

from launcher.formatting import listed, runs_of, stage_of
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.placement import Node
from mimo_role import Topology
from mimo_role.resharding.connections import usual_links
from mimo_role.topology.lanes import lane_count

FULL_RANKS = 64
"""Above this many ranks, equal nodes beside each other are drawn as one."""
MOST_GROUPS = 60
"""Of more groups of nodes, those with the same modules are drawn as one; of still more, the first ones."""


class RoleCount(NamedTuple):
    """How many ranks of a node do the same."""

    modules: tuple[str, ...]
    name: str
    """As `language.pp1`."""
    ranks: int


class RankCell(NamedTuple):
    """One rank."""

    rank: int
    modules: tuple[str, ...]
    place: str
    """Its coordinates, as `pp1 tp0`; of several modules their names."""
    label: str
    """As `language.pp1.tp0`."""


_Contents: TypeAlias = tuple[RoleCount, ...]


@dataclass(frozen=True, kw_only=True)
class StageBox:
    """One pipeline stage of a module."""

    stage: int
    ranks: str
    """As `0-3`."""
    count: int


@dataclass(frozen=True, kw_only=True)
class ModuleBox:
    """One module: its sizes, and its stages from the first to the last."""

    name: str
    ranks: int
    axes: str
    """The axes longer than one, as `tp 2 · dp 4`."""
    stages: tuple[StageBox, ...]
    column: int
    """From 0; modules are in columns to the right of those whose outputs they take."""


@dataclass(frozen=True, kw_only=True)
class BridgeLine:
    """What leads from the last stage of a module to the first of another."""

    source: str
    target: str
    lanes: tuple[int, int]
    """Those of the source and of the target."""
    is_on_same_ranks: bool
    crosses_pools: bool


@dataclass(frozen=True, kw_only=True)
class NodeGroup:
    """One node, or several in a row whose ranks have the same roles."""

    nodes: tuple[Node, ...]
    contents: _Contents
    """What the ranks of each of them do."""
    cells: tuple[RankCell, ...] = ()
    """Of a node that is drawn with all of its ranks."""

    @property
    def first_rank(self) -> int:
        """Of its first node."""
        return self.nodes[0].first_rank

    @property
    def last_rank(self) -> int:
        """Of its last node."""
        return self.nodes[-1].ranks[-1]


@dataclass(frozen=True, kw_only=True)
class PoolBox:
    """A pool and its nodes that have ranks."""

    name: str
    nodes: int
    ranks: int
    groups: tuple[NodeGroup, ...]
    left_out: int = 0
    """Groups that are not drawn."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A plan, as it is drawn."""

    name: str
    kind: str
    world_size: int
    modules: tuple[ModuleBox, ...]
    bridges: tuple[BridgeLine, ...]
    pools: tuple[PoolBox, ...]
    is_folded: bool


def layout_of(plan: LaunchPlan) -> Layout:
    """The picture of a plan."""
    topology = plan.topology
    return Layout(
        name=plan.name,
        kind=topology.layout.value,
        world_size=topology.world_size,
        modules=tuple(_module(topology, name) for name in topology.grids),
        bridges=tuple(_bridges(plan)),
        pools=tuple(_pools(plan)),
        is_folded=topology.world_size > FULL_RANKS,
    )


def _module(topology: Topology, name: str) -> ModuleBox:
    grid = topology.grids[name]
    axes = [f"{axis} {grid.axis_size(axis)}" for axis in grid.dim_names if grid.axis_size(axis) > 1]
    if (experts := topology.expert_grids.get(name)) is not None:
        axes += [f"{axis} {experts.axis_size(axis)}" for axis in ("expt_tp", "ep") if experts.axis_size(axis) > 1]
    stages = [stage_ranks(topology, name, stage) for stage in range(grid.axis_size("pp"))]
    return ModuleBox(
        name=name,
        ranks=grid.size,
        axes=" · ".join(axes),
        stages=tuple(
            StageBox(stage=number, ranks=listed(runs_of(ranks), 3), count=len(ranks)) for number, ranks in enumerate(stages)
        ),
        column=_column(topology, name),
    )


def stage_ranks(topology: Topology, module: str, stage: int) -> tuple[int, ...]:
    """The ranks of one stage of a module, ascending."""
    grid = topology.grids[module]
    return grid.row_of(grid.rank_at({"pp": stage}), [axis for axis in grid.dim_names if axis != "pp"])


def _column(topology: Topology, name: str) -> int:
    """As near to the modules that take its output as the way to them allows."""
    longest = max(_distance(topology, each) for each in topology.grids)
    return longest - _distance(topology, name)


def _distance(topology: Topology, name: str) -> int:
    """How many modules follow one, at most."""
    return max((_distance(topology, target) + 1 for target in topology.module_graph.feeds[name]), default=0)


def _bridges(plan: LaunchPlan) -> list[BridgeLine]:
    topology = plan.topology
    pool_of = {rank: node.pool for node in plan.nodes for rank in node.ranks}
    found = []
    for source, target in usual_links(topology):
        if source.module == target.module:
            continue
        ends = [stage_ranks(topology, at.module, at.stage) for at in (source, target)]
        pools = [{pool_of[rank] for rank in ranks} for ranks in ends]
        found.append(
            BridgeLine(
                source=source.module,
                target=target.module,
                lanes=(lane_count(topology.grids[source.module]), lane_count(topology.grids[target.module])),
                is_on_same_ranks=set(ends[0]) == set(ends[1]),
                crosses_pools=pools[0] != pools[1],
            )
        )
    return found


def _pools(plan: LaunchPlan) -> list[PoolBox]:
    return [
        _pool(plan.topology, name, [node for node in plan.nodes if node.pool == name])
        for name in dict.fromkeys(node.pool for node in plan.nodes)
    ]


def _pool(topology: Topology, name: str, nodes: Sequence[Node]) -> PoolBox:
    if topology.world_size <= FULL_RANKS:
        groups = [_full(topology, node) for node in nodes]
    else:
        groups = _folded(topology, nodes, partial(stage_of, topology))
        if len(groups) > MOST_GROUPS:
            groups = _folded(topology, nodes, lambda rank: "+".join(topology.modules_of(rank)))
    return PoolBox(
        name=name,
        nodes=len(nodes),
        ranks=sum(node.procs for node in nodes),
        groups=tuple(groups[:MOST_GROUPS]),
        left_out=max(0, len(groups) - MOST_GROUPS),
    )


def _full(topology: Topology, node: Node) -> NodeGroup:
    cells = tuple(_cell(topology, rank) for rank in node.ranks)
    return NodeGroup(nodes=(node,), contents=_contents(topology, node, partial(stage_of, topology)), cells=cells)


def _cell(topology: Topology, rank: int) -> RankCell:
    label, modules = topology.label_of(rank), tuple(topology.modules_of(rank))
    place = label.removeprefix(modules[0]).lstrip(".").replace(".", " ") if len(modules) == 1 else "+".join(modules)
    return RankCell(rank, modules, place or modules[0], label)


def _folded(topology: Topology, nodes: Sequence[Node], role_of: Callable[[int], str]) -> list[NodeGroup]:
    """Neighbouring nodes whose ranks have the same roles, together."""
    contents = {node.name: _contents(topology, node, role_of) for node in nodes}
    return [NodeGroup(nodes=tuple(found), contents=key) for key, found in groupby(nodes, lambda node: contents[node.name])]


def _contents(topology: Topology, node: Node, role_of: Callable[[int], str]) -> _Contents:
    roles = [(tuple(topology.modules_of(rank)), role_of(rank)) for rank in node.ranks]
    return tuple(RoleCount(*role, count) for role, count in Counter(roles).items())
