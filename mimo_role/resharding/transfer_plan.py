"""Plan of a transfer: which rank sends which elements to which rank, when a batch moves between two grids. Pure arithmetic.

The tokens that a rank of one side and a rank of the other both hold are an overlap: the same rows (one per token) of both
tensors, in the order of samples and tokens. Replicas divide an overlap into runs of elements, one for each replica, so that
nothing is sent twice and all links carry the same amount; replicas that receive then exchange their runs among each other. A
small overlap is sent whole to each replica.

A rank's plan only depends on the samples of its own lane.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import NamedTuple

from mimo_role.resharding.endpoint import Endpoint, Place, Side
from mimo_role.resharding.overlap import LaneRows, Overlap

WORTH_SHARING = 1 << 14
"""Elements from which replicas divide an overlap. A smaller one is sent whole to each replica: a second hop would cost more."""


class Chunk(NamedTuple):
    """Elements `start .. stop - 1` of an overlap, sent to `peer` or received from it."""

    peer: int
    overlap: int
    """Its index among the plan's overlaps of that direction."""
    start: int
    stop: int


@dataclass(frozen=True)
class TransferPlan:
    """What one rank sends and receives in one batch and direction."""

    rows_held: int
    """Rows of the tensor that the rank sends from; 0 on a rank that only receives."""
    rows_needed: int
    """Rows of the tensor that it receives into; 0 on a rank that only sends."""
    send_overlaps: tuple[Overlap, ...]
    sends: tuple[Chunk, ...]
    receive_overlaps: tuple[Overlap, ...]
    receives: tuple[Chunk, ...]
    replica_sends: tuple[Chunk, ...]
    """What it has received and then sends to the other replicas of its lane; indices of receive overlaps."""
    replica_receives: tuple[Chunk, ...]
    """What it receives from them."""


def plan_transfers(rank: int, sender: Side, receiver: Side, width: int) -> TransferPlan:
    """The plan of one rank.

    Args:
        rank: any rank of the world.
        sender, receiver: the two sides; for gradients, the destination is the sender.
        width: elements of one token.
    """
    sender_place, receiver_place = sender.endpoint.place_of(rank), receiver.endpoint.place_of(rank)
    send_overlaps, sends = ([], []) if sender_place is None else _sends(rank, sender_place, sender, receiver, width)
    receive_overlaps: list[Overlap] = []
    receives: list[Chunk] = []
    replica_sends: list[Chunk] = []
    replica_receives: list[Chunk] = []
    if receiver_place is not None:
        for overlap, shares in _arrivals(rank, receiver_place, sender, receiver, width):
            number = len(receive_overlaps)
            receive_overlaps.append(overlap)
            for share in shares:
                for start, stop in share.of(overlap, width):
                    if share.receiver == rank:
                        receives.append(Chunk(share.sender, number, start, stop))
                        replica_sends += [Chunk(replica, number, start, stop) for replica in share.replicas]
                    else:
                        replica_receives.append(Chunk(share.receiver, number, start, stop))
    return TransferPlan(
        rows_held=0 if sender_place is None else sender.rows(sender_place),
        rows_needed=0 if receiver_place is None else receiver.rows(receiver_place),
        send_overlaps=tuple(send_overlaps),
        sends=tuple(sends),
        receive_overlaps=tuple(receive_overlaps),
        receives=tuple(receives),
        replica_sends=tuple(replica_sends),
        replica_receives=tuple(replica_receives),
    )


