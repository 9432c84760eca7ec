"""The process of one rank, from its start to the user's script."""

import atexit
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from launcher.config.schema import Join
from launcher.errors import LaunchError
from launcher.exit_code import ExitCode
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.plan_file import read_plan
from launcher.preflight import facts
from launcher.worker import late_variables, numa_binding, preload
from launcher.worker.fresh_process import become_fresh
from launcher.worker.main_program import prepare_path, record_error, run_as_main, script_frames
from mimo_role.errors import MimoError
from mimo_role.host import environ
from mimo_role.monitoring import diagnostics
from mimo_role.rank_environ import RankEnviron

_KILLED_WITHIN_S = 60.0
"""After a failed preflight check the agent ends all ranks; one that is not ended by then exits by itself."""


def run_python(plan_file: str, run_id: str, node: str, *, started_with: Collection[str]) -> None:
    """Prepare the rank, and run the script or module as the main program.

    The caller returns to the interpreter, which joins the threads, calls the exit functions and ends.

    Args:
        plan_file, run_id, node: the plan, the run and this process's node in it.
        started_with: the modules that were imported before mimo-launch's own.
    """
    plan = prepare(Path(plan_file), run_id, node)
    if "torch" in sys.modules:
        late_variables.apply("the environment of a module")
        preload.enter_rank()
    else:
        late_variables.remember()
    become_fresh()
    _shut_down_at_exit()
    try:
        _bind(plan)
        _enable_diagnostics()
        _arrive(plan)
        if plan.runtime.join is Join.LAUNCHER:
            _join(plan)
    except Exception as error:
        _leave_groups_alone()
        _report(error)
        sys.exit(ExitCode.FAILURE)
    _offer_debuggers(plan)
    prepare_path(plan.entry, started_with)
    preload.offer_to_script()
    run_as_main(plan.entry, on_failure=_leave_groups_alone)


def _bind(plan: LaunchPlan) -> None:
    if plan.runtime.numa_binding is not None:
        numa_binding.bind(plan.runtime.numa_binding, environ.local_rank())


def _offer_debuggers(plan: LaunchPlan) -> None:
    from launcher.worker import debugging  # late: ranks that become a command do without pdb

    rank = environ.rank()
    assert rank is not None
    label = f"rank {rank} ({plan.topology.label_of(rank)})"
    if plan.debug_port is not None and rank in plan.debug:
        debugging.wait_for_debugger(label, plan.debug_port + plan.debug.index(rank))
    else:
        debugging.offer_terminal(label, allowed=rank in plan.debug, is_only=len(plan.debug) == 1)


def _enable_diagnostics() -> None:
    """Enable stack dumps, for crashes in C and for hang reports."""
    folder, rank = environ.node_dir(), environ.rank()
    if folder is not None and rank is not None:
        diagnostics.enable_diagnostics(folder, rank)


def _arrive(plan: LaunchPlan) -> None:
    """Write this rank's facts for the preflight check and, in a job of several nodes, wait for its result.

    On one node the agent checks while the ranks join. If they waited here, they would all join at the same moment, and
    name servers do not answer all of the queries that torch makes then.

    Raises:
        SystemExit: the check failed; the agent reports why.
    """
    rank, folder = environ.rank(), environ.node_dir()
    assert rank is not None
    if folder is None or not folder.is_dir():
        return
    own = facts.gather(rank=rank, local_rank=environ.local_rank(), topology_digest=plan.topology.digest, entry=plan.entry)
    if not facts.arrive(own, folder, plan.runtime.timeout_s, wait=plan.preflight and len(plan.nodes) > 1):
        threading.Event().wait(_KILLED_WITHIN_S)
        sys.exit(ExitCode.USER_ERROR)


def exec_command(plan_file: str, run_id: str, node: str) -> NoReturn:
    """Prepare the rank and become the command."""
    plan = prepare(Path(plan_file), run_id, node)
    assert plan.entry.command is not None
    _bind(plan)
    _arrive(plan)
    command = [*plan.entry.command, *plan.entry.args]
    os.execvp(command[0], command)


