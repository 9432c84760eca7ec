"""How each rank ended, as its node's agent has seen it."""

import re
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.failures.crash import Crash, read_crash
from launcher.failures.output_tail import crash_in, fatal_in, tail_of
from mimo_role import REQUEUE_EXIT_CODE

_BY_A_FAULT = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
"""Signals that a process gets for what it does itself."""
FAULTS = (*_BY_A_FAULT, signal.SIGABRT)
"""Signals at which faulthandler writes down the stack."""
_ENDED = (signal.SIGTERM, signal.SIGKILL)
_LINE_LIMIT = 300
_AT_ONCE_S = 0.5
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
"""What torch, gloo and NCCL say where another rank has gone, and what a bridge does."""


@dataclass(frozen=True, kw_only=True)
class RankExit:
    """The end of one rank."""

    rank: int
    code: int
    """Its exit code; negative for the signal that ended it."""
    order: int
    """Its place in the order in which the ranks of all nodes ended."""
    host: str
    ended_at: float
    """By the clock of its host, in seconds since 1970."""
    step: int | None = None
    """The last training step that it had come to."""
    crash: Crash | None = None
    """What ended it, if it could tell."""
    tail: tuple[str, ...] = ()
    """The last lines of its output."""
    logs: tuple[str, ...] = ()
    """The files with all of it that are not empty, stderr first."""

    @property
    def has_lost_a_peer(self) -> bool:
        """Whether it failed because of another rank, as far as its last words tell."""
        # Of one that torch's watchdog aborts, faulthandler has told the stack, and its output tells why.
        is_told = self.crash is not None and (self.crash.text or self.code > 0)
        said = self.crash.text if self.crash is not None and is_told else "\n".join(self.tail)
        return any(words in said.lower() for words in _LOST_A_PEER)

    @property
    def is_by_its_own_fault(self) -> bool:
        """Whether no other rank, and nobody from outside, has ended it."""
        return -self.code in _BY_A_FAULT or (self.code > 0 and not self.has_lost_a_peer)

    @property
    def was_ended(self) -> bool:
        """Whether it had not failed when somebody ended it."""
        return -self.code in _ENDED and self.crash is None

    @property
    def signature(self) -> tuple[object, ...]:
        """Equal for ranks that ended in the same way: numbers, such as addresses and ranks, may differ."""
        if self.crash is None:
            return (self.code,)
        places = tuple((frame.file, frame.line) for frame in self.crash.frames)
        # One that was ended while it failed has failed like the others.
        code = 1 if -self.code in _ENDED else self.code
        return (code, self.crash.kind, re.sub(r"0x[0-9a-f]+|\d+", "#", self.crash.text), places)

    @property
    def ending(self) -> str:
        """How it ended, in a line."""
        if self.crash is None or self.code == 0:
            return describe_exit_code(self.code)
        text = _first_line(self.crash.text)
        if self.crash.kind == "SystemExit":
            return f"{describe_exit_code(self.code)} ({text})"
        told = f"{self.crash.kind}: {text}" if text else self.crash.kind
        if -self.code in _ENDED:
            return told  # it had failed already when it was ended
        if self.code < 0:
            return f"{describe_exit_code(self.code)} ({told})"
        return told if self.code == 1 else f"{told} ({describe_exit_code(self.code)})"

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "RankExit":
        """The inverse of `as_dict`, after JSON too."""
        crash = Crash.from_dict(value["crash"]) if value["crash"] is not None else None
        return cls(**dict(value) | {"crash": crash, "tail": tuple(value["tail"]), "logs": tuple(value["logs"])})


def _first_line(text: str) -> str:
    """What a message says first, without the place in torch's sources and the general advice that gloo puts around it."""
    line = re.sub(r"^\[\S+:\d+\] ", "", text.strip().partition("\n")[0])
    return line.partition(" This is typically caused by")[0][:_LINE_LIMIT]


def describe_exit_code(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def read_record(
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
    """Gather what a rank has left behind. `stacks` is faulthandler's file.

    `logs` are its stderr, its stdout, and perhaps more; the first of `error_files` that can be read counts.
    """
    crash = next((found for found in map(_crash_from, error_files) if found is not None), None)
    # One that was killed from outside has not said why in its output.
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

    By the order in which the ranks ended; but a rank that raises lets go of its connections before it has ended, so one that
    says that it has lost a peer does not come before one that fails by its own fault.
    """
    # One that asked to be started again has not failed, unless nobody else has.
    failed = sorted((record for record in records if record.code), key=lambda it: (it.code == REQUEUE_EXIT_CODE, it.order))
    if not failed:
        return None
    own = (record for record in failed if record.is_by_its_own_fault and record.code != REQUEUE_EXIT_CODE)
    # Without an exception it may also be one that was told to end since the first had failed.
    soon = (record for record in own if record.crash is not None or record.ended_at < failed[0].ended_at + _AT_ONCE_S)
    return next(soon, failed[0]) if failed[0].has_lost_a_peer else failed[0]


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
