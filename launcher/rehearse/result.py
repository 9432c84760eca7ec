"""What a rehearsal has found: for people and for programs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from launcher.exit_code import ExitCode
from launcher.failures.rank_exit import RankExit
from launcher.failures.report import FailureReport
from launcher.formatting import counted
from launcher.plan.launch_plan import LaunchPlan
from launcher.rehearse.call_comparison import Difference, differences
from launcher.rehearse.calls import KindCalls
from launcher.rehearse.difference_text import names_of, text_of
from launcher.rehearse.kind_result import KindResult
from launcher.rehearse.kinds import Kind, described
from launcher.rehearse.memory import MemoryResult
from launcher.rehearse.traffic import TrafficResult
from launcher.run_dir.rehearsal_result import RehearsedKind
from launcher.run_report.rehearsal_text import kinds_table


@dataclass(frozen=True, kw_only=True)
class RehearsalResult:
    """The ends of all kinds."""

    plan: LaunchPlan
    results: Sequence[KindResult]
    """In the order of the kinds."""
    memory: MemoryResult
    traffic: TrafficResult
    seconds: float
    """Of the whole rehearsal."""
    jobs: int = 1
    """Processes at the same time."""
    tensors: str | None = None
    """`fake` or `real` ones whose memory was counted; `None`: it was not."""

    @property
    def exit_code(self) -> int:
        """The exit code that the real job would have; 1 if members of a group call different operations, or if it needs more
        memory than a GPU has."""
        failed = [result for result in self.results if result.has_failed]
        if failed:
            return failed[0].exit.job_code
        if self.differences or self.memory.too_large():
            return ExitCode.FAILURE
        return max((result.exit.code for result in self.results), default=0)

    def summary(self) -> str:
        """`10,240 ranks are 17 kinds, rehearsed in 34.0 s; none failed in 2 steps`."""
        failed = sum(len(result.kind.ranks) for result in self.results if result.has_failed)
        found = [f"{_ranks(failed)} would fail"] if failed else []
        if self.differences:
            found.append(f"the ranks of {counted(len(self.differences), 'group')} do not call the same")
        if large := self.memory.ranks_too_large():
            need, their = ("needs", "its") if large == 1 else ("need", "their")
            found.append(f"{_ranks(large)} {need} more memory than {their} GPU has")
        steps = max((result.record.get("steps", 0) for result in self.results), default=0)
        outcome = "; ".join(found) or ("none failed" + (f" in {counted(steps, 'step')}" if steps else ""))
        count = counted(len(self.results), "kind")
        world = self.plan.topology.world_size
        ranks = "1 rank is" if world == 1 else f"{world:,} ranks are"
        return f"{ranks} {count}, rehearsed in {self.seconds:.1f} s; {outcome}"

    def table(self) -> str:
        """A line for each kind."""
        return kinds_table([RehearsedKind.of(result.as_dict()) for result in self.results])

    def failures(self) -> list[str]:
        """The failures, each with the ranks that it would hit; kinds that fail alike are one."""
        return [self._failure(alike) for alike in self._alike()]

    def call_failures(self) -> list[str]:
        """The groups whose members call different operations, each with who calls what."""
        return [text_of(difference, self._kinds) for difference in self.differences]

    @cached_property
    def differences(self) -> Sequence[Difference]:
        """The first different calls over each group."""
        calls = [KindCalls.of(each.kind, each.calls, each.ended) for each in self.results if each.calls is not None]
        return differences(calls)

    @property
    def _kinds(self) -> list[Kind]:
        return [result.kind for result in self.results]

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "world_size": self.plan.topology.world_size,
            "plan": self.plan.digest,
            "seconds": round(self.seconds, 3),
            "jobs": self.jobs,
            "tensors": self.tensors,
            "exit_code": self.exit_code,
            "summary": self.summary(),
            "kinds": [result.as_dict() | {"traffic": self.traffic.of(result)} for result in self.results],
            "failures": self.failures(),
            "call_failures": self.call_failures(),
            "memory_failures": self.memory.too_large(),
            "step_traffic": self.traffic.of_groups(),
        }

    def _alike(self) -> Iterator[list[KindResult]]:
        found: dict[tuple[object, ...], list[KindResult]] = {}
        for result in self.results:
            if result.has_failed:
                found.setdefault(_signature(result.exit), []).append(result)
        yield from found.values()

    def _failure(self, alike: Sequence[KindResult]) -> str:
        first = alike[0]
        report = FailureReport.of(self.plan.topology, [first.exit], first.exit, oom_kills=0, joined_by_launcher=True).text()
        ranks = [rank for result in alike for rank in result.kind.ranks]
        where = names_of([result.kind for result in alike], self._kinds)
        _, _, *rest = report.splitlines()  # which rank failed first, and on which host: of a real run
        step = "" if first.exit.step is None else f", in step {first.exit.step}"
        rehearsed = f"  rehearsed as rank {first.exit.rank} ({self.plan.topology.label_of(first.exit.rank)}){step}"
        return "\n".join([f"{where} ({described(ranks)}): {first.exit.ending}", rehearsed, *rest])


def _signature(found: RankExit) -> tuple[object, ...]:
    """Equal for kinds that failed alike. Those that were stopped in a loop need not have been on the same line of it."""
    if found.code != ExitCode.STALLED or found.crash is None:
        return found.signature
    return (found.code, *((frame.file, frame.function) for frame in found.crash.frames if frame.is_users))


def _ranks(number: int) -> str:
    return "1 rank" if number == 1 else f"{number:,} ranks"