def prepare(plan_file: Path, run_id: str, node: str) -> LaunchPlan:
    """Read the plan and set the rank's environment.

    Raises:
        ConfigError: the plan cannot be read.
        LaunchError: the plan has another rank in the place of this process.
    """
    # A scheduler warns of its time limit by SIGUSR1, which would end a rank whose script does not handle it.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    plan = plan_of(plan_file)
    rank = environ.rank()
    assert rank is not None, "torchelastic sets RANK"
    _check_place(plan, rank, node)
    contract = RankEnviron(
        topology=plan.topology,
        rank=rank,
        run_dir=plan.run_dir,
        run_id=run_id,
        backend=plan.runtime.backend.value,
        timeout_s=plan.runtime.timeout_s,
        groups=plan.groups,
        restart_count=environ.slurm_restarts() + environ.elastic_restarts(),
        node=node,
        grace_s=plan.runtime.grace_s,
        warning_s=plan.runtime.warning_s,
    )
    environ.export(plan.env_of(rank) | contract.to_environ())
    return plan


@lru_cache(maxsize=1)
def plan_of(plan_file: Path) -> LaunchPlan:
    """The plan of a file, which is read once: by the fork server for all of its ranks.

    Raises:
        ConfigError: as `read_plan`.
    """
    return read_plan(plan_file)


def _check_place(plan: LaunchPlan, rank: int, node: str) -> None:
    ranks, local_rank = plan.node(node).ranks, environ.local_rank()
    if local_rank >= len(ranks) or ranks[local_rank] != rank or environ.world_size() != plan.topology.world_size:
        raise LaunchError(
            f"process {local_rank} of {node} ({socket.gethostname()}) is rank {rank} of {environ.world_size()}, and the plan "
            f"has ranks {ranks.start}-{ranks.stop - 1} of {plan.topology.world_size} there"
        )


def _join(plan: LaunchPlan) -> None:
    import mimo_role

    with _log_shown() if plan.verbose else nullcontext():
        mimo_role.init(plan.topology, backend=plan.runtime.backend.value, timeout_s=plan.runtime.timeout_s, groups=plan.groups)


@contextmanager
def _log_shown() -> Iterator[None]:
    """Print the log of mimo_role; the script, which sets up logging, has not started yet."""
    logger, handler = logging.getLogger("mimo_role"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("mimo-launch: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(logging.NOTSET)
        logger.removeHandler(handler)


_rank_to_shut_down: int | None = None
"""The process that leaves its groups when it exits."""


def _shut_down_at_exit() -> None:
    """Call `mimo_role.shutdown()` at the end, after the script's own exit functions, in a rank that ends well."""
    global _rank_to_shut_down
    _rank_to_shut_down = os.getpid()
    atexit.register(_shut_down)


def _leave_groups_alone() -> None:
    """A rank that fails does not wait for others."""
    global _rank_to_shut_down
    _rank_to_shut_down = None


def _shut_down() -> None:
    lifecycle = sys.modules.get("mimo_role.lifecycle")
    if lifecycle is not None and os.getpid() == _rank_to_shut_down:
        lifecycle.shutdown()


def _report(error: BaseException) -> None:
    """Print and record the traceback, from the script's first frame on; none for a `MimoError` from joining."""
    with suppress(OSError):  # a full disk
        sys.stdout.flush()
    is_explained = isinstance(error, MimoError) and _is_from_preparation(error.__traceback__)
    frames = error.__traceback__
    record_error(error, None if is_explained else script_frames(frames) or frames, to_stderr=True)


def _is_from_preparation(frames: TracebackType | None) -> bool:
    while frames is not None:
        if frames.tb_frame.f_code in (_bind.__code__, _join.__code__):
            return True
        frames = frames.tb_next
    return False
