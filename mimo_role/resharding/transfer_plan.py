"""Which rank sends which part of which sample to whom, when activations cross from one grid to another. Pure arithmetic.

What a holder of tokens has in common with one of the other side is a stream: rows (one per token) of both ranks' tensors,
in the order of samples and tokens. Equal copies share a stream out among themselves by runs of its elements, so that
nothing is sent twice and all links carry the same; copies that receive then hand their runs on to each other. Small
streams go whole.

A rank's route follows from the samples of its own lane alone.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from mimo_role.resharding.samples import Endpoint, Place, Side, append_run

WORTH_A_MESSAGE = 1 << 16
"""Elements from which a piece that lies apart is sent alone: copying it would cost more than a message does."""


WORTH_SHARING = 1 << 14
"""Elements from which copies share a stream out. A smaller one goes whole to each that needs it: a second hop costs more."""


class Stream(NamedTuple):
    """What this rank and a holder on the other side have in common."""

    runs: tuple[range, ...]
    """Rows of this rank's tensor, in order."""
    rows: int
    first_sample: int
    last_sample: int
    cuts: tuple[int, ...]
    """Rows at which transfers are cut, so that each lies in one piece on both sides; empty where pieces are joined instead."""


class Transfer(NamedTuple):
    """Elements `start .. stop - 1` of a stream, on their way to or from `peer`."""

    peer: int
    stream: int
    """Its number among the route's streams of that direction."""
    start: int
    stop: int


@dataclass(frozen=True)
class Route:
    """What one rank does when one batch crosses in one direction."""

    rows_held: int
    """Rows of the tensor that the rank gives; 0 on a rank that only receives."""
    rows_needed: int
    """Rows of the tensor that it gets."""
    send_streams: tuple[Stream, ...]
    sends: tuple[Transfer, ...]
    receive_streams: tuple[Stream, ...]
    receives: tuple[Transfer, ...]
    hand_on: tuple[Transfer, ...]
    """What it has received and now gives to the other copies of its lane, by receive streams."""
    take_over: tuple[Transfer, ...]
    """What they give to it."""


def route(rank: int, sender: Side, receiver: Side, width: int) -> Route:
    """What `rank` sends and receives.

    Args:
        rank: any rank of the world.
        sender, receiver: the two ends; exchanged for the way back.
        width: elements of one token.
    """
    given, got = sender.endpoint.place(rank), receiver.endpoint.place(rank)
    send_streams, sends = ([], []) if given is None else _sends(rank, given, sender, receiver, width)
    receive_streams: list[Stream] = []
    receives: list[Transfer] = []
    hand_on: list[Transfer] = []
    take_over: list[Transfer] = []
    if got is not None:
        for stream, shares in _arrivals(rank, got, sender, receiver, width):
            number = len(receive_streams)
            receive_streams.append(stream)
            for share in shares:
                for start, stop in share.of(stream, width):
                    if share.receiver == rank:
                        receives.append(Transfer(share.sender, number, start, stop))
                        hand_on += [Transfer(copy, number, start, stop) for copy in share.copies]
                    else:
                        take_over.append(Transfer(share.receiver, number, start, stop))
    return Route(
        rows_held=0 if given is None else sender.rows(given),
        rows_needed=0 if got is None else receiver.rows(got),
        send_streams=tuple(send_streams),
        sends=tuple(sends),
        receive_streams=tuple(receive_streams),
        receives=tuple(receives),
        hand_on=tuple(hand_on),
        take_over=tuple(take_over),
    )


