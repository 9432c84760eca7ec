"""The steps of one attempt over all its ranks, as the reports of the nodes come in."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from launcher.steps.node_report import NodeReport
from launcher.steps.rank_step import RankStep

_MOST_AHEAD = 20
_PATIENCE_S = 30.0
"""Ranks are not waited for any longer once others have ended so many later steps, after so many seconds."""
_MOST_OPEN, _LEAST_OPEN = 20_000, 2000
"""Steps that are waited for at once: on one node, and on many."""


@dataclass(frozen=True)
class JobStep:
    """A step that all ranks have ended which are waited for."""

    step: int
    ranks: Mapping[int, RankStep]


class JobSteps:
    """Collects the ranks' steps until they are complete.

    Ranks that record are waited for. Those that are far behind others for too long, or that have ended there, are left out
    until they catch up, so that they delay no further step.
    """

    def __init__(self, nodes: int) -> None:
        """`nodes` is the number of nodes that report."""
        self._unreported = set(range(nodes))
        """The nodes that are waited for, as they may have ranks that record."""
        self._most_open = max(_MOST_OPEN // nodes, _LEAST_OPEN)
        self.recording: set[int] = set()
        """The ranks that have recorded something."""
        self.ended: set[int] = set()
        """The nodes whose ranks have ended."""
        self._ended_ranks: set[int] = set()
        self._left_out: set[int] = set()
        """The ranks that are not waited for."""
        self._last: dict[int, int] = {}
        """By rank: the last step that it has ended."""
        self._open: dict[int, dict[int, RankStep]] = {}
        """By step and rank."""
        self._since_s: dict[int, float] = {}
        """By step: when it was first reported."""
        self._completed = -1

    def add(self, report: NodeReport, now_s: float) -> None:
        """Take a report, at a time on any clock."""
        self._unreported.discard(report.node)
        self.recording.update(report.recording)
        if report.is_last:
            self.ended.add(report.node)
            self._ended_ranks.update(report.recording)
        for each in report.steps:
            self._last[each.rank] = max(each.step, self._last.get(each.rank, -1))
            if each.step > self._completed:
                self._left_out.discard(each.rank)
                self._open.setdefault(each.step, {})[each.rank] = each
                self._since_s.setdefault(each.step, now_s)

    @property
    def last_step(self) -> int | None:
        """The last step that all ranks have ended which are waited for; `None` before the first, or if some record no steps."""
        last = min((self._last.get(rank, -1) for rank in self.recording - self._left_out), default=-1)
        return last if last >= 0 else None

    def complete(self, now_s: float, *, is_over: bool = False) -> Iterator[JobStep]:
        """The steps that are complete by now, in order; at the end of the attempt, all."""
        last = self._last_complete()
        for step in sorted(self._open):
            if step > last and self._leave_out(step, now_s):
                last = self._last_complete()
            if step > last and not is_over and len(self._open) <= self._most_open:
                return
            self._completed = step
            ranks, _ = self._open.pop(step), self._since_s.pop(step)
            # Where steps are so fast that ranks report some of them only, a step may be left that few have reported.
            if 2 * len(ranks) > len(self._last.keys() - self._left_out):
                yield JobStep(step, ranks)

    def _last_complete(self) -> int:
        last = self.last_step
        return -1 if last is None or self._unreported else last

    def _leave_out(self, step: int, now_s: float) -> bool:
        """No longer wait for ranks and nodes that hold up a step for too long; return whether there are any."""
        if max(self._last.values()) < step + _MOST_AHEAD:
            return False
        late = {rank for rank in self.recording - self._left_out if self._last.get(rank, -1) < step}
        late_nodes: set[int] = set()
        if now_s > self._since_s[step] + _PATIENCE_S:
            late_nodes, self._unreported = self._unreported, late_nodes
        else:
            late &= self._ended_ranks
        self._left_out |= late
        return bool(late or late_nodes)
