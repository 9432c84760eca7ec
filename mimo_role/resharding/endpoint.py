"""The ranks of a bridge's ends and the tokens that each holds. Pure arithmetic.

Each sample of a batch has a number of tokens and belongs to one lane (data-parallel replica) of either side of a bridge. Within
a lane, cp ranks hold different tokens, and so do tp ranks if the module is sequence-parallel; otherwise tp ranks are replicas
of each other: they hold equal copies.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

from mimo_role.resharding.samples import Samples, TokenSplit
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.lanes import lane_coords, lane_count, lane_of


class Place(NamedTuple):
    """A rank's coordinates within its stage."""

    lane: int
    cp: int
    tp: int


@dataclass(frozen=True)
class Endpoint:
    """One stage of one grid, at which a bridge begins or ends."""

    module: str
    grid: RankGrid
    stage: int
    split: TokenSplit = field(default_factory=TokenSplit)

    @cached_property
    def lanes(self) -> int:
        """The number of data-parallel replicas."""
        return lane_count(self.grid)

    @cached_property
    def cp(self) -> int:
        """The number of ranks of a lane over which context parallelism divides its tokens."""
        return self.grid.axis_size("cp")

    @cached_property
    def tp(self) -> int:
        """The number of tensor-parallel ranks, which hold equal copies unless the module is sequence-parallel."""
        return self.grid.axis_size("tp")

    def rank_at(self, place: Place) -> int:
        """The rank at a place."""
        return self.grid.rank_at({**lane_coords(self.grid, place.lane), "cp": place.cp, "tp": place.tp, "pp": self.stage})

    def place_of(self, rank: int) -> Place | None:
        """The coordinates of a rank; `None` if it is not on this stage of the grid."""
        if rank not in self.grid:
            return None
        coords = self.grid.coords(rank)
        return Place(lane_of(self.grid, rank).number, coords["cp"], coords["tp"]) if coords["pp"] == self.stage else None


@dataclass(frozen=True)
class Side:
    """One end of a bridge with the samples of one batch."""

    endpoint: Endpoint
    samples: Samples
    is_source: bool

    def of_lane(self, lane: int) -> Sequence[int]:
        """The lane's samples, in ascending order."""
        return self.samples.of_lane(lane, self.endpoint.lanes, source=self.is_source)

    def lane_of(self, sample: int) -> int:
        """The sample's lane."""
        return self.samples.lane_of(sample, self.endpoint.lanes, source=self.is_source)

    def group_by_lane(self, samples: Iterable[int]) -> list[tuple[int, list[int]]]:
        """Some samples, grouped by their lanes on this side."""
        lanes: dict[int, list[int]] = {}
        for sample in samples:
            lanes.setdefault(self.lane_of(sample), []).append(sample)
        return list(lanes.items())

    def tokens(self, sample: int, place: Place) -> tuple[range, ...]:
        """The tokens of a sample that the rank at `place` holds, in ascending order. The sample belongs to its lane."""
        count, end = self.samples.tokens_of(sample), self.endpoint
        split = end.split
        start, length = (0, count)
        if self.samples.places is not None and not self.is_source:
            start, length = self.samples.places[sample]
        part = place.tp if split.sequence_parallel else 0
        held = _token_runs(length, split.cp_order, end.cp, place.cp, end.tp if split.sequence_parallel else 1, part)
        if start == 0 and length == count:
            return held
        cut = (range(max(run.start - start, 0), min(run.stop - start, count)) for run in held)
        return tuple(run for run in cut if run)

    def rows(self, place: Place) -> int:
        """The number of tokens that the rank at `place` holds: the rows of its tensor."""
        return sum(len(run) for sample in self.of_lane(place.lane) for run in self.tokens(sample, place))


def append_run(runs: list[range], run: range) -> None:
    """Append a run, or extend the last one if the run begins at its end."""
    if runs and runs[-1].stop == run.start:
        runs[-1] = range(runs[-1].start, run.stop)
    else:
        runs.append(run)


@lru_cache(maxsize=4096)
def _token_runs(length: int, order: str, cp: int, cp_rank: int, parts: int, part: int) -> tuple[range, ...]:
    """The tokens of a sequence that a cp rank holds, or the `part`-th of `parts` of them."""
    chunks = [(cp_rank, cp)] if order == "contiguous" else [(cp_rank, 2 * cp), (2 * cp - 1 - cp_rank, 2 * cp)]
    runs: list[range] = []
    for chunk, chunks_in_all in chunks:
        append_run(runs, range(length * chunk // chunks_in_all, length * (chunk + 1) // chunks_in_all))
    held = sum(map(len, runs))
    start, stop = held * part // parts, held * (part + 1) // parts
    taken, row = [], 0
    for run in runs:
        cut = range(run.start + max(start - row, 0), run.start + min(stop - row, len(run)))
        row += len(run)
        if cut:
            taken.append(cut)
    return tuple(taken)
