"""torchelastic's agent, taught which rank failed first, where output goes, and what the other nodes' agents do."""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from signal import Signals
from typing import Any, TextIO

from torch.distributed.elastic.agent.server.api import RunResult, Worker, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException

import launcher.worker
from launcher import warden
from launcher.control import Control
from launcher.errors import LaunchError
from launcher.failures import REQUEUED, ExitOrder, Failure
from launcher.follow import Follower
from launcher.here import Here
from launcher.members import JobEnding
from launcher.placement import Node
from launcher.plan import LaunchPlan
from launcher.ranklogs import RankLogs
from launcher.rendezvous import LOOPBACK, PlanRendezvous
from launcher.rundir import RunDir
from launcher.torchelastic import exit_codes_of, processes_of, silence_torchelastic
from mimo_role import REQUEUE_EXIT_CODE, environ

logger = logging.getLogger(__name__)

MONITOR_INTERVAL_S = 0.05
_OTHERS_FIRST_S = 1.0


@dataclass(frozen=True)
class Ending:
    """How the agent's run ended."""

    attempt: int
    """Which start of the ranks this was: 0, or the number of restarts before it."""
    failure: Failure | None = None
    """The rank of this node that failed first, if the job ends because of it."""
    signal: Signals | None = None
    """The signal that mimo-launch was ended by."""
    elsewhere: JobEnding | None = None
    """Why the job ended, if it was not this node that ended it."""
    requeue: bool = False
    """Whether the ranks ended in order to be started again."""


def run(plan: LaunchPlan, here: Here, run_dir: RunDir, control: Control | None, out: TextIO, err: TextIO) -> Ending:
    """Start the ranks of this machine's node, and wait until all of the job have ended.

    Raises:
        KeyboardInterrupt: Ctrl-C; the ranks have been told to stop, and have.
    """
    silence_torchelastic()
    # SIGINT stays Python's: torchelastic would pass it on, and a rank inside a collective does not hear it.
    environ.export({"TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGHUP,SIGQUIT"})
    follower = Follower()
    logs = RankLogs(plan, run_dir, follower, out, err)
    agent = RoleAgent(plan, here, run_dir, logs, control)
    signal.signal(Signals.SIGUSR1, lambda number, _: agent.warn(Signals(number)))
    try:
        return _ending_of(agent, agent.run())
    except SignalException as ending:
        _ignore_signals()
        return _ending_by(Signals(ending.sigval), agent)
    except LaunchError:
        assert control is not None
        return Ending(agent.attempt, elsewhere=control.ending)
    finally:
        _ignore_signals()
        follower.stop()


