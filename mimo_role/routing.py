"""Which rank sends which samples to whom, when activations cross from one grid to another. Pure arithmetic.

A global batch is split over a grid's lanes (its data-parallel replicas) in contiguous ranges whose sizes differ by at
most one. The ranks of a lane that differ along `tp` hold equal copies; copies are paired up by number.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mimo_role.grid import RankGrid


@dataclass(frozen=True)
class Endpoint:
    """One stage of one grid: where a bridge begins or ends."""

    module: str
    grid: RankGrid
    stage: int

    @property
    def lanes(self) -> int:
        """The number of data-parallel replicas."""
        return self.grid.axis_size("dp")

    @property
    def copies(self) -> int:
        """The number of ranks of a lane, which hold equal copies of its activations."""
        return self.grid.axis_size("tp")

    def rank(self, lane: int, copy: int) -> int:
        """The rank that holds copy number `copy` of the lane."""
        return self.grid.rank_at({"dp": lane, "tp": copy, "pp": self.stage})

    def place(self, rank: int) -> tuple[int, int] | None:
        """The rank's lane and copy; `None` if it is not on this stage of the grid."""
        if rank not in self.grid:
            return None
        coords = self.grid.coords(rank)
        return (coords["dp"], coords["tp"]) if coords["pp"] == self.stage else None


@dataclass(frozen=True)
class Transfer:
    """Samples `start .. stop - 1` of the global batch, on their way to or from `peer`."""

    peer: int
    start: int
    stop: int


def lane_samples(batch_size: int, lanes: int, lane: int) -> range:
    """The samples of the global batch that a lane holds."""
    return range(lane * batch_size // lanes, (lane + 1) * batch_size // lanes)


def sends(rank: int, sender: Endpoint, receiver: Endpoint, batch_size: int) -> list[Transfer]:
    """What `rank` sends, in the order of samples; nothing if it is not a sender."""
    place = sender.place(rank)
    if place is None:
        return []
    lane, copy = place
    return [
        Transfer(receiver.rank(other, other_copy), start, stop)
        for other, start, stop in _overlaps(lane, sender.lanes, receiver.lanes, batch_size)
        for other_copy in range(copy, receiver.copies, sender.copies)
    ]


def receives(rank: int, sender: Endpoint, receiver: Endpoint, batch_size: int) -> list[Transfer]:
    """What `rank` receives, in the order of samples; nothing if it is not a receiver."""
    place = receiver.place(rank)
    if place is None:
        return []
    lane, copy = place
    return [
        Transfer(sender.rank(other, copy % sender.copies), start, stop)
        for other, start, stop in _overlaps(lane, receiver.lanes, sender.lanes, batch_size)
    ]


def _overlaps(lane: int, lanes: int, other_lanes: int, batch_size: int) -> Iterator[tuple[int, int, int]]:
    """The lanes of the other side that hold samples of this lane, with the samples that both hold."""
    own = lane_samples(batch_size, lanes, lane)
    for other in range(other_lanes):
        theirs = lane_samples(batch_size, other_lanes, other)
        start, stop = max(own.start, theirs.start), min(own.stop, theirs.stop)
        if start < stop:
            yield other, start, stop
