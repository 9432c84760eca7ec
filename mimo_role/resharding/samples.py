"""The samples of a batch, their lanes, and how the ranks of a lane divide their tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import Any, Literal

from mimo_role.errors import BridgeError


@dataclass(frozen=True, kw_only=True)
class TokenSplit:
    """How the ranks of a lane divide the tokens of a sequence."""

    cp_order: Literal["contiguous", "zigzag"] = "contiguous"
    """`contiguous`: cp rank `i` holds the `i`-th of `cp` runs. `zigzag`: runs `i` and `2 cp - 1 - i` of `2 cp`, so that
    causal attention costs each of them the same."""
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
class Samples:
    """The samples of one batch or micro-batch, as both sides of a bridge know them."""

    count: int
    """Samples over all lanes."""
    tokens: int | tuple[int, ...] = 1
    """Tokens of each sample, or of all. A rank only needs those of its own lane's samples."""
    source_lanes: tuple[int, ...] | None = None
    """The source lane of each sample; default: contiguous ranges whose sizes differ by at most one (`lane_samples`)."""
    destination_lanes: tuple[int, ...] | None = None
    """The same at the destination."""
    places: tuple[tuple[int, int], ...] | None = None
    """For each sample `(start, length)`: at the destination its tokens are numbers `start`, `start + 1`, ... of a sequence of
    `length`, which cp and sequence parallelism divide. Default: each sample is its own sequence."""

    def __post_init__(self) -> None:
        """
        Raises:
            BridgeError: a negative number, a sequence whose length is not `count`, or a sample outside its sequence.
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
            raise BridgeError(f"count={self.count}; a batch has 0 or more samples")
        if isinstance(self.tokens, int) and self.tokens < 0:
            raise BridgeError(f"tokens={self.tokens}; a sample has 0 or more")
        for sample, count in enumerate(() if isinstance(self.tokens, int) else self.tokens):
            if count < 0:
                raise BridgeError(f"tokens[{sample}]={count}; a sample has 0 or more")
        for sample, (start, length) in enumerate(self.places or ()):
            if start < 0 or start + self.tokens_of(sample) > length:
                raise BridgeError(
                    f"places[{sample}]=({start}, {length}): {self.tokens_of(sample)} tokens do not fit into the sequence there"
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
    """A field as Python ints and tuples, whatever kinds of numbers and sequences it was given as."""
    try:
        if name == "places":
            return tuple((index(start), index(length)) for start, length in value)
        return tuple(map(index, value)) if isinstance(value, Iterable) else index(value)
    except (TypeError, ValueError):
        wanted = "(start, length of the whole sequence)" if name == "places" else "a whole number"
        raise BridgeError(f"{name}={value!r:.80}: {wanted} for each sample") from None


def lane_samples(batch_size: int, lanes: int, lane: int) -> range:
    """The samples of a batch that a lane holds by default."""
    return range(lane * batch_size // lanes, (lane + 1) * batch_size // lanes)


def _inverse(lanes: Sequence[int]) -> dict[int, list[int]]:
    samples: dict[int, list[int]] = {}
    for sample, lane in enumerate(lanes):
        samples.setdefault(lane, []).append(sample)
    return samples
