"""Whether the ranks are started again after a failure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.failures.rank_exit import RankExit
from mimo_role.monitoring.heartbeat import Pulse

_HOPELESS = {
    "ImportError": "an import that fails once fails again",
    "SyntaxError": "code that Python cannot read stays so",
    # Of an exception that was found in a command's output, the classes that it is derived from are not known.
    "ModuleNotFoundError": "an import that fails once fails again",
    "IndentationError": "code that Python cannot read stays so",
    "TabError": "code that Python cannot read stays so",
    "mimo_role.errors.ContextError": "the job's set-up stays as it is",
    "mimo_role.errors.EnvironError": "the job's set-up stays as it is",
    "mimo_role.errors.TopologyError": "the job's set-up stays as it is",
    "mimo_role.errors.AxisError": "the job's set-up stays as it is",
    "launcher.errors.LaunchError": "the job's set-up stays as it is",
}
_USER_ERROR = 2


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """How far one start of the ranks came, and how it ended."""

    first_step: int | None
    """The step that it began with; `None` if no rank came to one."""
    last_step: int | None
    failure: RankExit

    @classmethod
    def of(cls, pulses: Iterable[Pulse | None], failure: RankExit) -> "Attempt":
        """From what the ranks of a node have said of their progress."""
        # Steps that are counted from each start say nothing about what was saved.
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


def why_not_again(attempts: list[Attempt]) -> str | None:
    """Why another start would be in vain, after these, the last of which has just failed; `None` if it may help.

    A start has made progress if it came to a step that none before it had come to, or began with a later one than the start
    before it, which had then saved something. One without progress that fails as the one before did will fail so again. Where
    the failures differ, as when somebody else ends ranks, two in a row without progress are too many. Scripts that do not
    number their steps (`ctx.step(number)`) are started again as often as the config allows.
    """
    last = attempts[-1].failure
    if last.code == _USER_ERROR:
        return "exit code 2 says that the script was called in a wrong way"
    for kind in last.crash.kinds if last.crash is not None else ():
        if kind in _HOPELESS:
            return _HOPELESS[kind]
    if not any(attempt.last_step is not None for attempt in attempts):
        return None
    fruitless = _fruitless(attempts)
    if fruitless >= 2 or (fruitless == 1 and _fails_alike(attempts[-2].failure, last)):
        furthest = max(attempt.last_step for attempt in attempts if attempt.last_step is not None)
        return f"no progress since the last restart: step {furthest} is as far as any start came"
    return None


def _fruitless(attempts: list[Attempt]) -> int:
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
