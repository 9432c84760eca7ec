"""A rank that is slow, as it is reported."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Straggler:
    """A rank that computes longer than those that do the same."""

    rank: int
    label: str
    node: str
    ratio: float
    """Its time of computation over the median of its peers."""
    since_step: int
    until_step: int | None = None
    """The step at which it was as fast as its peers again; `None` as long as it is not."""
    share: float
    """The part of each step of the whole job that it costs: its computation beyond the median, over the time of a step."""
    is_from_start: bool = False
    """Whether it was so in the first steps that were compared: then it may have more work rather than be slower."""
