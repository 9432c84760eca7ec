"""This machine's node: torchelastic's agent over a fork server, and the end of every process that they started."""

import contextlib
import gc
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.config.schema import Backend, StartMethod
from launcher.console import Console, Say
from launcher.coordination.node_identity import LocalNode
from launcher.errors import LaunchError
from launcher.host import fork_server, reaper, resources
from launcher.outcome import REQUEUED, ExitCode
from launcher.plan.launch_plan import LaunchPlan
from launcher.run_dir.writer import RunDir
from mimo_role import REQUEUE_EXIT_CODE
from mimo_role.host import environ, network
from mimo_role.monitoring import node_dir

if TYPE_CHECKING:
    from launcher.agent.job_monitor import Ending
    from launcher.coordination.coordinator import Coordinator

logger = logging.getLogger(__name__)

MEMORY_PER_RANK = {StartMethod.FORKSERVER: 40 << 20, StartMethod.SPAWN: 250 << 20}
"""Bytes that one rank takes before it has a model, measured with torch 2.13 (see docs/measurements.md)."""

INTERRUPTED = 130
USER_ERROR = 2


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    exit_code: int
    failure: str | None = None
    """What failed, for people; `None` after success."""
    kind: str = "done"
    """In a word: `done`, `failed`, `stalled`, `refused`, `requeued`, or `ended` from outside."""
    attempts: int = 1
    """How often the ranks have been started."""
    restarts: Sequence[str] = ()
    """Why they were started again."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What failed, for programs."""


def run(plan: LaunchPlan, here: LocalNode, config_text: str, streams: Console) -> Outcome:
    """Start the ranks of this machine's node and wait until those of all nodes have ended.

    Ranks' output goes to the streams, each line behind its rank's role, and in full to the run folder.

    Raises:
        LaunchError: this machine cannot start the plan as it stands, or the nodes do not come together. No rank has been
            started.
    """
    check(plan, here)
    agent_id = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{os.getpid()}"
    # Node 0's agent names the run. The others take the folder when they have heard how.
    run_dir = _take_run_dir(plan, here, config_text, agent_id, agent_id) if here.node_rank == 0 else None
    began = time.time()
    try:
        outcome = _run(plan, here, config_text, agent_id, run_dir, streams)
        if run_dir is not None:
            run_dir.write_report(_report(outcome, began))
        return outcome
    finally:
        if run_dir is not None:
            run_dir.close()


def _run(
    plan: LaunchPlan, here: LocalNode, config_text: str, agent_id: str, run_dir: RunDir | None, streams: Console
) -> Outcome:
    try:
        # Deadly by default, to this process and to all that it starts.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        # Until torchelastic takes it over: the other nodes are told.
        signal.signal(signal.SIGTERM, _terminate)
        fork_server.start_tracker()
        folder = node_dir.make(agent_id)
        _set_environment(plan, here, agent_id, folder)
        with _warded(agent_id, plan.runtime.grace_s, folder):
            _import_torch(plan)
            control = _meet(plan, here, agent_id, streams.say) if here.endpoint is not None else None
            try:
                if run_dir is not None:
                    return _run_agent(plan, here, run_dir, folder, control, streams)
                assert control is not None
                with contextlib.closing(_take_run_dir(plan, here, config_text, agent_id, control.run_id)) as own:
                    return _run_agent(plan, here, own, folder, control, streams)
            except BaseException as error:
                if control is not None:
                    _tell(control, error)
                raise
            finally:
                if control is not None:
                    control.leave(plan.runtime.grace_s)
    except _Terminated:
        return Outcome(128 + signal.SIGTERM, "ended by SIGTERM", "ended")
    except KeyboardInterrupt:
        return Outcome(INTERRUPTED, "interrupted", "ended")


