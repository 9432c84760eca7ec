"""Which ranks send each other messages over bridges when samples are split evenly. Pure arithmetic."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Literal

from mimo_role.resharding.endpoint import Endpoint, Side
from mimo_role.resharding.samples import Samples, TokenSplit
from mimo_role.resharding.transfer_plan import Chunk, TransferPlan, plan_transfers
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.stage_links import StageId, StageLink, last_stage, stage_links
from mimo_role.topology.topology import Topology

_WIDTHS = (1, 1 << 20)
"""Elements of a token: so few that overlaps are sent whole to each replica, and so many that replicas divide them."""

Pair = tuple[int, int]
"""A sender and a receiver."""


def bridge_pairs(topology: Topology, links: Iterable[StageLink], rank: int, *, back: bool) -> set[Pair]:
    """The pairs of ranks, of which one is `rank`, that exchange data over some bridges.

    Args:
        topology: the world.
        links: the stages at which each bridge begins and ends.
        rank: one of the pair.
        back: whether gradients are meant.
    """
    plans = _plans(topology, links, rank, back=back)
    return _pairs(((plan.sends, plan.receives) for plan in plans), rank)


def replica_pairs(topology: Topology, module: str, rank: int) -> set[Pair]:
    """The pairs of replicas of a module's lanes, of which one is `rank`, that exchange what they have received."""
    found = set()
    links = links_at(topology, rank)
    for back in (False, True):
        own = [link for link in links if (link.source if back else link.target).module == module]
        plans = _plans(topology, own, rank, back=back)
        found |= _pairs(((plan.replica_sends, plan.replica_receives) for plan in plans), rank)
    return found


def usual_links(topology: Topology) -> list[StageLink]:
    """The links between neighbouring stages and to the first stages of modules; those to later stages exist on demand."""
    return [link for link in stage_links(topology) if link.is_within_module or link.target.stage == 0]


def links_at(topology: Topology, rank: int) -> list[StageLink]:
    """Those of `usual_links` that begin or end at a stage of one rank."""
    found = []
    for module in topology.modules_of(rank):
        stage = topology.grids[module].coords(rank)["pp"]
        at = StageId(module, stage)
        sources = (
            [last_stage(topology, name) for name in topology.after[module]] if stage == 0 else [StageId(module, stage - 1)]
        )
        is_last = at == last_stage(topology, module)
        feeds = topology.module_graph.feeds[module]
        targets = [StageId(name, 0) for name in feeds] if is_last else [StageId(module, stage + 1)]
        found += [StageLink(source, at) for source in sources] + [StageLink(at, target) for target in targets]
    return list(dict.fromkeys(found))


def _pairs(exchanges: Iterable[tuple[Sequence[Chunk], Sequence[Chunk]]], rank: int) -> set[Pair]:
    pairs = set()
    for sends, receives in exchanges:
        pairs |= {(rank, chunk.peer) for chunk in sends} | {(chunk.peer, rank) for chunk in receives}
    return {(sender, receiver) for sender, receiver in pairs if sender != receiver}


def _plans(topology: Topology, links: Iterable[StageLink], rank: int, *, back: bool) -> Iterator[TransferPlan]:
    """The plans of a rank for batches whose samples are split evenly."""
    for link in links:
        grids = [topology.grids[at.module] for at in link]
        for splits in product(*map(_splits_of, grids)):
            source, destination = (
                Endpoint(at.module, grid, at.stage, split) for at, grid, split in zip(link, grids, splits, strict=True)
            )
            samples = Samples(
                math.lcm(source.lanes, destination.lanes), 2 * source.cp * destination.cp * source.tp * destination.tp
            )
            ends = Side(source, samples, True), Side(destination, samples, False)
            for width in _WIDTHS:
                yield plan_transfers(rank, *(ends[::-1] if back else ends), width)


def _splits_of(grid: RankGrid) -> list[TokenSplit]:
    """All token splits that differ on this grid."""
    orders: list[Literal["contiguous", "zigzag"]] = ["contiguous", "zigzag"]
    return [
        TokenSplit(cp_order=order, sequence_parallel=sequence_parallel)
        for order in orders[: min(grid.axis_size("cp"), 2)]
        for sequence_parallel in (False, True)[: min(grid.axis_size("tp"), 2)]
    ]
