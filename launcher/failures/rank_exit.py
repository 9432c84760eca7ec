"""The exit of each rank, as the agent of its node has recorded it."""

import re
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.exit_code import ExitCode
from launcher.failures.crash import Crash, read_crash
from launcher.failures.output_tail import crash_in, fatal_in, tail_of
from mimo_role import REQUEUE_EXIT_CODE

_BY_A_FAULT = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
"""Signals that a fault of the process itself causes."""
FAULTS = (*_BY_A_FAULT, signal.SIGABRT)
"""Signals at which faulthandler writes the stack."""
_KILLED = (signal.SIGTERM, signal.SIGKILL)
_LINE_LIMIT = 300
_AT_ONCE_S = 0.5
_SAME_MOMENT_S = 0.05
_LOST_A_PEER = (
    "connection closed by peer",
    "connection closed by remote peer",
    "connection reset by peer",
    "broken pipe",
    "socket closed",
    "no longer reachable",
    "remote process exited",
    "ncclremoteerror",
    "communicator was aborted",
    "failed to recv, got 0 bytes",
    "timed out waiting",
    "collective operation timeout",
    "failure reported by rank",
    "that rank has left the job",
)
"""Parts of the messages of torch, gloo, NCCL and bridges when a peer has exited."""


@dataclass(frozen=True, kw_only=True)
class RankExit:
    """The exit of one rank."""

    rank: int
    code: int
    """Its exit code; negative for the signal that ended it."""
    order: int
    """Its place in the order in which the ranks of all nodes exited."""
    host: str
    ended_at: float
    """The time of the exit, by the clock of its host, in seconds since 1970."""
    step: int | None = None
    """The last training step that it had begun."""
    crash: Crash | None = None
    """The exception or crash that ended it, if it was recorded."""
    tail: tuple[str, ...] = ()
    """The last lines of its output."""
    logs: tuple[str, ...] = ()
    """The files with its output that are not empty, stderr first."""

    @property
    def has_lost_a_peer(self) -> bool:
        """Whether it failed because a peer had exited, judging by its exception or the end of its output."""
        # If torch's watchdog aborts a rank, there is a stack by faulthandler, but the message is in the output.
        has_message = self.crash is not None and (self.crash.text or -self.code not in FAULTS)
        message = self.crash.text if self.crash is not None and has_message else "\n".join(self.tail)
        return any(part in message.lower() for part in _LOST_A_PEER)

    @property
    def is_by_its_own_fault(self) -> bool:
        """Whether it failed by itself: not because of a peer, and not by a signal from outside but SIGINT, by which Python ends
        after a `KeyboardInterrupt`."""
        if -self.code in _BY_A_FAULT:
            return True
        return (self._code_of_its_own > 0 or self._is_interrupted) and not self.has_lost_a_peer

    @property
    def was_ended(self) -> bool:
        """Whether a signal from outside ended it before it had failed."""
        return -self.code in _KILLED and self.crash is None

    @property
    def signature(self) -> tuple[object, ...]:
        """Equal for ranks that exited in the same way; numbers, such as addresses and ranks, may differ."""
        if self.crash is None:
            return (self.code,)
        places = tuple((frame.file, frame.line) for frame in self.crash.frames)
        return (self._code_of_its_own, self.crash.kind, re.sub(r"0x[0-9a-f]+|\d+", "#", self.crash.text), places)

    @property
    def ending(self) -> str:
        """The exit in one line."""
        code = self._code_of_its_own
        if self.crash is None or code == 0:
            return describe_exit_code(code)
        text = _first_line(self.crash.text)
        if self.crash.kind == "SystemExit":
            return f"{describe_exit_code(code)} ({text})"
        exception = f"{self.crash.kind}: {text}" if text else self.crash.kind
        if code < 0:
            return f"{describe_exit_code(code)} ({exception})"
        return exception if code == 1 else f"{exception} ({describe_exit_code(code)})"

    @property
    def job_code(self) -> int:
        """The exit code of a job that failed because of this rank: the rank's own, or 1 if a signal ended it; 130 for SIGINT,
        by which Python ends after a `KeyboardInterrupt`."""
        if self._is_interrupted:
            return ExitCode.INTERRUPTED
        return max(self._code_of_its_own, 0) or ExitCode.FAILURE

    @property
    def _is_interrupted(self) -> bool:
        return self._code_of_its_own == -signal.SIGINT

    @property
    def _code_of_its_own(self) -> int:
        """The exit code, or what it would have been: a rank may be killed after its exception, while it ends."""
        if self.crash is None or -self.code not in _KILLED:
            return self.code
        return -signal.SIGINT if "KeyboardInterrupt" in self.crash.kinds else 1

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "RankExit":
        """The inverse of `as_dict`, after JSON too."""
        crash = Crash.from_dict(value["crash"]) if value["crash"] is not None else None
        return cls(**dict(value) | {"crash": crash, "tail": tuple(value["tail"]), "logs": tuple(value["logs"])})


