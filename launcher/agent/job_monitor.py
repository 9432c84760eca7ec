"""Decides for one node's agent whether the ranks go on, restart or end, and how the job has ended."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from signal import Signals

from launcher.agent.failure_collector import FailureCollector
from launcher.agent.interrupts import Interrupts
from launcher.agent.live_reporter import LiveReporter
from launcher.agent.node_job import NodeJob
from launcher.agent.rank_processes import RankProcesses
from launcher.agent.recording_keeper import RecordingKeeper
from launcher.agent.requeue import Requeue
from launcher.exit_code import ExitCode
from launcher.failures.rank_exit import RankExit, first_failure
from launcher.failures.report import headline
from launcher.failures.restart_policy import Attempt, RestartPolicy
from launcher.hangs.detector import HangDetector
from launcher.host import reaper
from launcher.outcome import AbortReason, Outcome
from launcher.preflight.check import PreflightCheck
from mimo_role.host import node_dir

logger = logging.getLogger(__name__)


class Decision(Enum):
    """What the agent does next."""

    WAIT = "wait"
    RESTART = "restart"
    """All ranks of all nodes."""
    REQUEUE = "requeue"
    """End the ranks: the scheduler starts the job again."""
    ABORT = "abort"
    """End the ranks."""
    DONE = "done"
    """The ranks of all nodes have ended well."""


class JobMonitor:
    """Decides, again and again, as long as the ranks run."""

    def __init__(self, job: NodeJob) -> None:
        runtime = job.plan.runtime
        self.job = job
        self.restarts = RestartPolicy(runtime.max_restarts)
        self.interrupts = Interrupts()
        self.restart_reason = ""
        """Why the last `RESTART` was decided."""
        self._requeue = Requeue(runtime.grace_s, runtime.warning_s)
        self._hangs = HangDetector(job.plan, job.node_dir, job.run_dir, job.nodes, job.say)
        self._failures = FailureCollector(job)
        self._recordings = RecordingKeeper(job)
        self._live = LiveReporter(job)
        self._reason: AbortReason | None = None
        """Why this node aborts the job though no rank has failed."""
        self._done_attempt = -1
        """The attempt whose ranks are done on this node."""
        self._ranks = self._track(0, {}, dict)
        self._preflight = self._new_preflight(0)

    @property
    def attempt(self) -> int:
        """The number of the attempt, which is also the number of restarts before it."""
        return self._ranks.attempt

    def prepare_attempt(self, attempt: int) -> None:
        """Before the ranks of an attempt start: forget those of the last one."""
        self._preflight.stop()
        if attempt:
            self._end_leftovers()
            self._live.end(self.attempt)
            self._recordings.save(self.attempt)
        self._hangs.begin_attempt(attempt)
        node_dir.clear(self.job.node_dir)

    def begin_attempt(self, attempt: int, pids: Mapping[int, int], exit_codes: Callable[[], Mapping[int, int | None]]) -> None:
        """Once the ranks of an attempt have started. `exit_codes` reads those of this node's ranks."""
        self._ranks = self._track(attempt, pids, exit_codes)
        self._preflight = self._new_preflight(attempt)
        self._preflight.start()
        self._live.begin(attempt)
        logger.info("attempt %d: started %d ranks", attempt, len(pids))

    def decide(self, exit_codes: Mapping[int, int | None]) -> Decision:
        """What to do next. `exit_codes` has each rank of this node, with `None` for those that run."""
        self._reason = self._preflight.failure or self._hangs.check(self._ranks.alive(exit_codes))
        if self._reason is not None:
            return Decision.ABORT
        if self._is_done or self.job.nodes.state.abort_reason is not None:
            return self._decision_of_all_nodes()
        if self._requeue.is_pending(self.attempt, exit_codes):
            if self._requeue.is_overdue(self.attempt):
                self._ranks.signal(Signals.SIGKILL)
            return Decision.WAIT
        if self._requeue.is_complete(self.attempt, exit_codes) or set(exit_codes.values()) == {0}:
            self._report_done(exit_codes)
            return self._decision_of_all_nodes()
        return self._decide_about_failure() if any(exit_codes.values()) else Decision.WAIT

    def stop_ranks(self) -> None:
        """End the ranks of this node."""
        self._ranks.stop(self.job.plan.runtime.grace_s, self.interrupts, self.job.say)

    def warn(self, number: Signals) -> None:
        """Pass a warning that the job is about to end on to the ranks, and to no other process."""
        logger.info("%s: passed on to %d ranks", number.name, len(self._ranks.pids))
        self._requeue.warn()
        with contextlib.suppress(OSError):
            node_dir.notice_file(self.job.node_dir).touch()
        self._ranks.signal(number)

    def close(self) -> None:
        """Stop what still runs in threads."""
        self._preflight.stop()
        self._live.stop()

    def outcome(self) -> Outcome:
        """How the job has ended. To be called once the ranks of this node have."""
        return self._complete(self._find_outcome())

    def outcome_after_signal(self, number: Signals) -> Outcome:
        """How the job has ended where a signal ended mimo-launch: the ranks may have saved, and asked to be requeued."""
        nodes, state, exit_codes = self.job.nodes, self.job.nodes.state, self._ranks.exit_codes()
        # A user who presses Ctrl-C does not ask for a new start.
        is_requeue = number != Signals.SIGINT and self._requeue.is_complete(self.attempt, exit_codes)
        if self._is_done or is_requeue:
            self._report_done(exit_codes)
            # Ranks of other nodes may still be saving.
            state.wait_until(lambda: state.is_over, self._requeue.patience_s)
            if state.is_over:
                return self._complete(self._outcome_of_all_nodes())
        if is_requeue:
            return self._complete(self._requeue_all())
        outcome = Outcome.signalled(number)
        reason = f"{outcome.message} on {nodes.member}"
        nodes.abort(AbortReason(node=nodes.node_rank, message=reason, code=outcome.exit_code))
        return self._complete(outcome)

    def outcome_without_start(self, error: OSError) -> Outcome:
        """How the job has ended where the ranks of this node could not be started."""
        message = f"{self.job.node.name}: the ranks could not be started: {error}"
        return self._complete(Outcome.aborted(self._abort(message)))

    def outcome_of_other_node(self) -> Outcome:
        """How the job has ended where another node aborted it while this one started its ranks."""
        return self._complete(self._outcome_of_all_nodes())

    def _end_leftovers(self) -> None:
        """End what earlier ranks have started and left, and ranks that have lost their fork server."""
        if left := self.job.server.end_leftovers():
            logger.warning("could not kill: %s", ", ".join(map(reaper.describe, left)))

    def _track(
        self, attempt: int, pids: Mapping[int, int], exit_codes: Callable[[], Mapping[int, int | None]]
    ) -> RankProcesses:
        job = self.job
        return RankProcesses(attempt, pids, exit_codes, job.run_dir, job.node_dir, self._hangs.watch, job.nodes.count_exit)

    def _new_preflight(self, attempt: int) -> PreflightCheck:
        return PreflightCheck(self.job.plan, attempt, self.job.node_dir, self.job.nodes, self.job.say)

    @property
    def _is_done(self) -> bool:
        """Whether this node has reported the ranks of this attempt as done."""
        return self._done_attempt == self.attempt

    def _report_done(self, exit_codes: Mapping[int, int | None]) -> None:
        if not self._is_done:
            self._done_attempt = self.attempt
            requeue = self._requeue.is_complete(self.attempt, exit_codes)
            self._live.end_ranks()  # before node 0 may leave
            self.job.nodes.report_done(self.attempt, requeue=requeue)

    def _decision_of_all_nodes(self) -> Decision:
        """A node's ranks are done once those of all nodes are: until then a failure elsewhere restarts them."""
        state = self.job.nodes.state
        if state.abort_reason is not None:
            return Decision.REQUEUE if state.abort_reason.is_requeue else Decision.ABORT
        return Decision.DONE if state.all_done else Decision.WAIT

    def _decide_about_failure(self) -> Decision:
        if self.restarts.left(self.attempt) == 0:
            # Before the other ranks of this node end, which takes time, and fails ranks of other nodes.
            if not self.job.server.has_died and (failure := _first_failure(self._ranks.exits())) is not None:
                self._failures.abort_after(failure, self._ranks)
            return Decision.ABORT
        self.stop_ranks()
        failure = first_failure(self._ranks.final_exits())
        if failure is None or self.job.server.has_died:
            self.restart_reason = "the fork server of the ranks has died"
            return Decision.RESTART
        if not self.restarts.allows(self._attempts_of_all_nodes(failure)):
            self._failures.abort_after(failure, self._ranks)
            return Decision.ABORT
        self.restart_reason = headline(self.job.plan.topology, failure)
        return Decision.RESTART

    def _attempts_of_all_nodes(self, failure: RankExit) -> list[Attempt]:
        """The attempts that a rank's failure ended, on whatever node, up to this one."""
        this, store = Attempt.of(self._hangs.watch.pulses().values(), failure), self.job.nodes.store
        store.put(f"attempt/{self.attempt}", this.as_dict())
        found = [store.find(f"attempt/{number}") for number in range(self.attempt)]
        return [*(Attempt.from_dict(value) for value in found if value is not None), this]

    def _find_outcome(self) -> Outcome:
        reason = self.job.nodes.state.abort_reason
        if reason is None and self.job.nodes.state.all_done:
            return Outcome.done()
        if self._reason is not None:
            return Outcome.aborted(self._reason)
        if self._requeue.is_complete(self.attempt, self._ranks.exit_codes()):
            return self._requeue_all()
        if self.job.server.has_died and (reason is None or reason.node == self.job.nodes.node_rank):
            text = "the fork server, from which the ranks are forked, was killed or stopped; its ranks on"
            return Outcome.aborted(self._abort(f"{text} {self.job.nodes.member} ended with it"))
        report = self._failures.report(self._ranks, self.restarts.refusal)
        if report is None:
            return self._outcome_of_all_nodes()
        text = f"{report.text()}\n  all of it: {self.job.run_dir.report_file}"
        return Outcome.failed(text, report.exit_code, report.as_dict())

    def _outcome_of_all_nodes(self) -> Outcome:
        reason = self.job.nodes.state.abort_reason
        if reason is None:
            return Outcome.done()
        return Outcome.requeued() if reason.is_requeue else Outcome.aborted_elsewhere(reason)

    def _requeue_all(self) -> Outcome:
        """Abort the job in order to be requeued, unless another node has another reason."""
        self.job.nodes.abort(AbortReason.requeue(self.job.nodes.node_rank))
        return self._outcome_of_all_nodes()

    def _abort(self, message: str) -> AbortReason:
        nodes = self.job.nodes
        reason = AbortReason(node=nodes.node_rank, message=message, code=ExitCode.FAILURE)
        nodes.abort(reason)
        return reason

    def _complete(self, outcome: Outcome) -> Outcome:
        self._live.end(self.attempt)  # once the other nodes know how the job ends
        self._recordings.save(self.attempt)
        restarts = [headline(self.job.plan.topology, failure) for failure in self.restarts.restarted]
        return replace(
            outcome,
            attempts=self.attempt + 1,
            restarts=restarts,
            stragglers=self._live.stragglers,
            stragglers_left_out=self._live.stragglers_left_out,
        )


def _first_failure(exits: list[RankExit]) -> RankExit | None:
    return first_failure([each for each in exits if each.code != ExitCode.REQUEUE])
