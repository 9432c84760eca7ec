"""The ranks of the two sides of a bridge that describe samples to each other. Pure arithmetic."""

from typing import NamedTuple

from mimo_role.resharding.endpoint import Endpoint, Place, Side


class HandshakePeer(NamedTuple):
    """A rank of the other side, and the samples that are common to its lane and this rank's."""

    peer: int
    samples: list[int]


def handshake_peers(rank: int, source: Side, destination: Side) -> tuple[list[HandshakePeer], list[HandshakePeer]]:
    """The peers to which a rank of the source sends descriptions, and those from which a rank of the destination gets them.

    Each destination rank has one peer in every source lane from which it gets samples, and at least one peer.
    """
    source_place, destination_place = source.endpoint.place_of(rank), destination.endpoint.place_of(rank)
    receivers, senders = [], []
    if source_place is not None:
        empty = [lane for lane in range(destination.endpoint.lanes) if not destination.of_lane(lane)]
        without_samples: list[tuple[int, list[int]]] = [
            (lane, []) for lane in empty if _lane_for(lane, source, destination) == source_place.lane
        ]
        for lane, common in destination.group_by_lane(source.of_lane(source_place.lane)) + without_samples:
            for cp in range(destination.endpoint.cp):
                for tp in range(destination.endpoint.tp):
                    place = Place(lane, cp, tp)
                    if _sender_place(source.endpoint, destination.endpoint, source_place.lane, place) == source_place:
                        receivers.append(HandshakePeer(destination.endpoint.rank_at(place), common))
    if destination_place is not None:
        own = source.group_by_lane(destination.of_lane(destination_place.lane))
        for lane, common in own or [(_lane_for(destination_place.lane, source, destination), [])]:
            place = _sender_place(source.endpoint, destination.endpoint, lane, destination_place)
            senders.append(HandshakePeer(source.endpoint.rank_at(place), common))
    return receivers, senders


def _lane_for(lane: int, source: Side, destination: Side) -> int:
    """The source lane whose ranks describe samples to a destination lane that has none."""
    return lane * source.endpoint.lanes // destination.endpoint.lanes


def _sender_place(source: Endpoint, destination: Endpoint, lane: int, receiver: Place) -> Place:
    return Place(lane, receiver.cp % source.cp, receiver.tp * source.tp // destination.tp)
