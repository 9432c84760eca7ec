"""The life of a job on this machine's node, from its start to its outcome."""

import contextlib
import gc
import logging
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from launcher.agent.deferred_modules import without_unused_modules
from launcher.agent.early_server import EarlyServer
from launcher.agent.interrupts import held_back
from launcher.agent.script_imports import modules_to_preload
from launcher.console import Console
from launcher.coordination.node_identity import LocalNode
from launcher.errors import LaunchError
from launcher.host import limits, reaper
from launcher.host.fork_server import ForkServer
from launcher.host.preload_list import PreloadList
from launcher.host.server_process import ServerJob, ServerProcess
from launcher.outcome import Outcome, Terminated
from launcher.plan.launch_plan import LaunchPlan
from launcher.preflight import capacity
from launcher.run_dir.writer import RunDir
from mimo_role.host import environ, network, node_dir

logger = logging.getLogger(__name__)


def run_node(plan: LaunchPlan, node: LocalNode, config_text: str, console: Console, early: EarlyServer) -> Outcome:
    """Start the ranks of this machine's node, and wait until those of all nodes have ended.

    The ranks' output is printed, each line with its rank's role, and written to the run directory.

    Args:
        plan: of the job.
        node: this machine's.
        config_text: of which the plan was made.
        console: for the output.
        early: the fork server that was started before the plan was made.

    Raises:
        LaunchError: this machine cannot start its ranks of the plan, or the nodes do not come together. No rank was started.
    """
    capacity.check(plan, node.node_rank)
    began = time.time()
    if node.node_rank != 0:
        return _run_job(plan, node, config_text, early, console)
    # Node 0 names the run, and takes the run directory before it imports torch: one that is in use is refused at once.
    with _take_run_dir(plan, node, config_text, early.agent_id, run_id=early.agent_id) as run_dir:
        outcome = _run_job(plan, node, config_text, early, console)
        run_dir.write_report(outcome.as_dict() | {"began": _iso(began), "ended": _iso(time.time())})
        if outcome.kind in ("failed", "stalled"):
            _write_last_seconds(run_dir, plan, outcome)
        return outcome


def _write_last_seconds(run_dir: RunDir, plan: LaunchPlan, outcome: Outcome) -> None:
    """Write the trace of a failure. What goes wrong is logged: the outcome and its report are there already."""
    from launcher.trace.writer import write_last_seconds

    try:
        first = outcome.details.get("first") or {}  # of a hang there is none
        written = write_last_seconds(run_dir, plan, first.get("rank"))
    except KeyboardInterrupt:
        logger.warning("interrupted: no trace of the last seconds; mimo-launch trace %s writes it", run_dir.path)
    except Exception as error:
        logger.warning("no trace of the last seconds: %s: %s", type(error).__name__, error)
    else:
        if written is not None:
            logger.info("wrote the last seconds of %d ranks to %s", written.ranks, written.path)


def _run_job(plan: LaunchPlan, node: LocalNode, config_text: str, early: EarlyServer, console: Console) -> Outcome:
    agent_id = early.agent_id
    try:
        with limits.threads_as_os_errors(), session(plan, node, agent_id, early) as (node_directory, server):
            _import_torch()
            from launcher.agent.elastic_agent import ElasticAgent
            from launcher.agent.job_monitor import JobMonitor
            from launcher.agent.node_job import NodeJob
            from launcher.coordination.nodes import join_nodes
            from launcher.live.status_display import status_display
            from launcher.logs.log_specs import RunDirLogsSpecs

            with (
                join_nodes(plan, node, agent_id, console.say) as nodes,
                # On node 0, the one that it has taken already.
                _take_run_dir(plan, node, config_text, agent_id, nodes.state.run_id) as run_dir,
            ):
                logger.info("run directory %s, run id %s", run_dir.path, run_dir.run_id)
                if nodes.node_rank == 0:
                    run_dir.write_nodes(plan.nodes, [member.host for member in nodes.state.members])
                server.wait_for_modules(console.say)
                with status_display(console) as show:
                    job = NodeJob(
                        plan=plan,
                        nodes=nodes,
                        server=server,
                        run_dir=run_dir,
                        node_dir=node_directory,
                        say=console.say,
                        show=show,
                    )
                    agent = ElasticAgent(JobMonitor(job), RunDirLogsSpecs(plan, run_dir, console))
                    return nodes.as_seen_by_scheduler(agent.run_job())
    except Terminated:
        return Outcome.signalled(signal.SIGTERM)
    except KeyboardInterrupt:
        return Outcome.signalled(signal.SIGINT)
    except BlockingIOError as error:
        raise LaunchError(f"no thread can be started: {error.strerror}") from None


