"""torchelastic's agent, over the plan: it starts, monitors and stops the ranks of one node."""

import logging
import signal
from functools import partial
from signal import Signals
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, Worker, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import PContext, SignalException

from launcher.agent.job_monitor import Decision, JobMonitor
from launcher.agent.node_job import NodeJob
from launcher.agent.rank_context import RankContext
from launcher.agent.torchelastic_private import processes_made_by, silence_torchelastic
from launcher.coordination.rendezvous import PlanRendezvous
from launcher.errors import LaunchError
from launcher.host import limits
from launcher.host.fork_server import Request
from launcher.host.server_process import PROGRAM, interpreter
from launcher.logs.log_specs import RunDirLogsSpecs
from launcher.outcome import Outcome, Terminated
from mimo_role.host import environ

logger = logging.getLogger(__name__)

MONITOR_INTERVAL_S = 0.05
_SHORTEST_SLEEP_S = 1e-6
"""torchelastic sleeps before it monitors the ranks, and here monitoring them waits; 0 is no interval to it."""
_ENDING = (Signals.SIGTERM, Signals.SIGHUP, Signals.SIGQUIT)
_STATES = {
    Decision.WAIT: WorkerState.HEALTHY,
    Decision.RESTART: WorkerState.FAILED,
    Decision.REQUEUE: WorkerState.FAILED,
    Decision.ABORT: WorkerState.FAILED,
    Decision.DONE: WorkerState.SUCCEEDED,
}


class ElasticAgent(LocalElasticAgent):
    """The agent of one of the plan's nodes. What it does is decided by its monitor."""

    def __init__(self, monitor: JobMonitor, logs: RunDirLogsSpecs) -> None:
        self._monitor = monitor
        self._logs = logs
        self._plan_rendezvous = PlanRendezvous(monitor.job.nodes)
        super().__init__(_spec(monitor.job, self._plan_rendezvous), logs)

    def run_job(self) -> Outcome:
        """Start the ranks of this node, and wait until those of all nodes have ended."""
        silence_torchelastic()
        # One that is ignored stays so, as SIGHUP under nohup. SIGINT is handled here.
        handled = [each.name for each in _ENDING if signal.getsignal(each) != signal.SIG_IGN]
        environ.export({"TORCHELASTIC_SIGNALS_TO_HANDLE": ",".join(handled)})
        self._monitor.interrupts.listen()
        signal.signal(Signals.SIGUSR1, lambda number, _: self._monitor.warn(Signals(number)))
        try:
            with limits.threads_as_os_errors():
                self.run()
            return self._monitor.outcome()
        except SignalException as ending:
            _ignore_signals()
            return self._monitor.outcome_after_signal(Signals(ending.sigval))
        except Terminated:
            raise
        except KeyboardInterrupt:
            _ignore_signals()
            return self._monitor.outcome_after_signal(Signals.SIGINT)
        except OSError as error:
            _ignore_signals()
            return self._monitor.outcome_without_start(error)
        except LaunchError:
            return self._monitor.outcome_of_other_node()
        finally:
            _ignore_signals()
            self._monitor.close()
            self._logs.stop()

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        attempt = self._plan_rendezvous.attempt
        # The budget is the whole job's: restarts because of other nodes count too.
        self._remaining_restarts = self._monitor.restarts.left(attempt)
        self._monitor.prepare_attempt(attempt)
        job = self._monitor.job
        with processes_made_by(partial(RankContext, job.server, _request(job), job.plan.runtime.grace_s)):
            pids: dict[int, Any] = super()._start_workers(worker_group)
        first = job.node.first_rank
        started = {first + local_rank: pid for local_rank, pid in pids.items()}
        self._monitor.begin_attempt(attempt, started, partial(_exit_codes, self._pcontext, first))
        return pids

    def _assign_worker_ranks(
        self,
        store: Any,  # noqa: ARG002
        group_rank: int,  # noqa: ARG002
        group_world_size: int,  # noqa: ARG002
        spec: WorkerSpec,  # noqa: ARG002
    ) -> list[Worker]:
        """Take the ranks from the plan. torchelastic would ask all nodes, and wait minutes for one that is lost."""
        job = self._monitor.job
        world_size = job.plan.topology.world_size
        return [Worker(local_rank, rank, rank, world_size, world_size) for local_rank, rank in enumerate(job.node.ranks)]

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if isinstance(self._pcontext, RankContext):
            self._pcontext.wait_for_ends(MONITOR_INTERVAL_S)
        decision = self._monitor.decide(_exit_codes(self._pcontext, self._monitor.job.node.first_rank))
        if decision in (Decision.REQUEUE, Decision.ABORT):
            self._remaining_restarts = 0
        if decision is Decision.RESTART:
            self._logs.catch_up()
            number, budget = self._monitor.attempt + 1, worker_group.spec.max_restarts
            logger.warning("%s; restarting all ranks (%d of %d)", self._monitor.restart_reason, number, budget)
        values = {worker.global_rank: None for worker in worker_group.workers} if decision is Decision.DONE else {}
        return RunResult(state=_STATES[decision], return_values=values)

    def _shutdown(self, death_sig: Signals = Signals.SIGTERM, timeout: int = 30) -> None:  # noqa: ARG002
        """End the ranks. After Ctrl-C they get SIGINT first, which Python raises as `KeyboardInterrupt`.

        torchelastic passes a time from torch 2.12 on. The ranks have the job's own.
        """
        self._monitor.stop_ranks()
        super()._shutdown(death_sig)

    def _exit_barrier(self) -> None:
        """None: torchelastic's ends after 300 s. Here `Decision.DONE` waits for all nodes, and for failures on them."""


def _exit_codes(context: PContext | None, first_rank: int) -> dict[int, int | None]:
    codes = context.exit_codes() if isinstance(context, RankContext) else {}
    return {first_rank + local_rank: code for local_rank, code in codes.items()}


def _ignore_signals() -> None:
    """torchelastic's handlers would raise in the middle of the clean-up, which is bounded."""
    for number in (Signals.SIGINT, *_ENDING, Signals.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _request(job: NodeJob) -> Request:
    """What the process of each rank runs."""
    arguments = (str(job.run_dir.plan_file), job.run_dir.run_id, job.node.name)
    if job.plan.is_forked:
        return Request("run", arguments)
    command = "run" if job.plan.entry.command is None else "exec"
    return Request("exec", (*interpreter(), PROGRAM, command, *arguments))


def _spec(job: NodeJob, rendezvous: PlanRendezvous) -> WorkerSpec:
    return WorkerSpec(
        role="mimo",
        local_world_size=job.node.procs,
        entrypoint=PROGRAM,
        rdzv_handler=rendezvous,
        max_restarts=job.plan.runtime.max_restarts,
        monitor_interval=_SHORTEST_SLEEP_S,
    )
