"""Rows that the tensors of two ranks, one of each side of a bridge, have in common. Pure arithmetic."""

from collections.abc import Sequence
from typing import NamedTuple

from mimo_role.resharding.endpoint import Place, Side, append_run

WORTH_A_MESSAGE = 1 << 16
"""Elements from which each contiguous piece is a message of its own: copying pieces together would cost more."""


class Overlap(NamedTuple):
    """The rows that this rank and a rank of the other side both hold."""

    runs: tuple[range, ...]
    """Rows of this rank's tensor, in order."""
    rows: int
    first_sample: int
    last_sample: int
    cuts: tuple[int, ...]
    """Rows at which chunks end, so that each is contiguous on both sides; empty if pieces are joined instead."""


class LaneRows:
    """The first row of each sample in one rank's tensor."""

    def __init__(self, side: Side, place: Place) -> None:
        self._side = side
        self._place = place
        self._first: dict[int, int] = {}
        row = 0
        for sample in side.of_lane(place.lane):
            self._first[sample] = row
            row += sum(map(len, side.tokens(sample, place)))

    def overlap_with(self, common: Sequence[int], other: Side, place: Place, width: int) -> Overlap | None:
        """The rows of some samples that this rank and the one at `place` of the other side hold; `None` for none."""
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
        is_cut = not _are_contiguous(self._side, other) and rows * width >= len(samples) * WORTH_A_MESSAGE
        return Overlap(tuple(runs), rows, samples[0], samples[-1], tuple(cuts[1:-1]) if is_cut else ())


def _are_contiguous(one: Side, other: Side) -> bool:
    """Whether every overlap is one run of rows on both sides, whatever the token counts, so that both sides agree."""
    return all(
        side.endpoint.cp == 1
        and not side.endpoint.split.sequence_parallel
        and (side.samples.source_lanes if side.is_source else side.samples.destination_lanes) is None
        for side in (one, other)
    )
