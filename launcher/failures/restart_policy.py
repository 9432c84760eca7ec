"""Whether the ranks are restarted after a failure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.exit_code import ExitCode
from launcher.failures.rank_exit import RankExit
from mimo_role.monitoring.heartbeat import Pulse

_PERMANENT = {
    "ImportError": "an import that fails once fails again",
    "SyntaxError": "a syntax error fails in every attempt",
    # A crash that was read from a command's output does not include the base classes of its exception.
    "ModuleNotFoundError": "an import that fails once fails again",
    "IndentationError": "a syntax error fails in every attempt",
    "TabError": "a syntax error fails in every attempt",
    "mimo_role.errors.ContextError": "the job's setup is the same in every attempt",
    "mimo_role.errors.EnvironError": "the job's setup is the same in every attempt",
    "mimo_role.errors.TopologyError": "the job's setup is the same in every attempt",
    "mimo_role.errors.AxisError": "the job's setup is the same in every attempt",
    "launcher.errors.LaunchError": "the job's setup is the same in every attempt",
}
"""Exceptions that a restart does not help against, by class, and why not."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """An attempt that a rank's failure ended."""

    first_step: int | None
    """The step that it began with; `None` if no rank reported one."""
    last_step: int | None
    failure: RankExit

    @classmethod
    def of(cls, pulses: Iterable[Pulse | None], failure: RankExit) -> "Attempt":
        """From the progress of a node's ranks."""
        # Steps that are counted anew in each attempt do not show what was saved.
        found = [pulse for pulse in pulses if pulse is not None and pulse.is_numbered]
        first = [pulse.first_step for pulse in found if pulse.first_step is not None]
        last = [pulse.last_step for pulse in found if pulse.last_step is not None]
        return cls(first_step=min(first, default=None), last_step=max(last, default=None), failure=failure)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"first_step": self.first_step, "last_step": self.last_step, "failure": self.failure.as_dict()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Attempt":
        """The inverse of `as_dict`, after JSON too."""
        return cls(**dict(value) | {"failure": RankExit.from_dict(value["failure"])})


class RestartPolicy:
    """The restarts of a job, as one node's agent counts them."""

    def __init__(self, max_restarts: int) -> None:
        self._max_restarts = max_restarts
        self.restarted: list[RankExit] = []
        """The failures of ranks of this node after which the job was restarted."""
        self.refusal: str | None = None
        """Why the ranks are not restarted, although restarts are left."""

    def left(self, attempt: int) -> int:
        """The restarts that are left in an attempt. They are counted over all nodes."""
        return max(0, self._max_restarts - attempt)

    def allows(self, attempts: Sequence[Attempt]) -> bool:
        """Whether the ranks are restarted after these attempts, the last of which has just failed."""
        self.refusal = why_not_again(attempts)
        if self.refusal is None:
            self.restarted.append(attempts[-1].failure)
        return self.refusal is None


def why_not_again(attempts: Sequence[Attempt]) -> str | None:
    """Why another attempt would not help, after these, the last of which has just failed; `None` if it may.

    An attempt has made progress if it came to a step that none before it had come to, or began with a later one than the
    attempt before it, which had then saved something. One without progress that fails as the one before did will fail so again.
    Where the failures differ, as when ranks are killed from outside, two attempts without progress in a row are too many.
    Scripts that do not number their steps (`ctx.step(number)`) are restarted as often as the config allows.
    """
    last = attempts[-1].failure
    if last.code == ExitCode.USER_ERROR:
        return "exit code 2 reports wrong arguments"
    for kind in last.crash.kinds if last.crash is not None else ():
        if kind in _PERMANENT:
            return _PERMANENT[kind]
    if not any(attempt.last_step is not None for attempt in attempts):
        return None
    fruitless = _without_progress(attempts)
    if fruitless >= 2 or (fruitless == 1 and _fails_alike(attempts[-2].failure, last)):
        furthest = max(attempt.last_step for attempt in attempts if attempt.last_step is not None)
        return f"no progress since the last restart: no attempt came further than step {furthest}"
    return None


def _without_progress(attempts: Sequence[Attempt]) -> int:
    """How many of the last attempts, each a restart, made no progress."""
    count = 0
    for number in range(len(attempts) - 1, 0, -1):
        before, this = attempts[:number], attempts[number]
        furthest = max((attempt.last_step for attempt in before if attempt.last_step is not None), default=-1)
        began = max((attempt.first_step for attempt in before if attempt.first_step is not None), default=None)
        further = this.last_step is not None and this.last_step > furthest
        later = this.first_step is not None and began is not None and this.first_step > began
        if further or later:
            break
        count += 1
    return count


def _fails_alike(one: RankExit, other: RankExit) -> bool:
    if one.code < 0 or one.has_lost_a_peer:
        return False  # from outside
    return one.signature == other.signature and one.step == other.step
