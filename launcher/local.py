"""This machine's ranks: torchelastic's agent over a fork server, and the end of every process that they started."""

import contextlib
import gc
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from launcher import forkserver, machine, warden
from launcher.errors import LaunchError
from launcher.plan import LaunchPlan
from launcher.rundir import RunDir
from launcher.schema import Backend, StartMethod
from mimo_role import environ

if TYPE_CHECKING:
    from launcher.agent import Ending

logger = logging.getLogger(__name__)

MEMORY_PER_RANK = {StartMethod.FORKSERVER: 40 << 20, StartMethod.SPAWN: 250 << 20}
"""Bytes that one rank takes before it has a model, measured with torch 2.13 (see docs/measurements.md)."""

INTERRUPTED = 130


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    exit_code: int
    failure: str | None = None
    """What failed, for people; `None` after success."""


def run(plan: LaunchPlan, config_text: str, *, out: TextIO, err: TextIO) -> Outcome:
    """Start the plan's ranks on this machine and wait until all have ended.

    Ranks' output goes to `out` and `err`, each line behind its rank's role, and in full to the run folder.

    Raises:
        LaunchError: this machine cannot start the plan as it stands. Nothing has been started.
    """
    check(plan)
    run_dir = RunDir(Path(plan.run_dir), config_text, plan.to_json())
    logger.info("run folder %s, run id %s", run_dir.path, run_dir.run_id)
    try:
        forkserver.start_tracker()
        _set_environment(plan, run_dir.run_id)
        with _warded(run_dir.run_id):
            ending = _run_agent(plan, run_dir, out, err)
        return _outcome(plan, run_dir, ending)
    except KeyboardInterrupt:
        return Outcome(INTERRUPTED, "interrupted")
    finally:
        run_dir.close()


def check(plan: LaunchPlan) -> None:
    """Refuse what cannot start here.

    Raises:
        LaunchError: several nodes, more ranks than GPUs or than memory, or NCCL without a GPU.
    """
    ranks, gpus = plan.topology.world_size, machine.gpus()
    if len(plan.nodes) > 1:
        raise LaunchError(
            f"the plan has {len(plan.nodes)} nodes, and run starts the ranks of one machine; "
            "pools=null puts all ranks on this one"
        )
    if plan.backend is Backend.NCCL and not gpus:
        raise LaunchError("runtime.backend=nccl, but this machine has no NVIDIA GPU; use gloo, or auto")
    if plan.backend is not Backend.GLOO and 0 < gpus < ranks:
        raise LaunchError(f"{ranks} ranks, but this machine has {gpus} GPUs; make the modules smaller, or runtime.backend=gloo")
    free, needed = machine.available_memory(), ranks * MEMORY_PER_RANK[plan.start_method]
    if free is not None and needed > free:
        raise LaunchError(
            f"{ranks} ranks take about {needed / 2**30:.1f} GiB before they have a model, but this machine has "
            f"{free / 2**30:.1f} GiB left; make the modules smaller, or spread them over nodes with pools"
        )


def _set_environment(plan: LaunchPlan, run_id: str) -> None:
    """What every process of the run inherits, from before its interpreter starts."""
    defaults = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    if plan.topology.world_size > 1:
        defaults["OMP_NUM_THREADS"] = "1"
    environ.export({name: value for name, value in defaults.items() if environ.get(name) is None})
    environ.export({**plan.env, warden.RUN_ID: run_id})


@contextlib.contextmanager
def _warded(run_id: str) -> Iterator[None]:
    """See to it that no process of the run outlives this block, or this process."""
    command = [sys.executable, "-I", "-S", warden.__file__, run_id]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as guard:
        try:
            yield
        finally:
            assert guard.stdin is not None
            guard.stdin.close()
            guard.wait()


def _run_agent(plan: LaunchPlan, run_dir: RunDir, out: TextIO, err: TextIO) -> "Ending":
    if plan.entry.command is None and plan.start_method is StartMethod.FORKSERVER:
        # Before this process imports torch: the server imports it at the same time.
        forkserver.start()
    gc.disable()  # as in preload.py
    started = time.perf_counter()
    from launcher import agent

    gc.enable()
    logger.info("imported torch in %.2f s", time.perf_counter() - started)
    return agent.run(plan, run_dir, out, err)


def _outcome(plan: LaunchPlan, run_dir: RunDir, ending: "Ending") -> Outcome:
    if ending.signal is not None:
        return Outcome(128 + ending.signal, f"ended by {ending.signal.name}")
    if ending.failure is None:
        return Outcome(0)
    rank = ending.failure.rank
    logs = [run_dir.log_file(ending.attempt, rank, stream) for stream in ("stdout", "stderr")]
    described = ending.failure.describe(plan.topology, run_dir.error_file(ending.attempt, rank), logs)
    return Outcome(ending.failure.exit_code, described)
