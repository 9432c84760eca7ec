"""Who holds which tokens of which samples: lanes, context and sequence parallelism. Pure arithmetic.

Each sample of a batch has a number of tokens and belongs to one lane (data-parallel replica) of either side of a bridge.
Within a lane, cp ranks hold tokens of their own, and so do tp ranks where the module is sequence-parallel; elsewhere tp
ranks hold equal copies.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from operator import index
from typing import Any, Literal, NamedTuple

from mimo_role.errors import BridgeError
from mimo_role.topology.grid import RankGrid


class Place(NamedTuple):
    """Where a rank stands in its stage."""

    lane: int
    cp: int
    tp: int


@dataclass(frozen=True, kw_only=True)
class TokenSplit:
    """How the ranks of a lane divide the tokens of a sequence."""

    cp_order: Literal["contiguous", "zigzag"] = "contiguous"
    """`contiguous`: cp rank `i` holds the `i`-th of `cp` runs. `zigzag`: runs `i` and `2 cp - 1 - i` of `2 cp`, so that
    causal attention costs all of them the same."""
    sequence_parallel: bool = False
    """Whether tp rank `j` holds only the `j`-th of `tp` runs of its cp rank's tokens, instead of a copy of all."""

    def __post_init__(self) -> None:
        """
        Raises:
            BridgeError: no such order.
        """
        if self.cp_order not in ("contiguous", "zigzag"):
            raise BridgeError(f"cp_order={self.cp_order!r} is not an order of tokens; use contiguous or zigzag")


@dataclass(frozen=True)
class Endpoint:
    """One stage of one grid: where a bridge begins or ends."""

    module: str
    grid: RankGrid
    stage: int
    split: TokenSplit = field(default_factory=TokenSplit)

    @cached_property
    def lanes(self) -> int:
        """The number of data-parallel replicas."""
        return self.grid.axis_size("dp")

    @cached_property
    def cp(self) -> int:
        """The number of ranks of a lane over which context parallelism divides its tokens."""
        return self.grid.axis_size("cp")

    @cached_property
    def tp(self) -> int:
        """The number of tensor-parallel ranks, which hold equal copies unless the module is sequence-parallel."""
        return self.grid.axis_size("tp")

    def rank(self, place: Place) -> int:
        """The rank at a place."""
        return self.grid.rank_at({"dp": place.lane, "cp": place.cp, "tp": place.tp, "pp": self.stage})

    def place(self, rank: int) -> Place | None:
        """The rank's place; `None` if it is not on this stage of the grid."""
        if rank not in self.grid:
            return None
        coords = self.grid.coords(rank)
        return Place(coords["dp"], coords["cp"], coords["tp"]) if coords["pp"] == self.stage else None


