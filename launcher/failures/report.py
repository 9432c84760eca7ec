"""The report of a failed job: which rank failed first, in which role and why, and how the others exited."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.failures.hints import FailureContext, hint_for
from launcher.failures.rank_exit import RankExit
from launcher.formatting import describe_ranks, shortened
from mimo_role import Topology

_SHOWN_LINES = 6
_LINE_LIMIT = 300
_SHOWN_FRAMES = 8
_SHOWN_GROUPS = 4


@dataclass(frozen=True, kw_only=True)
class FailureReport:
    """A failure, with the rank exits of all nodes that have reported."""

    topology: Topology
    first: RankExit
    others: Sequence[RankExit]
    """The other ranks, in the order in which they exited."""
    hint: str | None = None
    not_again: str | None = None
    """Why the ranks were not restarted, although restarts are left."""

    @classmethod
    def of(
        cls,
        topology: Topology,
        records: Sequence[RankExit],
        first: RankExit,
        *,
        oom_kills: int,
        joined_by_launcher: bool,
        not_again: str | None = None,
    ) -> "FailureReport":
        """Make the report from the rank exits of all agents."""
        in_order = sorted(records, key=lambda record: record.order)
        others = [record for record in in_order if record.rank != first.rank]
        failure = FailureContext(
            record=first,
            topology=topology,
            others=others,
            oom_kills=oom_kills,
            joined_by_launcher=joined_by_launcher,
        )
        return cls(topology=topology, first=first, others=others, hint=hint_for(failure), not_again=not_again)

    @property
    def exit_code(self) -> int:
        """The exit code of the job."""
        return self.first.job_code

    @property
    def headline(self) -> str:
        """Which rank failed first, in which role, and how it exited."""
        return headline(self.topology, self.first)

    def text(self) -> str:
        """The report for people."""
        lines = [self.headline, f"  on {self.first.host}{_at_step(self.first)}"]
        lines += [f"  {line}" for line in _cause(self.first)]
        lines += [f"  {line}" for line in self._of_others()]
        if self.not_again is not None:
            lines.append(f"  not restarted: {self.not_again}")
        if self.hint is not None:
            lines.append(f"  hint: {self.hint}")
        lines += [f"  output: {log}" for log in self.first.logs[:1]]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The report for programs."""
        first = self.first
        return {
            "headline": self.headline,
            "first": _for_programs(self.topology, first),
            "hint": self.hint,
            "not_started_again": self.not_again,
            "others": [
                {"ending": records[0].ending, "who": describe_ranks(self.topology, ranks), "ranks": ranks}
                for records in _groups(self.others)
                for ranks in [sorted(record.rank for record in records)]
            ],
            "ranks": [_for_programs(self.topology, record) for record in (first, *self.others)],
        }

    def _of_others(self) -> Iterable[str]:
        alike = [record for record in self.others if record.signature == self.first.signature and not record.was_ended]
        if alike:
            yield f"the same on {_others(self.topology, [record.rank for record in alike])}"
        same = {record.rank for record in alike}
        after = [record for record in self.others if record.code and record.rank not in same and not record.was_ended]
        groups = _groups(after)
        for records in groups[:_SHOWN_GROUPS]:
            ranks = [record.rank for record in records]
            yield f"then {_others(self.topology, ranks)}: {shortened(records[0].ending)}"
        if len(groups) > _SHOWN_GROUPS:
            yield f"and {sum(map(len, groups[_SHOWN_GROUPS:]))} more ranks in other ways"


def headline(topology: Topology, record: RankExit) -> str:
    """Which rank failed first, in which role, and how it exited."""
    return f"rank {record.rank} ({topology.label_of(record.rank)}) failed first: {record.ending}"


def _others(topology: Topology, ranks: list[int]) -> str:
    count = f"{len(ranks)} other ranks: " if len(ranks) > 1 else ""
    return count + describe_ranks(topology, ranks)


def _at_step(record: RankExit) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(record.ended_at))
    return f", at {at}" + (f", in step {record.step}" if record.step is not None else "")


def _cause(record: RankExit) -> list[str]:
    """The user's frames and the exception, or without one the last lines of the output."""
    crash = record.crash
    if crash is None or (not crash.frames and crash.kind == "SystemExit"):
        return [f"| {line}" for line in record.tail[-_SHOWN_LINES:]]
    own = [frame for frame in crash.frames if frame.is_users]
    shown = (own or list(crash.frames))[-_SHOWN_FRAMES:]
    # The first line of the message is in the headline. Of a traceback inside it, the last line is the most specific.
    lines = [f"| {line[:_LINE_LIMIT]}" for line in _ends_of(crash.text.strip().splitlines()[1:])]
    for frame in shown:
        lines.append(f"{_short(frame.file)}:{frame.line} in {frame.function}")
        lines += [f"    {frame.source}"] if frame.source else []
    if own and not crash.frames[-1].is_users:
        last = crash.frames[-1]
        lines.append(f"... {last.file.rpartition('site-packages/')[2]}:{last.line} in {last.function}")
    return lines + [cause.partition("\n")[0][:_LINE_LIMIT] for cause in crash.causes]


def _ends_of(lines: list[str]) -> list[str]:
    if len(lines) <= _SHOWN_LINES:
        return lines
    half = _SHOWN_LINES // 2
    return [*lines[:half], "...", *lines[-half:]]


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def _groups(records: Sequence[RankExit]) -> list[list[RankExit]]:
    found: dict[tuple[object, ...], list[RankExit]] = {}
    for record in records:
        found.setdefault(record.signature, []).append(record)
    return list(found.values())


def _for_programs(topology: Topology, record: RankExit) -> dict[str, Any]:
    place = {"label": topology.label_of(record.rank), "coords": topology.coords_of(record.rank)}
    role = {"role": topology.role_of(record.rank).as_dict()}
    return record.as_dict() | place | role | {"ending": record.ending}
