"""The communicators of bridges under NCCL: which ranks belong to each, and in which rounds they are created. Pure arithmetic.

Each has the ranks that exchange messages over it and no others, since each rank pays for a communicator with memory.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import chain

from mimo_role.resharding.connections import Pair, bridge_pairs, links_at, replica_pairs
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.stage_links import StageId, StageLink, last_stage
from mimo_role.topology.topology import Topology


class Traffic(Enum):
    """The messages of one communicator."""

    FORWARD = "forward"
    """Activations, from a module's last stage to a stage of a module that takes its output."""
    BACK = "back"
    """Their gradients."""
    STAGES_FORWARD = "stages forward"
    """Activations between a module's stages."""
    STAGES_BACK = "stages back"
    """Their gradients."""
    REPLICAS = "replicas"
    """What the tensor-parallel ranks of a lane, having received different parts, send each other."""


@dataclass(frozen=True)
class MessageGroup:
    """Rows of ranks, each of which has a communicator for one kind of messages."""

    module: str
    """At which the bridge begins, or whose replicas they are."""
    to: str
    """At which the bridge ends; the same for bridges between stages, and for replicas."""
    traffic: Traffic
    rows: tuple[tuple[int, ...], ...]
    """Disjoint, each ascending."""

    @property
    def name(self) -> str:
        """Such as `vision forward`; where it does not end at the language module, `language forward to decoder`."""
        to = "" if self.to in (self.module, MIMO_LANGUAGE_MODULE_KEY) else f" to {self.to}"
        return f"{self.module} {self.traffic.value}{to}"

    @cached_property
    def ranks(self) -> frozenset[int]:
        """The ranks of all rows."""
        return frozenset(chain.from_iterable(self.rows))

    def row_of(self, rank: int) -> tuple[int, ...] | None:
        """The row that has the rank."""
        return next((row for row in self.rows if rank in row), None)

    def pairs_of(self, topology: Topology, rank: int) -> set[Pair]:
        """The pairs of sender and receiver, of which one is `rank`, when samples are split evenly."""
        if self.traffic is Traffic.REPLICAS:
            return replica_pairs(topology, self.module, rank)
        ends = self.module, self.to
        links = [link for link in links_at(topology, rank) if (link.source.module, link.target.module) == ends]
        return bridge_pairs(topology, links, rank, back=self.traffic in (Traffic.BACK, Traffic.STAGES_BACK))


def message_groups(topology: Topology) -> Iterator[MessageGroup]:
    """All message groups of a world, in an order that all its ranks share."""
    for module, grid in topology.grids.items():
        if grid.axis_size("pp") > 1:
            for traffic in (Traffic.STAGES_FORWARD, Traffic.STAGES_BACK):
                yield MessageGroup(module, module, traffic, (tuple(grid.ranks),))
        for to in topology.module_graph.feeds[module]:
            ends = ranks_of(topology, StageLink(last_stage(topology, module), StageId(to, 0)))
            if len(ends) > 1:
                yield from (MessageGroup(module, to, traffic, (ends,)) for traffic in (Traffic.FORWARD, Traffic.BACK))
    for module, grid in topology.grids.items():
        receives = grid.axis_size("pp") > 1 or len(topology.grids) > 1
        if receives and grid.axis_size("tp") > 1:
            yield MessageGroup(module, module, Traffic.REPLICAS, tuple(grid.rows(["tp"])))


def ranks_of(topology: Topology, link: StageLink) -> tuple[int, ...]:
    """The ranks of the two stages of a link, ascending."""
    return tuple(sorted({rank for at in link for rank in _stage(topology.grids[at.module], at.stage)}))


def rounds_of(groups: Iterable[MessageGroup]) -> list[list[MessageGroup]]:
    """The groups in rounds; those of one round have no rank in common."""
    rounds: list[list[MessageGroup]] = []
    for group in groups:
        free = (round_ for round_ in rounds if all(group.ranks.isdisjoint(other.ranks) for other in round_))
        home = next(free, None)
        if home is None:
            rounds.append([group])
        else:
            home.append(group)
    return rounds


def _stage(grid: RankGrid, stage: int) -> tuple[int, ...]:
    return grid.row_of(grid.rank_at({"pp": stage}), [axis for axis in grid.dim_names if axis != "pp"])
