"""The groups that bridges' messages take under NCCL."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Literal

import torch
import torch.distributed as dist

from mimo_role.bridge.transfer import Ways
from mimo_role.groups.process_groups import free, make_rows, uses_nccl
from mimo_role.groups.rounds import RowSet
from mimo_role.resharding.samples import Endpoint, Samples, Side, TokenSplit
from mimo_role.resharding.transfer_plan import Route, Transfer, route
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.topology import Topology

_WIDTHS = (1, 1 << 20)
"""Elements of a token: so few that what crosses goes whole to each copy, and so many that they share it out."""


class WayGroups:
    """Groups of the world for what goes over bridges forward, and back, and among copies; over gloo there are none.

    There is a pair for the bridges between a module's stages, and a pair for the one to the language module.

    NCCL takes a communicator's batches one after the other, and messages between two ranks in the order in which they were
    posted. Over one communicator, activations would wait for gradients that wait for them, what copies hand on for the next
    batch, and one bridge's messages be taken for another's. Two ranks connect at their first message, and each waits for the
    other to post it; so all that talk where samples are split evenly do so here, in an order that all ranks share. Lanes
    that only an assignment by hand brings together connect when they first meet. Gloo's messages have tags, and the world's
    group is connected: it serves for all.
    """

    def __init__(self, topology: Topology, rank: int, device: torch.device) -> None:
        """Make them, and connect. Collective over the world."""
        self._groups: dict[tuple[str, bool, bool], dist.ProcessGroup] = {}
        self._among_copies: dist.ProcessGroup | None = None
        if not uses_nccl() or topology.world_size == 1:
            return
        world = RowSet(range(topology.world_size), ((1, topology.world_size),))
        among_copies = set()
        for module, between_stages in _kinds(topology):
            for back in (False, True):
                plans = list(_routes(topology, module, between_stages, rank, back=back))
                name = f"{module}{' stages' if between_stages else ''} {'back' if back else 'forward'}"
                group = self._groups[module, between_stages, back] = make_rows(world, rank, group_desc=name)
                _connect(group, _pairs(((plan.sends, plan.receives) for plan in plans), rank), rank, device)
                among_copies |= _pairs(((plan.hand_on, plan.take_over) for plan in plans), rank)
        self._among_copies = make_rows(world, rank, group_desc="copies")
        _connect(self._among_copies, among_copies, rank, device)

    def of(self, module: str, *, between_stages: bool) -> Ways:
        """For the bridges between a module's stages, or the one from it to the language module."""
        forward, back = (self._groups.get((module, between_stages, back)) for back in (False, True))
        return Ways(forward, back, self._among_copies)

    def destroy(self) -> None:
        """Free them once."""
        for group in [*self._groups.values(), *filter(None, [self._among_copies])]:
            free(group)
        self._groups.clear()
        self._among_copies = None


def _connect(group: dist.ProcessGroup, pairs: set[tuple[int, int]], rank: int, device: torch.device) -> None:
    """Send a number from the first of each pair to the second."""
    operations = []
    for sender, receiver in sorted(pairs, key=lambda pair: (min(pair), max(pair), pair)):
        number = torch.zeros(1, device=device)
        verb, peer = (dist.isend, receiver) if sender == rank else (dist.irecv, sender)
        operations.append(dist.P2POp(verb, number, peer, group))
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()


def _pairs(transfers: Iterable[tuple[Sequence[Transfer], Sequence[Transfer]]], rank: int) -> set[tuple[int, int]]:
    """Who sends to whom, as far as it concerns this rank, given what it sends and receives."""
    pairs = set()
    for sends, receives in transfers:
        pairs |= {(rank, transfer.peer) for transfer in sends} | {(transfer.peer, rank) for transfer in receives}
    return {(sender, receiver) for sender, receiver in pairs if sender != receiver}


def _kinds(topology: Topology) -> Iterator[tuple[str, bool]]:
    """The modules that bridges begin at, with whether these are between its stages."""
    for module, grid in topology.grids.items():
        if grid.axis_size("pp") > 1:
            yield module, True
        if module != MIMO_LANGUAGE_MODULE_KEY:
            yield module, False


def _routes(topology: Topology, module: str, between_stages: bool, rank: int, *, back: bool) -> Iterator[Route]:
    """What the rank does over bridges of one kind, when batches cross whose samples are split evenly."""
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
                yield route(rank, *(ends[::-1] if back else ends), width)


def _splits_of(grid: RankGrid) -> list[TokenSplit]:
    """All ways to divide tokens that make a difference on this grid."""
    orders: list[Literal["contiguous", "zigzag"]] = ["contiguous", "zigzag"]
    return [
        TokenSplit(cp_order=order, sequence_parallel=sequence_parallel)
        for order in orders[: min(grid.axis_size("cp"), 2)]
        for sequence_parallel in (False, True)[: min(grid.axis_size("tp"), 2)]
    ]
