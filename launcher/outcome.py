"""Why a job ends, where no rank has failed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """The exit codes of mimo-launch. A failed rank's own code and 128 + a signal's number are passed on as they are."""

    SUCCESS = 0
    FAILURE = 1
    USER_ERROR = 2
    REQUEUE = 75
    """The ranks ended in order to be started again: EX_TEMPFAIL of sysexits.h."""
    STALLED = 124
    """No rank made progress: as timeout(1)."""
    INTERRUPTED = 130
    """Ctrl-C: 128 + SIGINT."""


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
