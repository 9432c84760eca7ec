"""Which ranks send each other messages over bridges when samples are split evenly. Pure arithmetic."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Literal

from mimo_role.resharding.endpoint import Endpoint, Side
from mimo_role.resharding.samples import Samples, TokenSplit
from mimo_role.resharding.transfer_plan import Chunk, TransferPlan, plan_transfers
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.topology import Topology

_WIDTHS = (1, 1 << 20)
"""Elements of a token: so few that overlaps are sent whole to each replica, and so many that replicas divide them."""

Pair = tuple[int, int]
"""A sender and a receiver."""


def bridge_pairs(topology: Topology, module: str, rank: int, *, between_stages: bool, back: bool) -> set[Pair]:
    """The pairs of ranks, of which one is `rank`, that exchange data over a bridge.

    Args:
        topology: the world.
        module: where the bridge begins.
        rank: one of the pair.
        between_stages: whether the bridges between its stages are meant, or the one to the language module.
        back: whether gradients are meant.
    """
    plans = _plans(topology, module, between_stages, rank, back=back)
    return _pairs(((plan.sends, plan.receives) for plan in plans), rank)


def replica_pairs(topology: Topology, module: str, rank: int) -> set[Pair]:
    """The pairs of replicas of a module's lanes, of which one is `rank`, that exchange what they have received."""
    found = set()
    for bridge, between_stages in bridges(topology):
        for back in (False, True):
            receiver = bridge if between_stages or back else MIMO_LANGUAGE_MODULE_KEY
            if receiver == module:
                plans = _plans(topology, bridge, between_stages, rank, back=back)
                found |= _pairs(((plan.replica_sends, plan.replica_receives) for plan in plans), rank)
    return found


def bridges(topology: Topology) -> Iterator[tuple[str, bool]]:
    """The modules at which bridges begin, and whether these are between its stages."""
    for module, grid in topology.grids.items():
        if grid.axis_size("pp") > 1:
            yield module, True
        if module != MIMO_LANGUAGE_MODULE_KEY:
            yield module, False


def _pairs(exchanges: Iterable[tuple[Sequence[Chunk], Sequence[Chunk]]], rank: int) -> set[Pair]:
    pairs = set()
    for sends, receives in exchanges:
        pairs |= {(rank, chunk.peer) for chunk in sends} | {(chunk.peer, rank) for chunk in receives}
    return {(sender, receiver) for sender, receiver in pairs if sender != receiver}


def _plans(topology: Topology, module: str, between_stages: bool, rank: int, *, back: bool) -> Iterator[TransferPlan]:
    """The plans of a rank for bridges of one kind and batches whose samples are split evenly."""
    grid, language = topology.grids[module], topology.grids[MIMO_LANGUAGE_MODULE_KEY]
    last = grid.axis_size("pp") - 1
    for stage in range(last) if between_stages else [last]:
        after = (module, grid, stage + 1) if between_stages else (MIMO_LANGUAGE_MODULE_KEY, language, 0)
        for splits in product(_splits_of(grid), _splits_of(after[1])):
            source, destination = Endpoint(module, grid, stage, splits[0]), Endpoint(*after, splits[1])
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
