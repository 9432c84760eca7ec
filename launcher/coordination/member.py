"""How a node introduces itself to node 0."""

import os
import time
from dataclasses import dataclass, field

_CLOCK_TOLERANCE_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Member:
    """One node's agent."""

    node: int
    name: str
    host: str
    digest: str
    """Of its plan."""
    pid: int = field(default_factory=os.getpid)
    clock_s: float = field(default_factory=time.time)
    """When it introduced itself, by its own clock, in seconds since 1970."""

    def __str__(self) -> str:
        return f"{self.name} ({self.host})"

    def plan_difference(self, first: "Member") -> str | None:
        """How its plan differs from that of node 0."""
        if self.digest == first.digest:
            return None
        return (
            f"{self} holds another plan ({self.digest[:12]}) than {first} ({first.digest[:12]}); "
            "start all nodes from the same config, overrides and arguments"
        )

    def clock_difference(self, first: "Member", now_s: float) -> str | None:
        """How its clock differs from that of node 0, which shows `now_s`; `None` if by too little to matter."""
        ahead = self.clock_s - now_s
        if abs(ahead) < _CLOCK_TOLERANCE_S:
            return None
        direction = "ahead of" if ahead > 0 else "behind"
        return f"{self} is {abs(ahead):.0f} s {direction} {first}; times in logs and reports will not match"