def _first_line(text: str) -> str:
    """The first line of a message, without the place in torch's sources and the general advice that gloo adds."""
    line = re.sub(r"^\[\S+:\d+\] ", "", text.strip().partition("\n")[0])
    return line.partition(" This is typically caused by")[0][:_LINE_LIMIT]


def describe_exit_code(code: int) -> str:
    """An exit code as text."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def read_rank_exit(
    rank: int,
    code: int,
    *,
    order: int,
    host: str,
    ended_at: float,
    step: int | None,
    logs: tuple[Path, ...],
    error_files: tuple[Path, ...],
    stacks: Path,
) -> RankExit:
    """Read the files that a rank has left.

    Args:
        rank: the rank.
        code: its exit code.
        order: its place among the exits.
        host: its host.
        ended_at: the time of the exit.
        step: its last step.
        logs: its stderr, its stdout, and perhaps more.
        error_files: the first that can be read counts.
        stacks: faulthandler's file.
    """
    crash = next((found for found in map(_crash_from, error_files) if found is not None), None)
    # The output of a rank that was killed from outside has no cause.
    if -code in FAULTS:
        crash = fatal_in(stacks) or crash_in(logs[0]) or crash
    elif crash is None and code > 0:
        crash = crash_in(logs[0])
    written = [log for log in logs if _size(log)]
    tails = [tail for tail in map(tail_of, written) if tail]
    return RankExit(
        rank=rank,
        code=code,
        order=order,
        host=host,
        ended_at=ended_at,
        step=step,
        crash=crash,
        tail=tuple(tails[0]) if tails else (),
        logs=tuple(map(str, written)),
    )


def first_failure(records: list[RankExit]) -> RankExit | None:
    """The failure that came first.

    That is the first exit, with two exceptions. A rank that raises closes its connections before it exits, so a peer that
    fails because of the lost connection may exit earlier: a rank that failed by itself comes before such peers. And the order
    of exits that are noticed at the same moment is unknown: a rank that was killed comes first then, and one that SIGTERM
    has ended last.
    """
    # A rank that asked to be requeued counts as failed only if no other rank has failed.
    failed = sorted((record for record in records if record.code), key=lambda it: (it.code == REQUEUE_EXIT_CODE, it.order))
    if not failed:
        return None
    first = failed[0]
    if first.has_lost_a_peer or first.code == -signal.SIGTERM:  # with SIGTERM mimo-launch ends ranks after a failure
        together = [record for record in failed if record.ended_at < first.ended_at + _SAME_MOMENT_S]
        first = min(together, key=lambda record: (record.code != -signal.SIGKILL, record.code == -signal.SIGTERM))
    if not first.has_lost_a_peer:
        return first
    own = (record for record in failed if record.is_by_its_own_fault and record.code != REQUEUE_EXIT_CODE)
    # Without an exception, a later one may have been ended because of the first.
    soon = (record for record in own if record.crash is not None or record.ended_at < first.ended_at + _AT_ONCE_S)
    return next(soon, first)


def _crash_from(file: Path) -> Crash | None:
    try:
        return read_crash(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
