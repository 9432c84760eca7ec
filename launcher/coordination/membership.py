"""How the agents of several nodes present themselves, and tell why a job ends."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

_CLOCKS_S = 3.0
_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Member:
    """One node as it presents itself."""

    node: int
    name: str
    host: str
    digest: str
    """Of the plan that it holds."""
    pid: int = field(default_factory=os.getpid)
    clock_s: float = field(default_factory=time.time)
    """When it presented itself, by its own clock, in seconds since 1970."""

    def __str__(self) -> str:
        return f"{self.name} ({self.host})"

    def difference_from(self, first: "Member") -> str | None:
        """What about its plan is another than node 0's."""
        if self.digest == first.digest:
            return None
        return (
            f"{self} holds another plan ({self.digest[:12]}) than {first} ({first.digest[:12]}); "
            "start all nodes from the same config, overrides and arguments"
        )

    def clock_difference(self, first: "Member", now_s: float) -> str | None:
        """By how much its clock differs from node 0's, which says `now_s`, if that is worth a word."""
        ahead = self.clock_s - now_s
        if abs(ahead) < _CLOCKS_S:
            return None
        way = "ahead of" if ahead > 0 else "behind"
        return f"{self} is {abs(ahead):.0f} s {way} {first}; times in logs and reports will not fit"


def listed(names: Sequence[str]) -> str:
    """Some of many names."""
    shown = ", ".join(names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


@dataclass(frozen=True, kw_only=True)
class AbortReason:
    """Why the job ends before its ranks are done, as the node that noticed first tells it."""

    node: int | None
    """That node's index in the plan."""
    message: str
    code: int
    """The exit code of the job."""
    rank: int | None = None
    """The rank that failed first, if it ends because of one."""
