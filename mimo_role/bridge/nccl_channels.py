"""Process groups used by bridges under NCCL."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Literal

import torch
import torch.distributed as dist

from mimo_role.bridge.messages import Channels
from mimo_role.groups.creation import free, make_rows, uses_nccl
from mimo_role.groups.rounds import RowSet
from mimo_role.resharding.endpoint import Endpoint, Side
from mimo_role.resharding.samples import Samples, TokenSplit
from mimo_role.resharding.transfer_plan import Chunk, TransferPlan, plan_transfers
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.topology import Topology

_WIDTHS = (1, 1 << 20)
"""Elements of a token: so few that overlaps are sent whole to each replica, and so many that replicas divide them."""


class NcclChannels:
    """Groups of the world for activations, for gradients, and for messages among replicas. Under gloo there are none.

    There is a pair for the bridges between a module's stages, and a pair for the bridge to the language module.

    NCCL runs a communicator's batches one after the other, and messages between two ranks in the order of posting. Over one
    communicator, activations would wait for gradients that wait for them, messages among replicas for the next batch, and
    messages of two bridges would be confused. Two ranks connect at their first message, for which each waits until the other
    has posted it. So all pairs that exchange messages when samples are split evenly connect here, in an order that all ranks
    share; other lanes connect at their first message. Gloo's messages have tags, so the world's group serves for all.
    """

    def __init__(self, topology: Topology, rank: int, device: torch.device) -> None:
        """Create and connect the groups. Collective over the world."""
        self._groups: dict[tuple[str, bool, bool], dist.ProcessGroup] = {}
        self._among_replicas: dist.ProcessGroup | None = None
        if not uses_nccl() or topology.world_size == 1:
            return
        world = RowSet(range(topology.world_size), ((1, topology.world_size),))
        among_replicas = set()
        for module, between_stages in _kinds(topology):
            for back in (False, True):
                plans = list(_plans(topology, module, between_stages, rank, back=back))
                name = f"{module}{' stages' if between_stages else ''} {'back' if back else 'forward'}"
                group = self._groups[module, between_stages, back] = make_rows(world, rank, group_desc=name)
                _connect(group, _pairs(((plan.sends, plan.receives) for plan in plans), rank), rank, device)
                among_replicas |= _pairs(((plan.replica_sends, plan.replica_receives) for plan in plans), rank)
        self._among_replicas = make_rows(world, rank, group_desc="replicas")
        _connect(self._among_replicas, among_replicas, rank, device)

    def of(self, module: str, *, between_stages: bool) -> Channels:
        """The groups for the bridges between a module's stages, or for the one from it to the language module."""
        forward, back = (self._groups.get((module, between_stages, back)) for back in (False, True))
        return Channels(forward, back, self._among_replicas)

    def destroy(self) -> None:
        """Destroy the groups, once."""
        for group in [*self._groups.values(), *filter(None, [self._among_replicas])]:
            free(group)
        self._groups.clear()
        self._among_replicas = None


def _connect(group: dist.ProcessGroup, pairs: set[tuple[int, int]], rank: int, device: torch.device) -> None:
    """Send a number from the first rank of each pair to the second."""
    operations = []
    for sender, receiver in sorted(pairs, key=lambda pair: (min(pair), max(pair), pair)):
        number = torch.zeros(1, device=device)
        verb, peer = (dist.isend, receiver) if sender == rank else (dist.irecv, sender)
        operations.append(dist.P2POp(verb, number, peer, group))
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()


def _pairs(exchanges: Iterable[tuple[Sequence[Chunk], Sequence[Chunk]]], rank: int) -> set[tuple[int, int]]:
    """The pairs of sender and receiver to which this rank belongs, from what it sends and receives."""
    pairs = set()
    for sends, receives in exchanges:
        pairs |= {(rank, chunk.peer) for chunk in sends} | {(chunk.peer, rank) for chunk in receives}
    return {(sender, receiver) for sender, receiver in pairs if sender != receiver}


def _kinds(topology: Topology) -> Iterator[tuple[str, bool]]:
    """The modules at which bridges begin, and whether these are between its stages."""
    for module, grid in topology.grids.items():
        if grid.axis_size("pp") > 1:
            yield module, True
        if module != MIMO_LANGUAGE_MODULE_KEY:
            yield module, False


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