@dataclass(frozen=True)
class Samples:
    """The samples of one batch or micro-batch, as both sides of a bridge know them."""

    count: int
    """How many there are over all lanes."""
    tokens: int | tuple[int, ...] = 1
    """How many tokens each has, or all have. A rank looks at those of its own lane's samples only."""
    source_lanes: tuple[int, ...] | None = None
    """The source lane of each sample; default: contiguous ranges whose sizes differ by at most one (`lane_samples`)."""
    destination_lanes: tuple[int, ...] | None = None
    """The same at the destination."""
    places: tuple[tuple[int, int], ...] | None = None
    """For each sample `(start, length)`: at the destination its tokens are numbers `start`, `start + 1`, ... of a sequence of
    `length`, which cp and sequence parallelism divide. Default: each sample is a sequence of its own."""

    def __post_init__(self) -> None:
        """
        Raises:
            BridgeError: a negative number, a list of another length than `count`, or a sample outside its sequence.
        """
        for name in ("tokens", "source_lanes", "destination_lanes", "places"):
            value = getattr(self, name)
            if value is None:
                continue
            plain = _plain(name, value)
            object.__setattr__(self, name, plain)
            if isinstance(plain, tuple) and len(plain) != self.count:
                raise BridgeError(f"{name} has {len(plain)} entries for {self.count} samples")
        if self.count < 0:
            raise BridgeError(f"a batch of {self.count} samples; there are 0 or more")
        if isinstance(self.tokens, int) and self.tokens < 0:
            raise BridgeError(f"tokens={self.tokens}; a sample has 0 or more")
        for sample, count in enumerate(() if isinstance(self.tokens, int) else self.tokens):
            if count < 0:
                raise BridgeError(f"tokens[{sample}]={count}; a sample has 0 or more")
        for sample, (start, length) in enumerate(self.places or ()):
            if start < 0 or start + self.tokens_of(sample) > length:
                raise BridgeError(
                    f"sample {sample} has {self.tokens_of(sample)} tokens from number {start} of a sequence of {length}"
                )

    def tokens_of(self, sample: int) -> int:
        """The number of tokens of one sample."""
        return self.tokens if isinstance(self.tokens, int) else self.tokens[sample]

    def of_lane(self, lane: int, lanes: int, *, source: bool) -> Sequence[int]:
        """The samples of one of a side's lanes, in ascending order."""
        assigned = self._by_source_lane if source else self._by_destination_lane
        return lane_samples(self.count, lanes, lane) if assigned is None else assigned.get(lane, ())

    def lane_of(self, sample: int, lanes: int, *, source: bool) -> int:
        """The lane that a sample belongs to on one side."""
        assigned = self.source_lanes if source else self.destination_lanes
        return ((sample + 1) * lanes - 1) // self.count if assigned is None else assigned[sample]

    def check_lanes(self, lanes: int, *, source: bool) -> None:
        """
        Raises:
            BridgeError: an assignment names a lane that the side does not have.
        """
        for lane in (self._by_source_lane if source else self._by_destination_lane) or ():
            if not 0 <= lane < lanes:
                assigned = (self.source_lanes if source else self.destination_lanes) or ()
                side = "source" if source else "destination"
                raise BridgeError(f"sample {assigned.index(lane)} is on {side} lane {lane}; there are {lanes} lanes, from 0")

    @cached_property
    def _by_source_lane(self) -> dict[int, list[int]] | None:
        return None if self.source_lanes is None else _inverse(self.source_lanes)

    @cached_property
    def _by_destination_lane(self) -> dict[int, list[int]] | None:
        return None if self.destination_lanes is None else _inverse(self.destination_lanes)


def _plain(name: str, value: Any) -> int | tuple[Any, ...]:
    """A field as Python's own numbers, whatever kind of numbers and sequence it was given as."""
    try:
        if name == "places":
            return tuple((index(start), index(length)) for start, length in value)
        return tuple(map(index, value)) if isinstance(value, Iterable) else index(value)
    except (TypeError, ValueError):
        wanted = "(start, length of the whole sequence)" if name == "places" else "a whole number"
        raise BridgeError(f"{name}={value!r:.80}: {wanted} for each sample") from None


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

    def tokens(self, sample: int, place: Place) -> tuple[range, ...]:
        """The tokens of a sample that the rank at `place` holds, in ascending order; the sample is of its lane."""
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
        """How many tokens the rank at `place` holds: the rows of its tensor."""
        return sum(len(run) for sample in self.of_lane(place.lane) for run in self.tokens(sample, place))


def lane_samples(batch_size: int, lanes: int, lane: int) -> range:
    """The samples of a batch that a lane holds where nothing else is assigned."""
    return range(lane * batch_size // lanes, (lane + 1) * batch_size // lanes)


def append_run(runs: list[range], run: range) -> None:
    """Append a run, or lengthen the last one where it begins at that one's end."""
    if runs and runs[-1].stop == run.start:
        runs[-1] = range(runs[-1].start, run.stop)
    else:
        runs.append(run)


def _inverse(lanes: Sequence[int]) -> dict[int, list[int]]:
    samples: dict[int, list[int]] = {}
    for sample, lane in enumerate(lanes):
        samples.setdefault(lane, []).append(sample)
    return samples


@lru_cache(maxsize=4096)
def _token_runs(length: int, order: str, cp: int, cp_rank: int, parts: int, part: int) -> tuple[range, ...]:
    """The tokens of a sequence that a cp rank holds, or of these the `part`-th of `parts`."""
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
