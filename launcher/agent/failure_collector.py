"""Which rank of all nodes failed first, and what is known of it."""

from collections.abc import Sequence
from typing import Any

from launcher.agent.node_job import NodeJob
from launcher.agent.rank_processes import RankProcesses
from launcher.config.schema import Join
from launcher.failures.rank_exit import RankExit, first_failure
from launcher.failures.report import FailureReport, headline
from launcher.host import resources
from launcher.outcome import AbortReason

_OTHER_NODE_TIMEOUT_S = 1.0
"""How long a node waits for an earlier failure of another node to be the reason for the abort."""
_GATHER_S = 5.0
"""How long node 0 waits, in addition to the grace time, for the rank exits of other nodes."""


class FailureCollector:
    """Aborts the job for a rank of this node. On node 0 it also collects the rank exits of all nodes."""

    def __init__(self, job: NodeJob) -> None:
        self._job = job
        self._oom_kills = resources.oom_kills()
        self._own: int | None = None
        """The rank of this node that the job is aborted for."""

    def abort_after(self, failure: RankExit, ranks: RankProcesses) -> None:
        """Abort the job on all nodes because of a rank of this one, unless it is aborted already."""
        nodes, topology = self._job.nodes, self._job.plan.topology
        if ranks.ended_elsewhere_before(failure.order):
            # It may have failed because of the other rank.
            nodes.state.wait_until(lambda: nodes.state.is_over, _OTHER_NODE_TIMEOUT_S)
        if nodes.state.abort_reason is None:
            message = f"{headline(topology, failure)} on {nodes.member}"
            reason = AbortReason(node=nodes.node_rank, message=message, code=failure.job_code, rank=failure.rank)
            if nodes.abort(reason) == reason:
                self._own = failure.rank

    def report(self, ranks: RankProcesses, refusal: str | None) -> FailureReport | None:
        """The report of the failure, by all that is known here; `None` where it is for another node to report.

        Args:
            ranks: those of this node. All have ended.
            refusal: why the ranks are not restarted, although restarts are left.
        """
        exits = ranks.final_exits()
        if (failure := first_failure(exits)) is not None:
            self.abort_after(failure, ranks)
        kills = resources.oom_kills() - self._oom_kills
        name = f"rank_exits/{ranks.attempt}"
        nodes, reason = self._job.nodes, self._job.nodes.state.abort_reason
        nodes.store.post(name, {"exits": [each.as_dict() for each in exits], "oom_kills": kills})
        if reason is None or reason.rank is None:
            return None
        if nodes.node_rank == 0 and not nodes.store.is_lost:
            found = nodes.store.gather(name, self._job.plan.runtime.grace_s + _GATHER_S)
            exits, kills = _merge(found, reason.rank, kills)
            if reason.rank not in (each.rank for each in exits):
                return None  # its node no longer answers
        elif self._own is None:
            return None
        first = next((each for each in exits if each.rank == self._own), None)
        if first is None or first.has_lost_a_peer:
            first = first_failure(exits)
        if first is None:
            return None
        return FailureReport.of(
            self._job.plan.topology,
            exits,
            first,
            oom_kills=kills,
            joined_by_launcher=self._job.plan.runtime.join is Join.LAUNCHER,
            not_again=refusal,
        )


def _merge(found: Sequence[dict[str, Any]], rank: int, kills: int) -> tuple[list[RankExit], int]:
    """The rank exits of all nodes, and the kills for lack of memory on the host of the rank that failed first."""
    exits: list[RankExit] = []
    for node in found:
        own = [RankExit.from_dict(value) for value in node["exits"]]
        kills = node["oom_kills"] if any(each.rank == rank for each in own) else kills
        exits += own
    return exits, kills