def _ignore_signals() -> None:
    """torchelastic's handlers would raise in the middle of the clean-up, which is bounded."""
    for number in (Signals.SIGINT, Signals.SIGTERM, Signals.SIGHUP, Signals.SIGQUIT, Signals.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _ending_of(agent: "RoleAgent", result: RunResult) -> Ending:
    control = agent.control
    if not result.is_failed():
        return Ending(agent.attempt, elsewhere=control.ending if control is not None else None)
    if agent.wants_requeue():
        return _ending_in_order_to_start_again(agent)
    failure = agent.first_failure(result)
    if control is None:
        return Ending(agent.attempt, failure=failure)
    if failure is not None:
        agent.tell_of(failure)
    return Ending(agent.attempt, failure=agent.told, elsewhere=None if agent.told else control.ending)


def _ending_by(number: Signals, agent: "RoleAgent") -> Ending:
    control = agent.control
    if control is not None and (agent.is_done or agent.wants_requeue()):
        # The others may still be saving, and end as they see fit.
        agent.tell_done()
        control.wait_for_ending(agent.patience_s)
        if control.is_over or control.ending is not None:
            requeue = control.ending is not None and control.ending.code == REQUEUE_EXIT_CODE
            return Ending(agent.attempt, requeue=requeue, elsewhere=None if requeue else control.ending)
    if agent.wants_requeue():
        return _ending_in_order_to_start_again(agent)
    if control is not None:
        control.end(f"ended by {number.name} on {control.member}", 128 + number)
    return Ending(agent.attempt, signal=number)


def _ending_in_order_to_start_again(agent: "RoleAgent") -> Ending:
    if agent.control is None:
        return Ending(agent.attempt, requeue=True)
    told = agent.control.end(REQUEUED, REQUEUE_EXIT_CODE)
    # Another node may have told of a failure before.
    requeue = told.code == REQUEUE_EXIT_CODE
    return Ending(agent.attempt, requeue=requeue, elsewhere=None if requeue else told)


class RoleAgent(LocalElasticAgent):
    """The agent of one of the plan's nodes."""

    def __init__(self, plan: LaunchPlan, here: Here, run_dir: RunDir, logs: RankLogs, control: Control | None) -> None:
        self._plan = plan
        self._node: Node = plan.nodes[here.node_rank]
        self._agent_id = run_dir.agent_id
        self._notice_file = run_dir.notice_file
        self.control = control
        self._processes: dict[int, BaseProcess] = {}
        self._pids: dict[int, int] = {}
        self._exits: ExitOrder | None = None
        self._stamps: dict[int, int] = {}
        self.told: Failure | None = None
        """The rank of this node that the job ends because of."""
        self._done: int | None = None
        """The start whose ranks are done here."""
        self._asked_at: float | None = None
        """When a rank of this start was first seen to have ended in order to be started again."""
        self._killed = False
        """Whether ranks were killed since they did not end in their time."""
        self.patience_s = plan.grace_s
        """How long ranks may take to end: after SIGTERM, or after a warning."""
        self._plan_rendezvous = PlanRendezvous(run_dir.run_id, here.node_rank, len(plan.nodes), control)
        super().__init__(
            _spec(plan, self._node, run_dir, self._plan_rendezvous),
            logs,
            start_method=plan.start_method.value,
            shutdown_timeout=max(1, round(plan.grace_s)),
        )

    @property
    def attempt(self) -> int:
        """How often the ranks have been started again."""
        return max(0, self._plan_rendezvous.attempt)

    def warn(self, number: Signals) -> None:
        """Pass a warning on to the ranks, and to no other process."""
        logger.info("%s: passed on to %d ranks", number.name, len(self._pids))
        self.patience_s = max(self._plan.grace_s, self._plan.warning_s)
        with contextlib.suppress(OSError):
            self._notice_file.touch()
        ended = self._exits.so_far() if self._exits is not None else []
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
            ending = JobEnding(node=self.control.member.node, message=REQUEUED, code=REQUEUE_EXIT_CODE)
            self.control.done(self.attempt, requeue=ending if self.wants_requeue() else None)

    def _exit_codes(self) -> dict[int, int | None]:
        """Every local rank's exit code, negative for a signal; `None` while it runs."""
        return exit_codes_of(self._pcontext)

    def tell_of(self, failure: Failure) -> None:
        """End the job on all nodes because of a rank of this one, unless it ends already."""
        assert self.control is not None
        number = self._stamp(failure.rank)
        if number - 1 > sum(other < number for other in list(self._stamps.values())):
            # Ranks of other nodes ended before it, and it may have failed because of them.
            self.control.wait_for_ending(_OTHERS_FIRST_S)
        if self.control.ending is None:
            message = f"{failure.headline(self._plan.topology)} on {self.control.member}"
            if self.control.end(message, failure.exit_code).message == message:
                self.told = failure

    def _stamp(self, rank: int) -> int:
        """The place of one of this node's ranks in the order in which the ranks of all nodes ended."""
        if self.control is not None and rank not in self._stamps:
            self._stamps[rank] = self.control.stamp(self.attempt)
        return self._stamps.get(rank, 0)

    def first_failure(self, result: RunResult) -> Failure | None:
        """The rank that failed before any other, after `run()`.

        torchelastic reports one that it found first, which may be one that failed because the first had.
        """
        if not result.is_failed():
            return None
        codes = {rank: failure.exitcode for rank, failure in result.failures.items()}
        codes |= {rank: process.exitcode or 0 for rank, process in self._processes.items()}
        in_order = [*(self._exits.ended() if self._exits is not None else []), *result.failures]
        failed = [rank for rank in in_order if codes.get(rank)]
        # One that asked to be started again has not failed, unless nobody else has.
        failed.sort(key=lambda rank: codes[rank] == REQUEUE_EXIT_CODE)
        return Failure(failed[0], codes[failed[0]]) if failed else None

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        # The budget is the whole job's: an agent that starts again because another did counts it too.
        self._remaining_restarts = self._plan.max_restarts - self.attempt
        if self.attempt:
            warden.end_all(self._agent_id, spare=os.getpid())
        # Ranks that are programs of their own inherit it: until they listen, a warning would be deadly.
        heard = signal.signal(Signals.SIGUSR1, signal.SIG_IGN)
        try:
            pids: dict[int, Any] = super()._start_workers(worker_group)
        finally:
            signal.signal(Signals.SIGUSR1, heard)
        ranks = {worker.local_rank: worker.global_rank for worker in worker_group.workers}
        self._processes = {ranks[local_rank]: process for local_rank, process in processes_of(self._pcontext).items()}
        self._pids = {ranks[local_rank]: pid for local_rank, pid in pids.items()}
        self._stamps, self._asked_at, self._killed = {}, None, False
        self._exits = ExitOrder(self._pids, self._stamp)
        logger.info("attempt %d: started %d ranks", self.attempt, len(pids))
        return pids

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
        if self.control is not None and self.control.ending is not None:
            self._remaining_restarts = 0
            return RunResult(state=WorkerState.FAILED)
        if self._done == self.attempt:
            return self._with_the_others(worker_group)
        # A rank ends by itself, and torchelastic would wait for its return value.
        codes = self._exit_codes()
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
        if result.is_failed() and self._remaining_restarts > 0 and (failure := self.first_failure(result)) is not None:
            logger.warning(
                "%s; starting all ranks again (%d of %d)",
                failure.headline(self._plan.topology),
                self.attempt + 1,
                self._worker_group.spec.max_restarts,
            )
        return result

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
        if self.control is None or self._remaining_restarts > 0 or not any(codes.values()):
            return
        assert self._exits is not None
        first = self._node.first_rank
        in_order = [*self._exits.so_far(), *(first + local_rank for local_rank in codes)]
        rank, code = next((rank, code) for rank in in_order if (code := codes[rank - first]))
        if code != REQUEUE_EXIT_CODE:
            self.tell_of(Failure(rank, code))

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
        timer = threading.Timer(self._plan.grace_s, self._kill_the_rest)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _kill_the_rest(self) -> None:
        assert self._exits is not None
        ended = self._exits.so_far()
        for rank, pid in self._pids.items() if ended else ():
            if rank not in ended:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, Signals.SIGKILL)


def _spec(plan: LaunchPlan, node: Node, run_dir: RunDir, rendezvous: PlanRendezvous) -> WorkerSpec:
    # torchelastic looks for its macros, such as ${local_rank}, in arguments.
    arguments = tuple(text.replace("$", "$$") for text in (str(run_dir.plan_file), run_dir.run_id, node.name))
    if plan.entry.command is not None:
        entrypoint: Any = sys.executable
        arguments = (launcher.worker.__file__.replace("$", "$$"), *arguments)
    else:
        entrypoint = launcher.worker.run_python
    return WorkerSpec(
        role="mimo",
        local_world_size=node.procs,
        entrypoint=entrypoint,
        args=arguments,
        rdzv_handler=rendezvous,
        max_restarts=plan.max_restarts,
        monitor_interval=MONITOR_INTERVAL_S,
        local_addr=LOOPBACK if len(plan.nodes) == 1 else None,
    )
