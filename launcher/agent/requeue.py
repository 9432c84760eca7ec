"""Ranks that ask to be requeued: by exit code 75, usually after a warning that the job is about to end."""

import time
from collections.abc import Mapping
from signal import Signals

from launcher.exit_code import ExitCode

_SAVED = {ExitCode.SUCCESS, ExitCode.REQUEUE, -Signals.SIGTERM}
"""SIGTERM: a rank that has asked to be requeued no longer handles it while Python exits."""


class Requeue:
    """Whether a node's ranks have asked to be requeued, attempt by attempt."""

    def __init__(self, grace_s: float, warning_s: float) -> None:
        """`grace_s` is how long ranks may take to end after SIGTERM, `warning_s` after a warning."""
        self._warned_patience_s = max(grace_s, warning_s)
        self.patience_s = grace_s
        """How long ranks may take to end."""
        self._first_seen_s: dict[int, float] = {}
        """By attempt: when a rank was first seen to have asked."""
        self._overdue: set[int] = set()
        """The attempts with ranks that did not end in time."""

    def warn(self) -> None:
        """The ranks are warned: from now on they may take longer."""
        self.patience_s = self._warned_patience_s

    def is_pending(self, attempt: int, exit_codes: Mapping[int, int | None]) -> bool:
        """Whether some ranks have asked, none has failed, and others still run: they may be saving."""
        found = set(exit_codes.values())
        if ExitCode.REQUEUE not in found or None not in found or not found <= {*_SAVED, None}:
            return False
        self._first_seen_s.setdefault(attempt, time.monotonic())
        return True

    def is_overdue(self, attempt: int) -> bool:
        """Whether the others have been waited for long enough. They are to be killed then."""
        if time.monotonic() - self._first_seen_s[attempt] > self.patience_s:
            self._overdue.add(attempt)
        return attempt in self._overdue

    def is_complete(self, attempt: int, exit_codes: Mapping[int, int | None]) -> bool:
        """Whether all ranks have ended, and some have asked."""
        killed = {-Signals.SIGKILL} if attempt in self._overdue else set()
        found = set(exit_codes.values())
        return ExitCode.REQUEUE in found and found <= {*_SAVED, *killed}
