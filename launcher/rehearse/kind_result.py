"""How the process of one kind has ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.exit_code import ExitCode
from launcher.failures.rank_exit import RankExit
from launcher.rehearse.calls import Ended
from launcher.rehearse.kinds import Kind, described


@dataclass(frozen=True, kw_only=True)
class KindResult:
    """The end of one kind's process."""

    kind: Kind
    exit: RankExit
    seconds: float
    """From the start of its process to its end."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What the process has recorded at its end (`mimo_role/rehearsal/world.py`)."""

    calls: Mapping[str, Any] | None = None
    """The operations over its groups, in JSON; `None` of a process that was killed."""

    @property
    def overhead(self) -> float | None:
        """Seconds beside those of the script; `None` of a process that was killed."""
        return self.seconds - self.record["script_seconds"] if "script_seconds" in self.record else None

    @property
    def has_failed(self) -> bool:
        """Whether the real job would fail on these ranks."""
        return self.exit.code not in (ExitCode.SUCCESS, ExitCode.REQUEUE)

    @property
    def ended(self) -> Ended:
        """Why its calls end."""
        if self.exit.code != ExitCode.SUCCESS:
            return Ended.BY_A_FAILURE
        return Ended.BY_STEPS if self.record.get("ended_by_steps") else Ended.BY_ITSELF

    @property
    def lacks_objects(self) -> bool:
        """Whether it needed objects of ranks that had not been rehearsed."""
        return bool(self.record.get("objects_not_known"))

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "kind": self.kind.name,
            "stage": self.kind.stage,
            "ranks": described(self.kind.ranks),
            "rank_count": len(self.kind.ranks),
            "rehearsed_rank": self.kind.representative,
            "exit_code": self.exit.code,
            "ending": self.exit.ending,
            "seconds": round(self.seconds, 3),
            "overhead_seconds": None if self.overhead is None else round(self.overhead, 3),
            **self.record,
        }
