"""One step of one rank, in numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

SAMPLES, TOKENS, PEAK_GIB = "samples", "tokens", "memory/peak_gib"
"""Scalars with a meaning of their own: what a rank has read in a step, and the most memory that it has used."""


class ModuleTimes(NamedTuple):
    """What a rank did for one module in one step, seconds."""

    compute_s: float = 0.0
    """Forwards and backwards, without collectives, sends and waits within them."""
    collectives_s: float = 0.0
    """Collectives within forwards and backwards."""
    bridge_wait_s: float = 0.0
    """Waits for other modules."""
    bubble_s: float = 0.0
    """Waits for other stages of the module."""


@dataclass(frozen=True, slots=True)
class RankStep:
    """A step that a rank has ended."""

    rank: int
    step: int
    ended: float
    """Seconds since the epoch, by the rank's host."""
    seconds: float
    """From its beginning to the next one's; of the last step, to the end of its last span. 0 if it is not known."""
    last_step: int = 0
    """The number of the last step that the script will do; 0 if it does not state it."""
    modules: Mapping[str, ModuleTimes] = field(default_factory=dict)
    """By module; empty where the script has no schedule."""
    scalars: Mapping[str, float] = field(default_factory=dict)
    """The last value of each in the step; without those that are not finite."""

    @property
    def compute_s(self) -> float:
        """Over all modules of the rank."""
        return sum(each.compute_s for each in self.modules.values())
