"""Detects that no node's ranks make progress, and has all of them probed for the rank that holds up the others."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from launcher.console import Say
from launcher.coordination.liveness import Progress
from launcher.coordination.nodes import Nodes
from launcher.exit_code import ExitCode
from launcher.hangs.probe import RankSnapshot, probe_ranks
from launcher.hangs.progress import ProgressWatch
from launcher.hangs.report import HangReport
from launcher.outcome import AbortReason
from launcher.plan.launch_plan import LaunchPlan
from launcher.run_dir.writer import RunDir

_GATHER_TIMEOUT_S = 10.0


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

    def check(self, alive: Mapping[int, int]) -> AbortReason | None:
        """Why the job is aborted, if no node makes progress. To be called again and again.

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

    def _progress(self, alive: Mapping[int, int]) -> Progress:
        if self.watch.is_stalled(alive):
            return Progress.STALLED
        if not alive:
            return Progress.DONE
        return Progress.UNKNOWN if self.watch.is_silent else Progress.MOVING

    def _probe(self, alive: Mapping[int, int]) -> list[RankSnapshot]:
        steps = {rank: self.watch.last_step(rank) for rank in alive}
        found = probe_ranks(self._node_dir, alive, steps, partial(self._run_dir.stacks_file, self._attempt))
        self.watch.reset()
        return found

    def _judge(self, snapshots: list[RankSnapshot]) -> AbortReason | None:
        """Ranks that are busy, or wait within their limits, may go on, unless the config sets a limit."""
        report = HangReport.of(self._plan.topology, self._plan.runtime.stall_timeout_s, snapshots)
        text = report.text(self._run_dir.stacks_file(self._attempt, "*"))
        if self._plan.runtime.stall_timeout_is_default and not report.is_beyond_doubt:
            self._say(f"warning: {text}\n  no rank waits longer than its limit; runtime.stall_timeout_s=... would end the job")
            return None
        return AbortReason(node=0, message=text, code=ExitCode.STALLED, details=report.as_dict())
