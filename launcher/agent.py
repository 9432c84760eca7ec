"""torchelastic's agent, taught which rank failed first, where output goes, and what the other nodes' agents do."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from signal import Signals
from typing import Any, TextIO

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, MultiprocessContext, PContext, SignalException
from torch.distributed.elastic.multiprocessing.api import SubprocessContext

import launcher.worker
from launcher import warden
from launcher.control import Control, JobEnding
from launcher.errors import LaunchError
from launcher.failures import ExitOrder, Failure
from launcher.follow import Followed, Follower
from launcher.here import Here
from launcher.placement import Node
from launcher.plan import LaunchPlan
from launcher.rendezvous import LOOPBACK, PlanRendezvous
from launcher.rundir import RunDir
from mimo_role import REQUEUE_EXIT_CODE, environ

logger = logging.getLogger(__name__)

MONITOR_INTERVAL_S = 0.05

# Their messages repeat ours, in terms of local ranks and process ids.
_SILENCED = ("torch.distributed.elastic", "torch.multiprocessing")


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
    _silence_torchelastic()
    # SIGINT stays Python's: torchelastic would pass it on, and a rank inside a collective does not hear it.
    environ.export({"TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGHUP,SIGQUIT"})
    follower = Follower()
    logs = RankLogs(plan, run_dir, follower, out, err)
    agent = RoleAgent(plan, here, run_dir, logs, control)
    signal.signal(Signals.SIGUSR1, lambda number, _: agent.warn(Signals(number)))
    try:
        return _ending_of(agent, agent.run(), plan)
    except SignalException as ending:
        return _ending_by(Signals(ending.sigval), agent)
    except KeyboardInterrupt:
        if control is not None:
            control.end(f"interrupted on {control.member}", 130)
        raise
    except LaunchError:
        assert control is not None
        return Ending(agent.attempt, elsewhere=control.ending)
    finally:
        # torchelastic's handlers would raise in the middle of the clean-up, which is bounded.
        for number in (Signals.SIGINT, Signals.SIGTERM, Signals.SIGHUP, Signals.SIGQUIT, Signals.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        follower.stop()


def _ending_of(agent: "RoleAgent", result: RunResult, plan: LaunchPlan) -> Ending:
    control = agent.control
    if not result.is_failed():
        return Ending(agent.attempt, elsewhere=control.ending if control is not None else None)
    if agent.wants_requeue():
        if control is not None:
            control.end("the ranks ended in order to be started again", REQUEUE_EXIT_CODE)
        return Ending(agent.attempt, requeue=True)
    failure = agent.first_failure(result)
    if control is None:
        return Ending(agent.attempt, failure=failure)
    if control.ending is None and failure is not None:
        message = f"{failure.headline(plan.topology)} on {control.member}"
        told = control.end(message, failure.exit_code)
        if told.node == control.member.node:
            return Ending(agent.attempt, failure=failure)
    return Ending(agent.attempt, elsewhere=control.ending)


def _ending_by(number: Signals, agent: "RoleAgent") -> Ending:
    control = agent.control
    requeue = agent.wants_requeue()
    if control is not None and requeue:
        control.end("the ranks ended in order to be started again", REQUEUE_EXIT_CODE)
    elif control is not None:
        control.end(f"ended by {number.name} on {control.member}", 128 + number)
    return Ending(agent.attempt, signal=number, requeue=requeue)


class RankLogs(LogsSpecs):
    """Sends every rank's output to the run folder, and has it followed from there."""

    def __init__(self, plan: LaunchPlan, run_dir: RunDir, follower: Follower, out: TextIO, err: TextIO) -> None:
        super().__init__(str(run_dir.path / "logs"))
        self._plan = plan
        self._run_dir = run_dir
        self._follower = follower
        self._sinks = {"stdout": out, "stderr": err}

    @property
    def root_log_dir(self) -> str:
        return str(self._run_dir.path / "logs")

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """torchelastic's hook: the files of each local rank, for the attempt that the environments are of."""
        files: dict[str, dict[int, str]] = {"stdout": {}, "stderr": {}, "error": {}}
        followed = []
        for local_rank, env in envs.items():
            rank, attempt = int(env["RANK"]), int(env["TORCHELASTIC_RESTART_COUNT"])
            prefix = f"[{self._plan.topology.label_of(rank)} r{rank}]"
            for stream, sink in self._sinks.items():
                path = self._run_dir.log_file(attempt, rank, stream)
                path.parent.mkdir(parents=True, exist_ok=True)
                files[stream][local_rank] = str(path)
                followed.append(Followed(path, prefix, sink))
            env["TORCHELASTIC_ERROR_FILE"] = files["error"][local_rank] = str(self._run_dir.error_file(attempt, rank))
        self._follower.follow(followed)
        return LogsDest(stdouts=files["stdout"], stderrs=files["stderr"], error_files=files["error"])