class _Share(NamedTuple):
    """Units `units` of `total`, into which a stream is cut: what one sender gives to one receiver."""

    sender: int
    receiver: int
    copies: tuple[int, ...]
    """The ranks that the receiver hands it on to."""
    units: range
    total: range

    def of(self, stream: Stream, width: int) -> Iterator[tuple[int, int]]:
        """The elements of the stream that are moved, in one interval or several."""
        elements = stream.rows * width
        first, last = (elements * (unit - self.total.start) // len(self.total) for unit in (self.units.start, self.units.stop))
        cuts = [cut * width for cut in stream.cuts if first < cut * width < last]
        yield from ((start, stop) for start, stop in pairwise([first, *cuts, last]) if start < stop)


def _sends(rank: int, place: Place, sender: Side, receiver: Side, width: int) -> tuple[list[Stream], list[Transfer]]:
    streams: list[Stream] = []
    transfers: list[Transfer] = []
    rows = _Rows(sender, place)
    for lane, common in _by_lane(sender.of_lane(place.lane), receiver):
        for cp in range(receiver.endpoint.cp):
            for first, holders in _holders(receiver, sender, lane, cp):
                stream = rows.stream(common, receiver, first, width)
                if stream is None:
                    continue
                streams.append(stream)
                transfers += [
                    Transfer(share.receiver, len(streams) - 1, start, stop)
                    for together in _groups_of(holders, stream, width)
                    for share in _shares(sender, receiver, place, together, stream.rows * width)
                    if share.sender == rank
                    for start, stop in share.of(stream, width)
                ]
    return streams, transfers


def _arrivals(rank: int, place: Place, sender: Side, receiver: Side, width: int) -> Iterator[tuple[Stream, list[_Share]]]:
    """The streams that reach the rank's lane, with who brings which share of them to whom."""
    own = next(holders for _, holders in _holders(receiver, sender, place.lane, place.cp) if rank in holders)
    parts = sender.endpoint.tp if sender.endpoint.split.sequence_parallel else 1
    rows = _Rows(receiver, place)
    for lane, common in _by_lane(receiver.of_lane(place.lane), sender):
        for cp in range(sender.endpoint.cp):
            for tp in range(parts):
                first = Place(lane, cp, tp)
                stream = rows.stream(common, sender, first, width)
                if stream is not None:
                    together = next(group for group in _groups_of(own, stream, width) if rank in group)
                    yield stream, _shares(sender, receiver, first, together, stream.rows * width)


def _holders(receiver: Side, sender: Side, lane: int, cp: int) -> Iterator[tuple[Place, tuple[int, ...]]]:
    """The ranks of a lane that receive together, each its share, and the place of the first: they need the same rows.

    Ranks that need rows of their own receive alone. So do copies that are all senders too: they have most of it already.
    """
    end = receiver.endpoint
    places = [Place(lane, cp, tp) for tp in range(end.tp)]
    ranks = tuple(end.rank(place) for place in places)
    if end.split.sequence_parallel or all(sender.endpoint.place(rank) is not None for rank in ranks):
        yield from ((place, (rank,)) for place, rank in zip(places, ranks, strict=True))
    else:
        yield places[0], ranks


def _groups_of(holders: tuple[int, ...], stream: Stream, width: int) -> list[tuple[int, ...]]:
    """The holders that take a stream together."""
    return [holders] if stream.rows * width >= WORTH_SHARING else [(rank,) for rank in holders]


def _shares(sender: Side, receiver: Side, origin: Place, holders: tuple[int, ...], elements: int) -> list[_Share]:
    """How the stream from `origin` to `holders` is shared out over the ranks of both that have it."""
    source, end = sender.endpoint, receiver.endpoint
    sharded = source.split.sequence_parallel
    copies = [origin.tp] if sharded else range(source.tp)
    ranks = [source.rank(origin._replace(tp=tp)) for tp in copies]
    if len(holders) == 1 and holders[0] in ranks:
        return [_Share(holders[0], holders[0], (), range(1), range(1))]
    if elements < WORTH_SHARING:
        giver = ranks[0 if sharded else _place_in(end, holders[0]).tp * source.tp // end.tp]
        return [_Share(giver, holders[0], (), range(1), range(1))]
    fine = math.lcm(source.tp, end.tp)
    senders = [(rank, _units(fine, source.tp, tp)) for tp, rank in zip(copies, ranks, strict=True)]
    receivers = [(rank, _units(fine, end.tp, _place_in(end, rank).tp)) for rank in holders]
    # A side that alone has or needs the whole stream gives or gets all units; otherwise each copy has units of its own.
    total = range(fine)
    if sharded and len(holders) < end.tp:
        senders, receivers = [(ranks[0], total)], [(holders[0], total)]
    elif sharded:
        total = senders[0][1]
    elif len(holders) < end.tp:
        total = receivers[0][1]
    return [
        _Share(giver, taker, tuple(rank for rank in holders if rank != taker), units, total)
        for giver, given in senders
        for taker, taken in receivers
        if (units := range(max(given.start, taken.start), min(given.stop, taken.stop)))
    ]


class _Rows:
    """Where each sample of one rank's lane begins in its tensor."""

    def __init__(self, side: Side, place: Place) -> None:
        self._side = side
        self._place = place
        self._first: dict[int, int] = {}
        row = 0
        for sample in side.of_lane(place.lane):
            self._first[sample] = row
            row += sum(map(len, side.tokens(sample, place)))

    def stream(self, common: Sequence[int], other: Side, place: Place, width: int) -> Stream | None:
        """What the rank and the one at the other side's `place` both hold of the samples; `None` if that is nothing."""
        runs: list[range] = []
        samples, cuts, rows = [], [0], 0
        for sample in common:
            theirs = other.tokens(sample, place)
            row = self._first[sample]
            for mine in self._side.tokens(sample, self._place):
                for run in theirs:
                    start, stop = max(mine.start, run.start), min(mine.stop, run.stop)
                    if start < stop:
                        samples.append(sample)
                        append_run(runs, range(row + start - mine.start, row + stop - mine.start))
                        rows += stop - start
                        cuts.append(rows)
                row += len(mine)
        if not runs:
            return None
        is_cut = not _lie_together(self._side, other) and rows * width >= len(samples) * WORTH_A_MESSAGE
        return Stream(tuple(runs), rows, samples[0], samples[-1], tuple(cuts[1:-1]) if is_cut else ())


def _lie_together(one: Side, other: Side) -> bool:
    """Whether every stream is one run of rows on both sides; told by both alike, without looking at samples."""
    return all(
        side.endpoint.cp == 1
        and not side.endpoint.split.sequence_parallel
        and (side.samples.source_lanes if side.is_source else side.samples.destination_lanes) is None
        for side in (one, other)
    )


def _by_lane(samples: Sequence[int], side: Side) -> list[tuple[int, list[int]]]:
    lanes: dict[int, list[int]] = {}
    for sample in samples:
        lanes.setdefault(side.lane_of(sample), []).append(sample)
    return list(lanes.items())


def _units(fine: int, parts: int, part: int) -> range:
    return range(part * fine // parts, (part + 1) * fine // parts)


def _place_in(end: Endpoint, rank: int) -> Place:
    place = end.place(rank)
    assert place is not None
    return place


class Talk(NamedTuple):
    """A rank of the other side with whom this rank speaks of the samples that both their lanes have."""

    peer: int
    samples: list[int]


def talks(rank: int, source: Side, destination: Side) -> tuple[list[Talk], list[Talk]]:
    """Whom the rank tells, as one of the source, and whom it hears, as one of the destination.

    Each destination rank hears one rank of every source lane that it gets samples from; if it gets none, one rank all the same.
    """
    given, got = source.endpoint.place(rank), destination.endpoint.place(rank)
    tells, hears = [], []
    if given is not None:
        empty = [lane for lane in range(destination.endpoint.lanes) if not destination.of_lane(lane)]
        alone: list[tuple[int, list[int]]] = [
            (lane, []) for lane in empty if _lane_for(lane, source, destination) == given.lane
        ]
        for lane, common in _by_lane(source.of_lane(given.lane), destination) + alone:
            for cp in range(destination.endpoint.cp):
                for tp in range(destination.endpoint.tp):
                    place = Place(lane, cp, tp)
                    if _teller(source.endpoint, destination.endpoint, given.lane, place) == given:
                        tells.append(Talk(destination.endpoint.rank(place), common))
    if got is not None:
        own = _by_lane(destination.of_lane(got.lane), source)
        for lane, common in own or [(_lane_for(got.lane, source, destination), [])]:
            teller = _teller(source.endpoint, destination.endpoint, lane, got)
            hears.append(Talk(source.endpoint.rank(teller), common))
    return tells, hears


def _lane_for(lane: int, source: Side, destination: Side) -> int:
    """The source lane that speaks to a destination lane without samples."""
    return lane * source.endpoint.lanes // destination.endpoint.lanes


def _teller(source: Endpoint, destination: Endpoint, lane: int, hearer: Place) -> Place:
    return Place(lane, hearer.cp % source.cp, hearer.tp * source.tp // destination.tp)
