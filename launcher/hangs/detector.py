"""Detects that no rank makes progress, or that ranks do not come to join, and has all probed for the one they wait for."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from launcher.console import Say
from launcher.coordination.liveness import Progress
from launcher.coordination.nodes import Nodes
from launcher.exit_code import ExitCode
from launcher.hangs.probe import RankSnapshot, probe_ranks
from launcher.hangs.progress import JoiningWatch, ProgressWatch
from launcher.hangs.report import HangReport
from launcher.outcome import AbortReason
from launcher.plan.launch_plan import LaunchPlan
from launcher.run_dir.writer import RunDir

_GATHER_TIMEOUT_S = 10.0
_JOINING_SHARE, _JOINING_EXTRA_S = 1.1, 5.0
"""How long ranks may join, beside `timeout_s`: torch has that limit for most of joining, and its errors come first."""


class HangDetector:
    """Probes the ranks of one node when the job hangs. On node 0 it also decides whether the job ends."""

    def __init__(self, plan: LaunchPlan, node_dir: Path, run_dir: RunDir, nodes: Nodes, say: Say) -> None:
        self._plan = plan
        self._node_dir = node_dir
        self._run_dir = run_dir
        self._nodes = nodes
        self._say = say
        self._probes = 0
        """How often the ranks of this node were probed."""
        self.begin_attempt(0)

    def begin_attempt(self, attempt: int) -> None:
        """Watch the ranks of a new attempt."""
        self._attempt = attempt
        ranks = self._plan.nodes[self._nodes.node_rank].ranks
        self.watch = ProgressWatch(self._node_dir, ranks, self._plan.runtime.stall_timeout_s)
        self._joining = JoiningWatch(self._node_dir, ranks, self._joining_limit_s)

    def check(self, alive: Mapping[int, int]) -> AbortReason | None:
        """Why the job is aborted, if no node makes progress or ranks do not come to join. To be called again and again.

        Args:
            alive: the processes of this node's ranks that have not ended.
        """
        self._nodes.report_progress(self._progress(alive))
        if self._probes == self._nodes.state.probes:
            return None
        self._probes = self._nodes.state.probes
        name = f"snapshots/{self._probes}"
        self._nodes.store.post(name, [snapshot.as_dict() for snapshot in self._probe(alive)])
        if self._nodes.node_rank != 0:
            return None
        found = self._nodes.store.gather(name, _GATHER_TIMEOUT_S)
        reason = self._judge([RankSnapshot.from_dict(value) for snapshots in found for value in snapshots])
        if reason is not None:
            self._nodes.abort(reason)
        return reason

    @property
    def _joining_limit_s(self) -> float:
        return _JOINING_SHARE * self._plan.runtime.timeout_s + _JOINING_EXTRA_S

    def _progress(self, alive: Mapping[int, int]) -> Progress:
        # Both are polled.
        if self.watch.is_stalled(alive) | self._joining.is_overdue(alive):
            return Progress.STALLED
        if not alive:
            return Progress.DONE
        return Progress.UNKNOWN if self.watch.is_silent else Progress.MOVING

    def _probe(self, alive: Mapping[int, int]) -> list[RankSnapshot]:
        steps = {rank: self.watch.last_step(rank) for rank in alive}
        found = probe_ranks(self._node_dir, alive, steps, partial(self._run_dir.stacks_file, self._attempt))
        self.watch.reset()
        return [replace(snapshot, joining_s=self._joining.seconds.get(snapshot.rank)) for snapshot in found]

    def _judge(self, snapshots: list[RankSnapshot]) -> AbortReason | None:
        """Ranks that are busy, or wait within their limits, may go on, unless the config sets a limit."""
        runtime = self._plan.runtime
        joining_s = max((snapshot.joining_s or 0.0 for snapshot in snapshots), default=0.0)
        is_joining = joining_s > self._joining_limit_s
        still_s = round(joining_s, 1) if is_joining else runtime.stall_timeout_s
        report = HangReport.of(self._plan.topology, still_s, snapshots, is_joining=is_joining)
        text = report.text(self._run_dir.stacks_file(self._attempt, "*"))
        if runtime.stall_timeout_is_default and not report.is_beyond_doubt:
            self._say(f"warning: {text}\n  no rank waits longer than its limit; runtime.stall_timeout_s=... would end the job")
            return None
        return AbortReason(node=0, message=text, code=ExitCode.STALLED, details=report.as_dict())
