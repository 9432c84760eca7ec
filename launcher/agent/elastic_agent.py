"""torchelastic's agent, taught which rank failed first, who makes no progress, and what the other nodes' agents do."""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from signal import Signals
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, Worker, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

import launcher.worker.entrypoint
from launcher.agent.rank_processes import RankProcesses
from launcher.agent.torchelastic_private import exit_codes_of, processes_of
from launcher.console import Say
from launcher.coordination.coordinator import Coordinator
from launcher.coordination.membership import AbortReason
from launcher.coordination.node_identity import LocalNode
from launcher.coordination.rendezvous import LOOPBACK, PlanRendezvous
from launcher.failures.rank_exit import RankExit, first_failure
from launcher.failures.report import headline
from launcher.failures.restart_policy import Attempt, why_not_again
from launcher.hangs.detector import HangDetector
from launcher.hangs.progress import ProgressWatch
from launcher.host import fork_server, reaper
from launcher.logs.log_specs import RunDirLogsSpecs
from launcher.outcome import REQUEUED, Problem
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.placement import Node
from launcher.preflight.check import PreflightCheck
from launcher.run_dir.writer import RunDir
from mimo_role import REQUEUE_EXIT_CODE
from mimo_role.monitoring import node_dir
from mimo_role.preemption.notice import NOTICE

logger = logging.getLogger(__name__)

MONITOR_INTERVAL_S = 0.05
_OTHERS_FIRST_S = 1.0


