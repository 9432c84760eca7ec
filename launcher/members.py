"""How the agents of several nodes present themselves, and tell why a job ends."""

import os
import time
from dataclasses import dataclass, field


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


@dataclass(frozen=True, kw_only=True)
class JobEnding:
    """Why the job ends before its ranks are done, as the node that noticed first tells it."""

    node: int | None
    """That node's index in the plan."""
    message: str
    code: int
    """The exit code of the job."""
    rank: int | None = None
    """The rank that failed first, if it ends because of one."""