def _report(outcome: Outcome, began: float) -> dict[str, Any]:
    headline = outcome.failure.partition("\n")[0] if outcome.failure is not None else None
    return {
        "outcome": outcome.kind,
        "exit_code": outcome.exit_code,
        "headline": headline,
        "attempts": outcome.attempts,
        "restarts": list(outcome.restarts),
        "began": _iso(began),
        "ended": _iso(time.time()),
        **outcome.details,
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def check(plan: LaunchPlan, here: LocalNode) -> None:
    """Refuse what cannot start here.

    Raises:
        LaunchError: more ranks than GPUs or than memory, or NCCL without a GPU.
    """
    ranks, gpus = plan.nodes[here.node_rank].procs, resources.gpus()
    if plan.runtime.backend is Backend.NCCL and not gpus:
        raise LaunchError("runtime.backend=nccl, but this machine has no NVIDIA GPU; use gloo, or auto")
    if plan.runtime.backend is not Backend.GLOO and 0 < gpus < ranks:
        raise LaunchError(f"{ranks} ranks, but this machine has {gpus} GPUs; make the modules smaller, or runtime.backend=gloo")
    free, needed = resources.available_memory(), ranks * MEMORY_PER_RANK[plan.runtime.start_method]
    if free is not None and needed > free:
        raise LaunchError(
            f"{ranks} ranks take about {needed / 2**30:.1f} GiB before they have a model, but this machine has "
            f"{free / 2**30:.1f} GiB left; make the modules smaller, or spread them over nodes with pools"
        )


def _take_run_dir(plan: LaunchPlan, here: LocalNode, config_text: str, agent_id: str, run_id: str) -> RunDir:
    run_dir = RunDir(Path(plan.run_dir), config_text, plan.to_json(), agent_id, run_id, here.slurm_job)
    logger.info("run folder %s, run id %s", run_dir.path, run_dir.run_id)
    return run_dir


def _set_environment(plan: LaunchPlan, here: LocalNode, agent_id: str, folder: Path) -> None:
    """What every process of the run inherits, from before its interpreter starts."""
    interface = "lo" if here.endpoint is None else network.interface_towards(here.endpoint.host)
    # gloo would take the interface of this host's own name, which may lead nowhere.
    defaults = {"GLOO_SOCKET_IFNAME": interface} if sys.platform == "linux" and interface is not None else {}
    if plan.topology.world_size > 1:
        defaults["OMP_NUM_THREADS"] = "1"
    environ.export({name: value for name, value in defaults.items() if environ.get(name) is None})
    environ.export({**plan.env, reaper.AGENT_ID: agent_id, environ.NODE_DIR: str(folder)})


@contextlib.contextmanager
def _warded(agent_id: str, grace_s: float, folder: Path) -> Iterator[None]:
    """See to it that no process of the run outlives this block, or this process."""
    command = [sys.executable, "-I", "-S", reaper.__file__, agent_id, str(grace_s), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as guard:
        try:
            yield
        finally:
            assert guard.stdin is not None
            guard.stdin.close()
            if guard.wait() != 0:  # somebody has killed it
                reaper.clean_up(agent_id, grace_s, str(folder))


def _import_torch(plan: LaunchPlan) -> None:
    if plan.entry.command is None and plan.runtime.start_method is StartMethod.FORKSERVER:
        # Before this process imports torch: the server imports it at the same time.
        fork_server.start()
    gc.disable()  # as in preload.py
    started = time.perf_counter()
    import launcher.agent.job_monitor  # noqa: F401

    gc.enable()
    logger.info("imported torch in %.2f s", time.perf_counter() - started)


def _meet(plan: LaunchPlan, here: LocalNode, agent_id: str, say: Say) -> "Coordinator":
    from launcher.coordination.coordinator import Coordinator

    assert here.endpoint is not None
    names = [node.name for node in plan.nodes]
    control = Coordinator(here.endpoint, names, here.node_rank, plan.digest, plan.runtime.timeout_s)
    try:
        control.meet(agent_id, say)
    except BaseException as error:
        if control.has_place and control.ending is None:
            _tell(control, error)
        control.leave(plan.runtime.grace_s)
        raise
    logger.info("all %d nodes are here: %s", len(names), ", ".join(map(str, control.members)))
    return control


class _Terminated(KeyboardInterrupt):
    """SIGTERM."""


def _terminate(*_: object) -> None:
    raise _Terminated


def _tell(control: "Coordinator", error: BaseException) -> None:
    """The other nodes would hear nothing, and wait."""
    if isinstance(error, _Terminated):
        control.end(f"ended by SIGTERM on {control.member}", 128 + signal.SIGTERM)
    elif isinstance(error, KeyboardInterrupt):
        control.end(f"interrupted on {control.member}", INTERRUPTED)
    else:
        control.end(f"{control.member}: {error or type(error).__name__}", 2 if isinstance(error, LaunchError) else 1)


def _run_agent(
    plan: LaunchPlan, here: LocalNode, run_dir: RunDir, folder: Path, control: "Coordinator | None", streams: Console
) -> Outcome:
    from launcher.agent import job_monitor

    if control is not None and here.node_rank == 0:
        run_dir.write_nodes(plan.nodes, [member.host for member in control.members])
    setting = job_monitor.Setting(
        plan=plan,
        here=here,
        run_dir=run_dir,
        folder=folder,
        control=control,
        streams=streams,
    )
    ending = job_monitor.run(setting)
    # SLURM's srun returns the highest code of all its tasks and kills the rest: node 0 alone tells how the job ended.
    told_by_node_0 = here.slurm_job is not None and here.node_rank != 0 and control is not None and not control.is_lost
    outcome = replace(_outcome(ending, run_dir), attempts=ending.attempt + 1, restarts=ending.restarts)
    is_from_outside = ending.signal is not None
    return replace(outcome, exit_code=0, failure=None) if told_by_node_0 and not is_from_outside else outcome


def _outcome(ending: "Ending", run_dir: RunDir) -> Outcome:
    if ending.requeue:
        return Outcome(REQUEUE_EXIT_CODE, f"{REQUEUED} (exit code {REQUEUE_EXIT_CODE})", "requeued")
    if ending.signal is not None:
        return Outcome(128 + ending.signal, f"ended by {ending.signal.name}", "ended")
    if ending.problem is not None:
        code = ending.problem.code
        return Outcome(code, ending.problem.message, _kind_of(code), details=ending.problem.details)
    if ending.report is not None:
        text = f"{ending.report.text()}\n  all of it: {run_dir.report_file}"
        return Outcome(ending.report.exit_code, text, "failed", details=ending.report.as_dict())
    if ending.elsewhere is not None:
        kind = "failed" if ending.elsewhere.rank is not None else _kind_of(ending.elsewhere.code)
        return Outcome(ending.elsewhere.code, f"ended: {ending.elsewhere.message}", kind)
    return Outcome(0)


def _kind_of(code: int) -> str:
    """How a job has ended that ends with a code of ours."""
    kinds = {ExitCode.STALLED: "stalled", USER_ERROR: "refused", REQUEUE_EXIT_CODE: "requeued"}
    return "ended" if code > 128 else kinds.get(code, "failed")
