"""Why a job ends, where no rank has failed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STALLED = 124
"""The exit code of a job that makes no progress: that of timeout(1)."""
REQUEUED = "the ranks ended in order to be started again"


@dataclass(frozen=True)
class Problem:
    """What happened, for people, and the exit code for it."""

    message: str
    code: int
    details: Mapping[str, Any] = field(default_factory=dict)
    """The same for programs."""

    @property
    def headline(self) -> str:
        """The first line of the message."""
        return self.message.partition("\n")[0]
