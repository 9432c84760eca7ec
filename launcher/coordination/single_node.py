"""A job on one node, with the interface of `Coordinator`: there is nobody to wait for."""

import time
from typing import Any

from torch.distributed import Store as TorchStore  # type: ignore[attr-defined]

from launcher.coordination.clock_offset import ClockOffset
from launcher.coordination.event_log import Event, JobState
from launcher.coordination.liveness import ProbeTrigger, Progress
from launcher.coordination.member import Member
from launcher.coordination.reports import LocalReports
from launcher.coordination.store import LocalStore
from launcher.outcome import AbortReason, Outcome
from launcher.plan.launch_plan import LaunchPlan
from mimo_role import rank_store

_LOOPBACK = "127.0.0.1"


class SingleNode:
    """The only agent of a job."""

    node_rank = 0
    poll_s = 0.005

    def __init__(self, plan: LaunchPlan, host: str, run_id: str) -> None:
        self.store = LocalStore()
        self.state = JobState()
        self.member = Member(node=0, name=plan.nodes[0].name, host=host, digest=plan.digest)
        self.state.run_id, self.state.members = run_id, (self.member,)
        self._probe_trigger = ProbeTrigger()
        self._reports = LocalReports()

    def abort(self, reason: AbortReason) -> AbortReason:
        """End the job. Returns the reason that was given first."""
        self.state.apply(Event.ABORT, reason.as_dict())
        return self.state.abort_reason or reason

    def start_attempt(self, attempt: int) -> None:
        """The attempt with this number begins."""
        self.state.apply(Event.ATTEMPT, attempt)

    def open_rank_store(self, attempt: int) -> tuple[TorchStore, str, int]:  # noqa: ARG002 (each call opens a new one)
        """The store that the ranks of an attempt join over; its address, and its port."""
        tcp = rank_store.serve(_LOOPBACK)
        return tcp, _LOOPBACK, tcp.port

    def count_exit(self, attempt: int) -> int:
        """A rank has ended: its place among the ranks of an attempt that have."""
        return self.store.count(f"exits/{attempt}", 1)

    def measure_clock(self) -> ClockOffset | None:
        """How far this node's clock is from its own."""
        return ClockOffset.none(time.monotonic_ns())

    def report_progress(self, progress: Progress) -> None:
        """What the ranks do. Once they make no progress, `state.probes` grows."""
        if self._probe_trigger.fires({progress}):
            self.state.apply(Event.PROBE, self.state.probes + 1)

    def send_report(self, report: Any) -> None:
        """Keep a value until it is collected."""
        self._reports.send(report)

    def collect_reports(self) -> list[Any]:
        """What was sent since the last call."""
        return self._reports.collect()

    def send_verdict(self, attempt: int, verdict: str) -> None:
        """Whether the ranks of an attempt may go on."""
        self.state.apply(Event.VERDICT, [attempt, verdict])

    def report_done(self, attempt: int, *, requeue: bool) -> None:  # noqa: ARG002 (no other node starts another attempt)
        """The ranks have ended well, or asked to be requeued."""
        if requeue:
            self.abort(AbortReason.requeue(self.node_rank))
        else:
            self.state.apply(Event.DONE, None)

    def as_seen_by_scheduler(self, outcome: Outcome) -> Outcome:
        """The outcome as it is: this node alone reports it."""
        return outcome