def _take_run_dir(
    plan: LaunchPlan, node: LocalNode, config_text: str, agent_id: str, run_id: str
) -> "contextlib.closing[RunDir]":
    run_dir = RunDir(Path(plan.run_dir), config_text, plan.to_json(), agent_id, run_id, node.slurm_job)
    return contextlib.closing(run_dir)


@contextlib.contextmanager
def session(
    plan: LaunchPlan, node: LocalNode, agent_id: str, early: EarlyServer | None = None
) -> Iterator[tuple[Path, ForkServer]]:
    """What this process needs to start ranks: signal handlers, environment, the node directory and the fork server.

    No process of the run outlives the session.

    Args:
        plan, node: of the job, and this machine's.
        agent_id: of the run.
        early: has the fork server already, perhaps.
    """
    preload = _modules_to_preload(plan)
    # Its default action would end this process and all that it starts.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # An exception until torchelastic handles it, so that the job is aborted on the other nodes.
    signal.signal(signal.SIGTERM, _raise_terminated)
    _set_environment(plan, node, agent_id)
    with _processes_start():
        started = early.take(preload=plan.is_forked) if early is not None else None
        if started is None:
            started = ServerProcess(agent_id, environ.variables(), preload=plan.is_forked)
    try:
        # The reaper, which removes it, runs by now.
        node_directory = node_dir.create(agent_id, plan.nodes[node.node_rank].procs)
        environ.export({environ.NODE_DIR: str(node_directory)})
    except BaseException:
        started.end()
        raise
    with _processes_start():
        job = ServerJob(plan.runtime.grace_s, node_directory, preload)
        server = ForkServer(agent_id, job, started, preload=plan.is_forked)
    with contextlib.closing(server):
        yield node_directory, server


@contextlib.contextmanager
def _processes_start() -> Iterator[None]:
    try:
        with limits.threads_as_os_errors():
            yield
    except OSError as error:
        raise LaunchError(f"no process can be started: {limits.explain(error.errno or 0)}") from None


def _modules_to_preload(plan: LaunchPlan) -> PreloadList | None:
    modules = modules_to_preload(plan) if plan.is_forked else ()
    return PreloadList(modules, asdict(plan.entry)) if modules else None


def _raise_terminated(*_: object) -> None:
    raise Terminated


def _set_environment(plan: LaunchPlan, node: LocalNode, agent_id: str) -> None:
    """What every process of the run inherits, from before its interpreter starts, but for the node directory."""
    interface = "lo" if node.endpoint is None else network.interface_towards(node.endpoint.host)
    # gloo would take the interface of this host's own name, which other hosts may not reach.
    defaults = {"GLOO_SOCKET_IFNAME": interface} if sys.platform == "linux" and interface is not None else {}
    if plan.topology.world_size > 1:
        defaults["OMP_NUM_THREADS"] = "1"
    environ.export({name: value for name, value in defaults.items() if environ.get(name) is None})
    environ.export({**plan.env, reaper.AGENT_ID: agent_id})


def _import_torch() -> None:
    """Import torch, while the fork server does too."""
    gc.disable()  # as in rank_server.py
    began = time.perf_counter()
    with held_back(signal.SIGINT, signal.SIGTERM), without_unused_modules():
        import launcher.agent.elastic_agent  # noqa: F401

    gc.enable()
    logger.info("imported torch in %.2f s", time.perf_counter() - began)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()
