"""How far the clocks of two hosts are apart, from messages between them. Pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

MOST_DRIFT = 5e-4
"""The largest difference of the rates of two clocks: what NTP slews one by (adjtimex(2)), which is more than quartz drifts."""


class Exchange(NamedTuple):
    """A question to node 0 and its answer: times in ns, the first and last on this node's clock, the others on node 0's."""

    sent_ns: int
    received_ns: int
    answered_ns: int
    arrived_ns: int


@dataclass(frozen=True, kw_only=True)
class ClockOffset:
    """What to add to this node's CLOCK_MONOTONIC to get node 0's."""

    offset_ns: int
    error_ns: int
    """The offset was within this of the true one when it was measured."""
    measured_ns: int
    """When that was, on this node's clock."""

    @classmethod
    def none(cls, now_ns: int) -> "ClockOffset":
        """Of node 0 itself."""
        return cls(offset_ns=0, error_ns=0, measured_ns=now_ns)

    @classmethod
    def of(cls, exchanges: Sequence[Exchange]) -> "ClockOffset":
        """The offset that fits all exchanges, of which there is at least one.

        A question is not received before it was sent, nor an answer before it was given. So each exchange has a lower and an
        upper bound of the offset, and all of them together narrower ones (D. Mills, "Internet time synchronization: the network
        time protocol", IEEE Transactions on Communications 39, 1991, has the offset of a single one).
        """
        bounds = [(each.answered_ns - each.arrived_ns, each.received_ns - each.sent_ns) for each in exchanges]
        lower, upper = max(low for low, _ in bounds), min(high for _, high in bounds)
        if lower > upper:  # the clocks have drifted meanwhile, or one was set
            lower, upper = min(bounds, key=lambda bound: bound[1] - bound[0])
        return cls(offset_ns=(lower + upper) // 2, error_ns=(upper - lower + 1) // 2, measured_ns=exchanges[-1].arrived_ns)

    def error_at(self, time_ns: int) -> int:
        """The error for another time of this node: the clocks may have drifted apart between the two."""
        return self.error_ns + round(MOST_DRIFT * abs(time_ns - self.measured_ns))
