"""How the agents of several nodes act together. `SingleNode` has the same interface."""

import json
import time
from dataclasses import replace
from typing import Any

from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed import Store as TorchStore  # type: ignore[attr-defined]

from launcher.console import Say
from launcher.coordination import store as stores
from launcher.coordination.clock import ClockServer, measure
from launcher.coordination.clock_offset import ClockOffset
from launcher.coordination.event_log import Event, EventLog, JobState
from launcher.coordination.liveness import Liveness, Progress
from launcher.coordination.member import Member
from launcher.coordination.membership import Membership
from launcher.coordination.node_identity import LocalNode
from launcher.coordination.reports import Reports
from launcher.errors import LaunchError
from launcher.exit_code import ExitCode
from launcher.outcome import AbortReason, Outcome
from launcher.plan.launch_plan import LaunchPlan
from mimo_role import rank_store


class Coordinator:
    """This agent's part. `meet()` first, `leave()` last."""

    poll_s = 0.05
    """Seconds between two looks at the store for something that other nodes write: each is a round trip."""

    def __init__(self, plan: LaunchPlan, node: LocalNode, host: str) -> None:
        """Connect to node 0's store, or start it. `host` is this machine's name.

        Raises:
            LaunchError: the port is taken, or node 0 does not answer.
        """
        assert node.endpoint is not None
        names, timeout_s = [each.name for each in plan.nodes], plan.runtime.timeout_s
        deadline = time.monotonic() + timeout_s
        if node.node_rank == 0:
            self.store = stores.serve(node.endpoint, names[0], len(names))
        else:
            self.store = stores.connect(node.endpoint, names[0], timeout_s, node=node.node_rank, nodes=len(names))
        self.state = JobState()
        self.member = Member(node=node.node_rank, name=names[node.node_rank], host=host, digest=plan.digest)
        self._is_srun_task = node.slurm_job is not None
        self._log = EventLog(self.store, self.state)
        self._membership = Membership(self._log, self.member, names, timeout_s, deadline)
        self._liveness = Liveness(self._log)
        self._reports = Reports(self.store)
        self._clock_server = ClockServer(self.store.tcp) if node.node_rank == 0 else None
        self._clock: ClockOffset | None = None
        """As it was last measured."""

    @property
    def node_rank(self) -> int:
        """This node's index among the plan's nodes."""
        return self.member.node

    def meet(self, run_id: str, say: Say) -> None:
        """Wait until all nodes are there with the same plan. Node 0's `run_id` holds for all.

        Raises:
            LaunchError: a node is missing, came twice, or has another plan.
        """
        self._reports.open()
        self._membership.join()
        self._liveness.start()
        if self._clock_server is not None:
            self._clock_server.start()
        self._membership.wait_for_all(run_id, say)
        self.measure_clock()

    def leave(self, timeout_s: float) -> None:
        """Leave the job. Node 0 keeps the store for the others: they read from it why the job ends.

        Args:
            timeout_s: how long the others may take to stop their ranks.
        """
        self._liveness.stop()
        self._membership.leave(timeout_s)
        if self._clock_server is not None and self._membership.is_member:
            self._clock_server.stop()

    def measure_clock(self) -> ClockOffset | None:
        """How far this node's clock is from node 0's now, else as it was last measured; `None` if it never could be."""
        if self._clock_server is not None:
            return ClockOffset.none(time.monotonic_ns())
        if not self.store.is_lost:
            self._clock = measure(self.store.tcp) or self._clock
        return self._clock

    def abort(self, reason: AbortReason) -> AbortReason:
        """End the job on all nodes. Returns the reason that was given first, on whatever node."""
        return self._log.abort(reason)

    def abort_after(self, error: BaseException) -> None:
        """End the job on all nodes, as an exception ends mimo-launch on this one."""
        if self._membership.is_member and self.state.abort_reason is None:
            self.abort(AbortReason.of_exception(error, self.node_rank, self.member))

    def start_attempt(self, attempt: int) -> None:
        """Have the ranks of all nodes started, for the attempt with this number."""
        if attempt > self.state.attempt:
            self.state.apply(Event.ATTEMPT, attempt)
            self._log.append(Event.ATTEMPT, attempt)

    def open_rank_store(self, attempt: int) -> tuple[TorchStore, str, int]:
        """The store that the ranks of an attempt join over, on node 0; its address, and its port.

        Raises:
            LaunchError: the job is aborted before there is one.
        """
        if self.node_rank == 0:
            tcp = rank_store.serve(self.store.address)
            self._log.append(Event.PORT, [attempt, tcp.port])
            return tcp, self.store.address, tcp.port
        self.state.wait_until(lambda: attempt in self.state.ports or self.state.abort_reason is not None)
        if attempt not in self.state.ports:
            raise LaunchError(self.state.abort_reason.message if self.state.abort_reason is not None else "")
        # For torchelastic alone, which asks it nothing: ranks have their numbers by the plan.
        return HashStore(), self.store.address, self.state.ports[attempt]

    def count_exit(self, attempt: int) -> int:
        """A rank of this node has ended: its place among the ranks of an attempt that have, on all nodes."""
        return self.store.count(f"exits/{attempt}", 1)

    def report_progress(self, progress: Progress) -> None:
        """What this node's ranks do. Once no node makes progress, `state.probes` grows."""
        self._liveness.progress = progress

    def send_report(self, report: Any) -> None:
        """Send a JSON value to node 0, which nobody waits for. It is lost if node 0 does not collect for too long."""
        self._reports.send(report)

    def collect_reports(self) -> list[Any]:
        """On node 0: what nodes have sent since the last call, of each node in its order."""
        return self._reports.collect()

    def send_verdict(self, attempt: int, verdict: str) -> None:
        """On node 0: whether the ranks of an attempt may go on."""
        self._log.append(Event.VERDICT, [attempt, verdict])

    def report_done(self, attempt: int, *, requeue: bool) -> None:
        """The ranks of this node have ended well, or asked to be requeued. They may be restarted until all nodes are done.

        If ranks of any node asked to be requeued, the job is aborted for that, once all nodes are done.
        """
        tcp = self.store.tcp
        reason = AbortReason.requeue(self.node_rank).as_dict()

        def count() -> None:
            if requeue:
                tcp.compare_set(f"requeue/{attempt}", "", json.dumps(reason))
            if tcp.add(f"done/{attempt}", 1) < self.store.nodes:
                return
            if tcp.check([f"requeue/{attempt}"]):
                self._log.add(Event.ABORT, self._log.set_first_abort(tcp.get(f"requeue/{attempt}").decode()))
            else:
                self._log.add(Event.DONE, None)

        self.store.ask(count)

    def as_seen_by_scheduler(self, outcome: Outcome) -> Outcome:
        """Under srun, node 0 alone reports the exit code.

        srun returns the highest one of all tasks, and kills the others.
        """
        if not self._is_srun_task or self.node_rank == 0 or self.store.is_lost or outcome.by_signal is not None:
            return outcome
        return replace(outcome, exit_code=ExitCode.SUCCESS, message=None)
