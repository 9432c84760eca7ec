"""The steps of one attempt over all its ranks, as the reports of the nodes come in."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from launcher.live.node_report import NodeReport
from launcher.live.rank_step import RankStep

_MOST_AHEAD = 20
_PATIENCE_S = 30.0
"""A step is not waited for any longer once so many later ones have been ended by some ranks, after so many seconds."""
_MOST_OPEN = 2000
"""Steps that are waited for at once."""


@dataclass(frozen=True)
class JobStep:
    """A step that all ranks have ended which record, or have not ended for too long."""

    step: int
    ranks: Mapping[int, RankStep]


class JobSteps:
    """Collects the ranks' steps until they are complete."""

    def __init__(self, nodes: int) -> None:
        """`nodes` is the number of nodes that report."""
        self._nodes = nodes
        self.recording: set[int] = set()
        """The ranks that have recorded something."""
        self._reported: set[int] = set()
        self.ended: set[int] = set()
        """The nodes whose ranks have ended."""
        self._last: dict[int, int] = {}
        """By rank: the last step that it has ended."""
        self._open: dict[int, dict[int, RankStep]] = {}
        """By step and rank."""
        self._since_s: dict[int, float] = {}
        """By step: when it was first reported."""
        self._completed = -1

    def add(self, report: NodeReport, now_s: float) -> None:
        """Take a report, at a time on any clock."""
        self._reported.add(report.node)
        self.recording.update(report.recording)
        if report.is_last:
            self.ended.add(report.node)
        for each in report.steps:
            self._last[each.rank] = max(each.step, self._last.get(each.rank, -1))
            if each.step > self._completed:
                self._open.setdefault(each.step, {})[each.rank] = each
                self._since_s.setdefault(each.step, now_s)

    @property
    def last_step(self) -> int | None:
        """The last step that all ranks have ended which record; `None` before the first, and where some record no steps."""
        return min(self._last.values()) if self._last and len(self._last) >= len(self.recording) else None

    def complete(self, now_s: float, *, is_over: bool = False) -> Iterator[JobStep]:
        """The steps that are complete by now, in order; at the end of the attempt, all."""
        for step in sorted(self._open):
            if not (is_over or self._is_complete(step) or self._is_given_up(step, now_s)):
                return
            self._completed = step
            ranks, _ = self._open.pop(step), self._since_s.pop(step)
            # Where steps are so fast that ranks report some of them only, a step may be left that few have reported.
            if 2 * len(ranks) > len(self._last):
                yield JobStep(step, ranks)

    def _is_complete(self, step: int) -> bool:
        last = self.last_step
        return last is not None and step <= last and len(self._reported) == self._nodes

    def _is_given_up(self, step: int, now_s: float) -> bool:
        is_far_behind = max(self._last.values()) >= step + _MOST_AHEAD
        return (is_far_behind and now_s > self._since_s[step] + _PATIENCE_S) or len(self._open) > _MOST_OPEN
