"""How a job ends: exit codes, why a job is aborted, and the outcome of a run."""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.exit_code import ExitCode
from mimo_role import MimoError

REQUEUED = "the ranks asked to be requeued"


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised in the main thread."""


@dataclass(frozen=True, kw_only=True)
class AbortReason:
    """Why a job ends before its ranks are done."""

    node: int | None
    """The index of the node that aborts the job; `None` if node 0 is lost."""
    message: str
    """What other nodes print. May have several lines on the node that aborts the job, which prints all of them."""
    code: int
    """The exit code of the job."""
    rank: int | None = None
    """The rank that failed first, if one has failed."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """For programs. Known on the node that aborts the job only."""

    @classmethod
    def of_exception(cls, error: BaseException, node: int, member: object) -> "AbortReason":
        """The reason for the other nodes, where an exception ends mimo-launch on this one, whose name is `member`."""
        if isinstance(error, Terminated):
            return cls(node=node, message=f"ended by SIGTERM on {member}", code=128 + signal.SIGTERM)
        if isinstance(error, KeyboardInterrupt):
            return cls(node=node, message=f"interrupted on {member}", code=ExitCode.INTERRUPTED)
        code = ExitCode.USER_ERROR if isinstance(error, MimoError) else ExitCode.FAILURE
        return cls(node=node, message=f"{member}: {str(error) or type(error).__name__}", code=code)

    @classmethod
    def requeue(cls, node: int) -> "AbortReason":
        """The ranks asked to be requeued."""
        return cls(node=node, message=REQUEUED, code=ExitCode.REQUEUE)

    @property
    def headline(self) -> str:
        """The first line of the message."""
        return self.message.partition("\n")[0]

    @property
    def is_requeue(self) -> bool:
        """Whether the ranks asked to be requeued."""
        return self.code == ExitCode.REQUEUE and self.rank is None

    def as_dict(self) -> dict[str, Any]:
        """The JSON form for other nodes: the headline, without the details."""
        return {"node": self.node, "message": self.headline, "code": int(self.code), "rank": self.rank}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "AbortReason":
        """The inverse of `as_dict`, after JSON too."""
        return cls(**value)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    kind: str = "done"
    """One word: `done`, `failed`, `stalled`, `refused`, `requeued`, or `ended` by a signal."""
    exit_code: int = ExitCode.SUCCESS
    message: str | None = None
    """For people; `None` after success."""
    attempts: int = 1
    restarts: Sequence[str] = ()
    """Why the ranks were restarted, each time that a rank of this node was the reason."""
    stragglers: Sequence[Mapping[str, Any]] = ()
    """On node 0: the ranks that were found to compute longer than their peers, with the attempt."""
    stragglers_left_out: int = 0
    """How many more were found, which cost less and were as fast as their peers again."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """For programs."""
    by_signal: int | None = None
    """The signal that ended mimo-launch on this node."""

    @classmethod
    def done(cls) -> "Outcome":
        """All ranks ended with exit code 0."""
        return cls()

    @classmethod
    def failed(cls, message: str, code: int, details: Mapping[str, Any]) -> "Outcome":
        """A rank failed."""
        return cls(kind="failed", exit_code=code, message=message, details=details)

    @classmethod
    def aborted(cls, reason: AbortReason) -> "Outcome":
        """This node aborted the job, and no rank has failed."""
        return cls(kind=_kind_of(reason), exit_code=reason.code, message=reason.message, details=reason.details)

    @classmethod
    def aborted_elsewhere(cls, reason: AbortReason) -> "Outcome":
        """Another node aborted the job."""
        return cls(kind=_kind_of(reason), exit_code=reason.code, message=f"ended: {reason.message}")

    @classmethod
    def requeued(cls) -> "Outcome":
        """The ranks asked to be requeued."""
        return cls(kind="requeued", exit_code=ExitCode.REQUEUE, message=f"{REQUEUED} (exit code {ExitCode.REQUEUE.value})")

    @classmethod
    def signalled(cls, number: signal.Signals) -> "Outcome":
        """A signal ended mimo-launch on this node."""
        message = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
        return cls(kind="ended", exit_code=128 + number, message=message, by_signal=number)

    @property
    def headline(self) -> str | None:
        """The first line of the message."""
        return self.message and self.message.partition("\n")[0]

    def summary(self) -> dict[str, Any]:
        """The JSON form without restarts and details."""
        return {
            "outcome": self.kind,
            "exit_code": int(self.exit_code),
            "headline": self.headline,
            "attempts": self.attempts,
        }

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, as in report.json."""
        lists = {"restarts": list(self.restarts), "stragglers": list(map(dict, self.stragglers))}
        counts = {"stragglers_left_out": self.stragglers_left_out}
        return {**self.summary(), "message": self.message, **lists, **counts, **self.details}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Outcome":
        """The inverse of `as_dict`, after JSON too; of the message the headline, without the details.

        Raises:
            LookupError, TypeError, ValueError: an item is missing or of another type.
        """
        headline = value["headline"]
        return cls(
            kind=str(value["outcome"]),
            exit_code=int(value["exit_code"]),
            message=headline and str(headline),
            attempts=int(value["attempts"]),
            restarts=tuple(map(str, value.get("restarts", ()))),
            stragglers=tuple(map(dict, value.get("stragglers", ()))),
            stragglers_left_out=int(value.get("stragglers_left_out", 0)),
        )


def _kind_of(reason: AbortReason) -> str:
    if reason.rank is not None:
        return "failed"
    kinds: dict[int, str] = {ExitCode.STALLED: "stalled", ExitCode.USER_ERROR: "refused", ExitCode.REQUEUE: "requeued"}
    return "ended" if reason.code > 128 else kinds.get(reason.code, "failed")