class RoleAgent(LocalElasticAgent):
    """The agent of one of the plan's nodes."""

    def __init__(self, plan: LaunchPlan, here: Here, run_dir: RunDir, logs: RankLogs, control: Control | None) -> None:
        self._plan = plan
        self._node: Node = plan.nodes[here.node_rank]
        self._agent_id = run_dir.agent_id
        self.control = control
        self._processes: dict[int, BaseProcess] = {}
        self._pids: dict[int, int] = {}
        self._exits: ExitOrder | None = None
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
        codes = self._exit_codes()
        for rank, pid in self._pids.items():
            if codes.get(rank - self._node.first_rank) is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def wants_requeue(self) -> bool:
        """Whether all ranks of this node have ended, and some of them in order to be started again."""
        codes = set(self._exit_codes().values())
        return REQUEUE_EXIT_CODE in codes and codes <= {0, REQUEUE_EXIT_CODE}

    def _exit_codes(self) -> dict[int, int | None]:
        """Every local rank's exit code, negative for a signal; `None` while it runs."""
        return _exit_codes_of(self._pcontext)

    def first_failure(self, result: RunResult) -> Failure | None:
        """The rank that failed before any other, after `run()`.

        torchelastic reports one that it found first, which may be one that failed because the first had.
        """
        if not result.is_failed():
            return None
        codes = {rank: failure.exitcode for rank, failure in result.failures.items()}
        codes |= {rank: process.exitcode or 0 for rank, process in self._processes.items()}
        in_order = [*(self._exits.ended() if self._exits is not None else []), *result.failures]
        return next((Failure(rank, codes[rank]) for rank in in_order if codes.get(rank)), None)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        # The budget is the whole job's: an agent that starts again because another did counts it too.
        self._remaining_restarts = self._plan.max_restarts - self.attempt
        self._check_ranks(worker_group)
        if self.attempt:
            warden.end_all(self._agent_id, spare=os.getpid())
        pids: dict[int, Any] = super()._start_workers(worker_group)
        ranks = {worker.local_rank: worker.global_rank for worker in worker_group.workers}
        self._processes = {ranks[local_rank]: process for local_rank, process in _processes_of(self._pcontext).items()}
        self._pids = {ranks[local_rank]: pid for local_rank, pid in pids.items()}
        self._exits = ExitOrder(self._pids)
        logger.info("attempt %d: started %d ranks", self.attempt, len(pids))
        return pids

    def _check_ranks(self, worker_group: WorkerGroup) -> None:
        given = [worker.global_rank for worker in worker_group.workers]
        if given != list(self._node.ranks):
            raise AssertionError(f"torchelastic gave {self._node.name} the ranks {given}, the plan {list(self._node.ranks)}")

    def _stop_workers(self, worker_group: WorkerGroup) -> None:  # noqa: ARG002
        self._shutdown(timeout=self._shutdown_timeout)

    def _exit_barrier(self) -> None:
        """torchelastic's own ends after 300 s, and does not hear of what happens on other nodes."""
        if self.control is not None:
            self.control.done()

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if self.control is not None and self.control.ending is not None:
            self._remaining_restarts = 0
            return RunResult(state=WorkerState.FAILED)
        # A rank ends by itself, and torchelastic would wait for its return value.
        codes = [process.exitcode for process in self._processes.values()]
        all_ended = bool(codes) and None not in codes
        with self._grace():
            result: RunResult = super()._monitor_workers(worker_group)
        if all_ended and result.state is WorkerState.HEALTHY:
            return RunResult(
                state=WorkerState.SUCCEEDED, return_values={worker.global_rank: None for worker in worker_group.workers}
            )
        if result.is_failed() and self.wants_requeue():
            self._remaining_restarts = 0
        if result.is_failed() and self._remaining_restarts > 0 and (failure := self.first_failure(result)) is not None:
            logger.warning(
                "%s; starting all ranks again (%d of %d)",
                failure.headline(self._plan.topology),
                self.attempt + 1,
                self._worker_group.spec.max_restarts,
            )
        return result

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


def _processes_of(context: PContext | None) -> dict[int, BaseProcess]:
    """The ranks' process objects by local rank, none for a command.

    They are private to torchelastic; `multiprocessing.active_children()` leaves out those that have ended already.
    """
    started = context._pc if isinstance(context, MultiprocessContext) else None
    return dict(enumerate(started.processes)) if started is not None else {}


def _exit_codes_of(context: PContext | None) -> dict[int, int | None]:
    """Exit codes by local rank, from the same private places."""
    if isinstance(context, SubprocessContext):
        return {local_rank: handler.proc.poll() for local_rank, handler in context.subprocess_handlers.items()}
    return {local_rank: process.exitcode for local_rank, process in _processes_of(context).items()}


def _silence_torchelastic() -> None:
    """Every one of its loggers has a level of its own."""
    if logging.getLogger().isEnabledFor(logging.INFO):
        return
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(_SILENCED):
            logging.getLogger(name).setLevel(logging.CRITICAL)


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
