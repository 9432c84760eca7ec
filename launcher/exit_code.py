"""The exit codes of mimo-launch."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of mimo-launch. A failed rank's own code and 128 + a signal's number are passed on as they are."""

    SUCCESS = 0
    FAILURE = 1
    USER_ERROR = 2
    REQUEUE = 75
    """The ranks asked to be requeued: EX_TEMPFAIL of sysexits.h."""
    STALLED = 124
    """No rank made progress: as timeout(1)."""
    INTERRUPTED = 130
    """Ctrl-C: 128 + SIGINT."""
