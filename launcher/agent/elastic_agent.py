"""torchelastic's agent, over the plan: it starts, monitors and stops the ranks of one node."""

import logging
import signal
import sys
from functools import partial
from signal import Signals
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, Worker, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import PContext, SignalException

import launcher.worker.entrypoint
from launcher.agent.job_monitor import Decision, JobMonitor
from launcher.agent.node_job import NodeJob
from launcher.agent.torchelastic_private import exit_codes_of, silence_torchelastic
from launcher.coordination.rendezvous import PlanRendezvous
from launcher.errors import LaunchError
from launcher.logs.log_specs import RunDirLogsSpecs
from launcher.outcome import Outcome
from mimo_role.host import environ

logger = logging.getLogger(__name__)

MONITOR_INTERVAL_S = 0.05
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
        runtime = monitor.job.plan.runtime
        super().__init__(
            _spec(monitor.job, self._plan_rendezvous),
            logs,
            start_method=runtime.start_method.value,
            shutdown_timeout=max(1, round(runtime.grace_s)),
        )

    def run_job(self) -> Outcome:
        """Start the ranks of this node, and wait until those of all nodes have ended.

        Raises:
            KeyboardInterrupt: Ctrl-C; the ranks have ended.
        """
        silence_torchelastic()
        # SIGINT stays Python's: torchelastic would pass it on, and a rank inside a collective does not handle it.
        environ.export({"TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGHUP,SIGQUIT"})
        signal.signal(Signals.SIGUSR1, lambda number, _: self._monitor.warn(Signals(number)))
        try:
            self.run()
            return self._monitor.outcome()
        except SignalException as ending:
            _ignore_signals()
            return self._monitor.outcome_after_signal(Signals(ending.sigval))
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
        # Ranks that are programs of their own inherit it: a warning would end them until they have a handler.
        handler = signal.signal(Signals.SIGUSR1, signal.SIG_IGN)
        try:
            pids: dict[int, Any] = super()._start_workers(worker_group)
        finally:
            signal.signal(Signals.SIGUSR1, handler)
        first = self._monitor.job.node.first_rank
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
        decision = self._monitor.decide(_exit_codes(self._pcontext, self._monitor.job.node.first_rank))
        if decision in (Decision.REQUEUE, Decision.ABORT):
            self._remaining_restarts = 0
        if decision is Decision.RESTART:
            self._logs.catch_up()
            number, budget = self._monitor.attempt + 1, worker_group.spec.max_restarts
            logger.warning("%s; restarting all ranks (%d of %d)", self._monitor.restart_reason, number, budget)
        values = {worker.global_rank: None for worker in worker_group.workers} if decision is Decision.DONE else {}
        return RunResult(state=_STATES[decision], return_values=values)

    def _stop_workers(self, worker_group: WorkerGroup) -> None:  # noqa: ARG002
        self._monitor.stop_ranks()
        self._shutdown(timeout=self._shutdown_timeout)

    def _exit_barrier(self) -> None:
        """None: torchelastic's ends after 300 s. Here `Decision.DONE` waits for all nodes, and for failures on them."""


def _exit_codes(context: PContext | None, first_rank: int) -> dict[int, int | None]:
    return {first_rank + local_rank: code for local_rank, code in exit_codes_of(context).items()}


def _ignore_signals() -> None:
    """torchelastic's handlers would raise in the middle of the clean-up, which is bounded."""
    for number in (Signals.SIGINT, Signals.SIGTERM, Signals.SIGHUP, Signals.SIGQUIT, Signals.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _spec(job: NodeJob, rendezvous: PlanRendezvous) -> WorkerSpec:
    plan, run_dir = job.plan, job.run_dir
    # torchelastic looks for its macros, such as ${local_rank}, in arguments.
    arguments = tuple(text.replace("$", "$$") for text in (str(run_dir.plan_file), run_dir.run_id, job.node.name))
    if plan.entry.command is not None:
        entrypoint: Any = sys.executable
        arguments = (launcher.worker.entrypoint.__file__.replace("$", "$$"), *arguments)
    else:
        entrypoint = launcher.worker.entrypoint.run_python
    return WorkerSpec(
        role="mimo",
        local_world_size=job.node.procs,
        entrypoint=entrypoint,
        args=arguments,
        rdzv_handler=rendezvous,
        max_restarts=plan.runtime.max_restarts,
        monitor_interval=MONITOR_INTERVAL_S,
    )