class ElasticAgent(LocalElasticAgent):
    """The agent of one of the plan's nodes."""

    def __init__(
        self,
        plan: LaunchPlan,
        here: LocalNode,
        run_dir: RunDir,
        folder: Path,
        logs: RunDirLogsSpecs,
        control: Coordinator | None,
        say: Say,
    ) -> None:
        """`folder` is the one that this node's ranks share with their agent; `say` hears what a waiting user wants to know."""
        self._plan = plan
        self._node: Node = plan.nodes[here.node_rank]
        self._node_rank = here.node_rank
        self._run_dir = run_dir
        self._folder = folder
        self._logs = logs
        self._say = say
        self.control = control
        self._processes: dict[int, BaseProcess] = {}
        self._pids: dict[int, int] = {}
        self._ends: RankProcesses | None = None
        self.watch = ProgressWatch(folder, self._node.ranks, plan.runtime.stall_timeout_s)
        self._standstill = HangDetector(plan, here.node_rank, folder, run_dir, control, say)
        self._arrivals: PreflightCheck | None = None
        self.attempts: list[Attempt] = []
        """The starts of the ranks that one of this node has ended."""
        self.problem: Problem | None = None
        """Why the job ends, if no rank has failed."""
        self.not_again: str | None = None
        """Why the ranks are not started again, though the budget would allow it."""
        self.told: RankExit | None = None
        """The rank of this node that the job ends because of."""
        self._done: int | None = None
        """The start whose ranks are done here."""
        self._asked_at: float | None = None
        """When a rank of this start was first seen to have ended in order to be started again."""
        self._killed = False
        """Whether ranks were killed since they did not end in their time."""
        self.patience_s = plan.runtime.grace_s
        """How long ranks may take to end: after SIGTERM, or after a warning."""
        self._plan_rendezvous = PlanRendezvous(run_dir.run_id, here.node_rank, len(plan.nodes), control)
        super().__init__(
            _spec(plan, self._node, run_dir, self._plan_rendezvous),
            logs,
            start_method=plan.runtime.start_method.value,
            shutdown_timeout=max(1, round(plan.runtime.grace_s)),
        )

    @property
    def host(self) -> str:
        """This machine's name."""
        return socket.gethostname()

    @property
    def attempt(self) -> int:
        """How often the ranks have been started again."""
        return max(0, self._plan_rendezvous.attempt)

    def warn(self, number: Signals) -> None:
        """Pass a warning on to the ranks, and to no other process."""
        logger.info("%s: passed on to %d ranks", number.name, len(self._pids))
        self.patience_s = max(self._plan.runtime.grace_s, self._plan.runtime.warning_s)
        with contextlib.suppress(OSError):
            (self._folder / NOTICE).touch()
        ended = self._ends.so_far() if self._ends is not None else []
        for rank, pid in self._pids.items():
            if rank not in ended:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def wants_requeue(self) -> bool:
        """Whether all ranks of this node have ended, and some of them in order to be started again.

        torchelastic ends the others by SIGTERM then, which is deadly again while Python takes itself apart.
        """
        codes = set(self._exit_codes().values())
        killed = {-Signals.SIGKILL} if self._killed else set()
        return REQUEUE_EXIT_CODE in codes and codes <= {0, REQUEUE_EXIT_CODE, -Signals.SIGTERM, *killed}

    @property
    def is_done(self) -> bool:
        """Whether the ranks of this node have ended well."""
        return self._done == self.attempt

    def tell_done(self) -> None:
        """Say once that the ranks of this node have ended, well or in order to be started again."""
        if self.control is not None and self._done != self.attempt:
            self._done = self.attempt
            ending = AbortReason(node=self.control.member.node, message=REQUEUED, code=REQUEUE_EXIT_CODE)
            self.control.done(self.attempt, requeue=ending if self.wants_requeue() else None)

    def _exit_codes(self) -> dict[int, int | None]:
        """Every local rank's exit code, negative for a signal; `None` while it runs."""
        return exit_codes_of(self._pcontext)

    def tell_of(self, failure: RankExit) -> None:
        """End the job on all nodes because of a rank of this one, unless it ends already."""
        assert self.control is not None
        assert self._ends is not None
        if self._ends.elsewhere_before(failure.order):
            # It may have failed because of those.
            self.control.wait_for_ending(_OTHERS_FIRST_S)
        if self.control.ending is None:
            message = f"{headline(self._plan.topology, failure)} on {self.control.member}"
            code = failure.code if failure.code > 0 else 1
            if self.control.end(message, code, rank=failure.rank).message == message:
                self.told = failure

    def records(self) -> list[RankExit]:
        """How each rank of this node has ended, of those that have.

        torchelastic tells of one that it found first, which may be one that failed because the first had.
        """
        first = self._node.first_rank
        codes: dict[int, int | None] = {first + local_rank: code for local_rank, code in self._exit_codes().items()}
        codes |= {rank: process.exitcode for rank, process in self._processes.items()}
        return [self._ends.record(rank, code) for rank, code in codes.items() if code is not None] if self._ends else []

    def records_of_all(self) -> list[RankExit]:
        """The same once all have ended, so that their order is known."""
        if self._ends is not None:
            self._ends.wait()
        return self.records()

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        # The budget is the whole job's: an agent that starts again because another did counts it too.
        self._remaining_restarts = self._plan.runtime.max_restarts - self.attempt
        self.stop_arrivals()
        if self.attempt:
            self._end_what_is_left()
        self.watch.start_again()
        node_dir.clear(self._folder)
        # Ranks that are programs of their own inherit it: until they listen, a warning would be deadly.
        heard = signal.signal(Signals.SIGUSR1, signal.SIG_IGN)
        try:
            pids: dict[int, Any] = super()._start_workers(worker_group)
        finally:
            signal.signal(Signals.SIGUSR1, heard)
        ranks = {worker.local_rank: worker.global_rank for worker in worker_group.workers}
        self._processes = {ranks[local_rank]: process for local_rank, process in processes_of(self._pcontext).items()}
        self._pids = {ranks[local_rank]: pid for local_rank, pid in pids.items()}
        self._asked_at, self._killed = None, False
        stamp = self.control.stamp if self.control is not None else None
        self._ends = RankProcesses(self._pids, self.attempt, self._run_dir, self._folder, self.watch, stamp)
        hosts = [member.host for member in self.control.members] if self.control is not None else [self.host]
        self._arrivals = PreflightCheck(self._plan, self._node_rank, self.attempt, self._folder, hosts, self.control, self._say)
        logger.info("attempt %d: started %d ranks", self.attempt, len(pids))
        return pids

    def stop_arrivals(self) -> None:
        """Wait for ranks no longer."""
        if self._arrivals is not None:
            self._arrivals.stop()
            self._arrivals = None

    def _end_what_is_left(self) -> None:
        """End what the ranks before have started and left, and ranks that have lost their fork server."""
        if left := reaper.end_all(self._run_dir.agent_id, self._plan.runtime.grace_s, spare=os.getpid()):
            logger.warning("would not die: %s", ", ".join(map(reaper.describe, left)))

    def _assign_worker_ranks(
        self,
        store: Any,  # noqa: ARG002
        group_rank: int,  # noqa: ARG002
        group_world_size: int,  # noqa: ARG002
        spec: WorkerSpec,  # noqa: ARG002
    ) -> list[Worker]:
        """The plan's. torchelastic asks all nodes over the store, and waits minutes for one that has gone."""
        world_size = self._plan.topology.world_size
        return [Worker(local_rank, rank, rank, world_size, world_size) for local_rank, rank in enumerate(self._node.ranks)]

    def _stop_workers(self, worker_group: WorkerGroup) -> None:  # noqa: ARG002
        self._shutdown(timeout=self._shutdown_timeout)

    def _exit_barrier(self) -> None:
        """torchelastic's own ends after 300 s, and does not hear of what happens on other nodes; see `_with_the_others`."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        codes = self._exit_codes()
        self.problem = self._find_problem(codes)
        if self.problem is not None or (self.control is not None and self.control.ending is not None):
            self._remaining_restarts = 0
            return RunResult(state=WorkerState.FAILED)
        if self._done == self.attempt:
            return self._with_the_others(worker_group)
        # A rank ends by itself, and torchelastic would wait for its return value.
        all_ended = bool(codes) and None not in codes.values()
        if self._some_may_be_saving(codes):
            return RunResult(state=WorkerState.HEALTHY)
        if all_ended and self.wants_requeue():
            return self._ended_to_start_again(worker_group)
        self._tell_early(codes)
        with self._grace():
            result: RunResult = super()._monitor_workers(worker_group)
        if result.state is WorkerState.SUCCEEDED or (all_ended and result.state is WorkerState.HEALTHY):
            self.tell_done()
            self._done = self.attempt
            return self._with_the_others(worker_group)
        if result.is_failed() and self._remaining_restarts > 0:
            self._decide_about_another_start()
        return result

    def _find_problem(self, codes: Mapping[int, int | None]) -> Problem | None:
        """What is wrong though no rank has failed."""
        if self._arrivals is not None and (problem := self._arrivals.problem) is not None:
            return problem
        alive = [rank for rank, pid in self._pids.items() if codes.get(rank - self._node.first_rank) is None]
        return self._standstill.problem(self.attempt, {rank: self._pids[rank] for rank in alive}, self.watch)

    def _decide_about_another_start(self) -> None:
        failure = first_failure(self.records_of_all())
        if failure is None:
            return
        if fork_server.has_died():
            logger.warning("the fork server of the ranks has died; starting it and all ranks again")
            return
        self.not_again = why_not_again(self._attempts_with(Attempt.of(self.watch.pulses().values(), failure)))
        if self.not_again is not None:
            self._remaining_restarts = 0
            if self.control is not None:
                self.tell_of(failure)
            return
        self._logs.catch_up()
        logger.warning(
            "%s; starting all ranks again (%d of %d)",
            headline(self._plan.topology, failure),
            self.attempt + 1,
            self._worker_group.spec.max_restarts,
        )

    def _attempts_with(self, this: Attempt) -> list[Attempt]:
        """The starts that a rank has ended, on whatever node, up to this one."""
        self.attempts.append(this)
        if self.control is None:
            return self.attempts
        self.control.board.put(f"attempt/{self.attempt}", this.as_dict())
        found = [self.control.board.find(f"attempt/{number}") for number in range(self.attempt)]
        return [*(Attempt.from_dict(value) for value in found if value is not None), this]

    def _some_may_be_saving(self, codes: Mapping[int, int | None]) -> bool:
        """Whether some ranks have ended in order to be started again, and the others go on as long as they may."""
        found = set(codes.values())
        if REQUEUE_EXIT_CODE not in found or None not in found or not found <= {0, REQUEUE_EXIT_CODE, None}:
            return False
        self._asked_at = self._asked_at or time.monotonic()
        if time.monotonic() - self._asked_at > self.patience_s:
            self._killed = True
            self._kill_the_rest()
        return True

    def _ended_to_start_again(self, worker_group: WorkerGroup) -> RunResult:
        if self.control is None:
            self._remaining_restarts = 0
            return RunResult(state=WorkerState.FAILED)
        self.tell_done()
        return self._with_the_others(worker_group)

    def _tell_early(self, codes: Mapping[int, int | None]) -> None:
        """Tell of a failure before torchelastic ends the ranks beside it, which takes time: far ones fail because it has."""
        if self.control is None or self._remaining_restarts > 0 or not any(codes.values()) or fork_server.has_died():
            return
        failure = first_failure([record for record in self.records() if record.code != REQUEUE_EXIT_CODE])
        if failure is not None:
            self.tell_of(failure)

    def _with_the_others(self, worker_group: WorkerGroup) -> RunResult:
        """A node's ranks are done once those of all nodes are: until then a failure elsewhere starts them again."""
        if self.control is not None and not self.control.is_over:
            return RunResult(state=WorkerState.HEALTHY)
        return RunResult(
            state=WorkerState.SUCCEEDED, return_values={worker.global_rank: None for worker in worker_group.workers}
        )

    @contextlib.contextmanager
    def _grace(self) -> Iterator[None]:
        """After a failure, kill ranks that outlive the grace time: torch.multiprocessing gives them 30 s.

        A look at the ranks takes no time unless one has failed, at the latest while torchelastic looks.
        """
        timer = threading.Timer(self._plan.runtime.grace_s, self._kill_the_rest)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _kill_the_rest(self) -> None:
        assert self._ends is not None
        ended = self._ends.so_far()
        for rank, pid in self._pids.items() if ended else ():
            if rank not in ended:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, Signals.SIGKILL)


def _spec(plan: LaunchPlan, node: Node, run_dir: RunDir, rendezvous: PlanRendezvous) -> WorkerSpec:
    # torchelastic looks for its macros, such as ${local_rank}, in arguments.
    arguments = tuple(text.replace("$", "$$") for text in (str(run_dir.plan_file), run_dir.run_id, node.name))
    if plan.entry.command is not None:
        entrypoint: Any = sys.executable
        arguments = (launcher.worker.entrypoint.__file__.replace("$", "$$"), *arguments)
    else:
        entrypoint = launcher.worker.entrypoint.run_python
    return WorkerSpec(
        role="mimo",
        local_world_size=node.procs,
        entrypoint=entrypoint,
        args=arguments,
        rdzv_handler=rendezvous,
        max_restarts=plan.runtime.max_restarts,
        monitor_interval=MONITOR_INTERVAL_S,
        local_addr=LOOPBACK if len(plan.nodes) == 1 else None,
    )