class _Share(NamedTuple):
    """What one sender sends to one receiver: units `units` of `total`, into which the overlap is divided."""

    sender: int
    receiver: int
    holders: tuple[int, ...]
    """The ranks that need it: the receiver and those to which it then sends it."""
    units: range
    total: range

    @property
    def replicas(self) -> Iterator[int]:
        """The ranks to which the receiver then sends it."""
        return (rank for rank in self.holders if rank != self.receiver)

    def of(self, overlap: Overlap, width: int) -> Iterator[tuple[int, int]]:
        """The elements of the overlap, as one interval or several."""
        elements = overlap.rows * width
        first, last = (elements * (unit - self.total.start) // len(self.total) for unit in (self.units.start, self.units.stop))
        cuts = [cut * width for cut in overlap.cuts if first < cut * width < last]
        yield from ((start, stop) for start, stop in pairwise([first, *cuts, last]) if start < stop)


def _sends(rank: int, place: Place, sender: Side, receiver: Side, width: int) -> tuple[list[Overlap], list[Chunk]]:
    overlaps: list[Overlap] = []
    chunks: list[Chunk] = []
    rows = LaneRows(sender, place)
    for lane, common in receiver.group_by_lane(sender.of_lane(place.lane)):
        for cp in range(receiver.endpoint.cp):
            for first, holders in _holders(receiver, sender, lane, cp):
                overlap = rows.overlap_with(common, receiver, first, width)
                if overlap is None:
                    continue
                overlaps.append(overlap)
                chunks += [
                    Chunk(share.receiver, len(overlaps) - 1, start, stop)
                    for together in _groups_of(holders, overlap, width)
                    for share in _shares(sender, receiver, place, together, overlap.rows * width)
                    if share.sender == rank
                    for start, stop in share.of(overlap, width)
                ]
    return overlaps, chunks


def _arrivals(rank: int, place: Place, sender: Side, receiver: Side, width: int) -> Iterator[tuple[Overlap, list[_Share]]]:
    """The overlaps that the rank's lane receives, with the shares of senders and receivers."""
    own = next(holders for _, holders in _holders(receiver, sender, place.lane, place.cp) if rank in holders)
    parts = sender.endpoint.tp if sender.endpoint.split.sequence_parallel else 1
    rows = LaneRows(receiver, place)
    for lane, common in sender.group_by_lane(receiver.of_lane(place.lane)):
        for cp in range(sender.endpoint.cp):
            for tp in range(parts):
                first = Place(lane, cp, tp)
                overlap = rows.overlap_with(common, sender, first, width)
                if overlap is not None:
                    together = next(group for group in _groups_of(own, overlap, width) if rank in group)
                    yield overlap, _shares(sender, receiver, first, together, overlap.rows * width)


def _holders(receiver: Side, sender: Side, lane: int, cp: int) -> Iterator[tuple[Place, tuple[int, ...]]]:
    """The ranks of a lane that need the same rows and share them out, and the place of the first.

    Ranks that need different rows receive alone. So do replicas that are all senders too: they hold most of the rows already.
    """
    end = receiver.endpoint
    places = [Place(lane, cp, tp) for tp in range(end.tp)]
    ranks = tuple(end.rank_at(place) for place in places)
    if end.split.sequence_parallel or all(sender.endpoint.place_of(rank) is not None for rank in ranks):
        yield from ((place, (rank,)) for place, rank in zip(places, ranks, strict=True))
    else:
        yield places[0], ranks


def _groups_of(holders: tuple[int, ...], overlap: Overlap, width: int) -> list[tuple[int, ...]]:
    """The holders, grouped by those that receive an overlap together."""
    return [holders] if overlap.rows * width >= WORTH_SHARING else [(rank,) for rank in holders]


def _shares(sender: Side, receiver: Side, origin: Place, holders: tuple[int, ...], elements: int) -> list[_Share]:
    """The shares of an overlap between the replicas of `origin` and those of `holders`."""
    source, end = sender.endpoint, receiver.endpoint
    sharded = source.split.sequence_parallel

    def replica(tp: int) -> int:
        return source.rank_at(origin._replace(tp=tp))

    if len(holders) == 1 and _is_replica(source, origin, holders[0]):
        return [_Share(holders[0], holders[0], holders, range(1), range(1))]
    if elements < WORTH_SHARING:
        sender_rank = replica(origin.tp if sharded else _place_in(end, holders[0]).tp * source.tp // end.tp)
        return [_Share(sender_rank, holders[0], holders, range(1), range(1))]
    # Where one rank of a side has or needs the whole overlap, its share is all units; otherwise each replica has some units.
    fine = math.lcm(source.tp, end.tp)
    if sharded and len(holders) < end.tp:
        return [_Share(replica(origin.tp), holders[0], holders, range(fine), range(fine))]
    if sharded:
        total = _units(fine, source.tp, origin.tp)
    elif len(holders) < end.tp:
        total = _units(fine, end.tp, _place_in(end, holders[0]).tp)
    else:
        total = range(fine)
    senders = [(replica(tp), _units(fine, source.tp, tp)) for tp in _parts_within(total, fine, source.tp)]
    own = holders if len(holders) == end.tp else [holders[0]] * end.tp
    receivers = [(own[tp], _units(fine, end.tp, tp)) for tp in _parts_within(total, fine, end.tp)]
    return list(_common(senders, receivers, holders, total))


def _common(
    senders: Sequence[tuple[int, range]], receivers: Sequence[tuple[int, range]], holders: tuple[int, ...], total: range
) -> Iterator[_Share]:
    """What each sender and each receiver have in common; both are in the order of their units."""
    first = 0
    for sender, sent in senders:
        while first < len(receivers) and receivers[first][1].stop <= sent.start:
            first += 1
        for receiver, received in islice(receivers, first, None):
            if received.start >= sent.stop:
                break
            yield _Share(
                sender, receiver, holders, range(max(sent.start, received.start), min(sent.stop, received.stop)), total
            )


def _is_replica(end: Endpoint, place: Place, rank: int) -> bool:
    """Whether a rank holds the same tokens as the one at `place`."""
    own = end.place_of(rank)
    return own is not None and own[:2] == place[:2] and (own.tp == place.tp or not end.split.sequence_parallel)


def _parts_within(units: range, fine: int, parts: int) -> range:
    """The parts, of which `fine` units are divided into `parts`, that have some of the units."""
    return range(units.start * parts // fine, -(-units.stop * parts // fine))


def _units(fine: int, parts: int, part: int) -> range:
    return range(part * fine // parts, (part + 1) * fine // parts)


def _place_in(end: Endpoint, rank: int) -> Place:
    place = end.place_of(rank)
    assert place is not None
    return place
