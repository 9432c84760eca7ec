"""One rank, from its start to the user's script."""

import logging
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from launcher.config.schema import Join
from launcher.errors import LaunchError
from launcher.failures import crash
from launcher.host.interpreter_exit import run_exit_functions
from launcher.plan.launch_plan import Entry, LaunchPlan
from launcher.preflight import facts
from launcher.worker.fresh_process import become_fresh
from mimo_role.errors import MimoError
from mimo_role.host import environ
from mimo_role.monitoring import diagnostics
from mimo_role.rank_environ import RankEnviron

INTERRUPTED = 130
USER_ERROR = 2
_UNTIL_ENDED_S = 60.0


def run_python(plan_file: str, run_id: str, node: str) -> NoReturn:
    """torchelastic's entry point for a script or module: prepare the rank, run the entry as `__main__`, and exit.

    It ends the process in every case: torchelastic would wait for ever for a rank that exits without returning.
    """
    plan = prepare(Path(plan_file), run_id, node)
    become_fresh()
    try:
        _be_watched()
        _arrive(plan)
        if plan.runtime.join is Join.LAUNCHER:
            _join(plan)
        _run_as_main(plan.entry)
    except SystemExit:
        raise
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)  # torch.multiprocessing takes the exception itself for success
    except BaseException as error:
        _report(error)
        sys.exit(1)
    finally:
        # multiprocessing leaves out what a script registers with atexit.
        run_exit_functions()
        _flush()
    _leave()
    sys.exit()


def _flush() -> None:
    """While output still goes to the rank's files. The script may have closed a stream, and the disk may be full."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError, OSError):
            stream.flush()


def _be_watched() -> None:
    """Let the agent see a crash in C, and what this rank is at."""
    folder, rank = environ.node_dir(), environ.rank()
    if folder is not None and rank is not None:
        diagnostics.be_watched(folder, rank)


def _arrive(plan: LaunchPlan) -> None:
    """Tell the agent that this rank is there, and, where others are elsewhere, wait for its word that all fit together.

    On one machine the agent finds out while the ranks join. If they waited here, they would all join in the same moment, and
    name servers do not answer all of the questions that torch asks them then.

    Raises:
        SystemExit: they do not, which the agent tells.
    """
    rank, folder = environ.rank(), environ.node_dir()
    assert rank is not None
    if folder is None or not folder.is_dir():
        return
    own = facts.gather(rank=rank, local_rank=environ.local_rank(), topology_digest=plan.topology.digest, entry=plan.entry)
    if not facts.arrive(own, folder, plan.runtime.timeout_s, wait=plan.preflight and len(plan.nodes) > 1):
        # The agent tells, and ends all ranks.
        threading.Event().wait(_UNTIL_ENDED_S)
        sys.exit(USER_ERROR)


def exec_command(plan_file: str, run_id: str, node: str) -> NoReturn:
    """Prepare the rank and become the command."""
    plan = prepare(Path(plan_file), run_id, node)
    assert plan.entry.command is not None
    _arrive(plan)
    command = [*plan.entry.command, *plan.entry.args]
    os.execvp(command[0], command)


def prepare(plan_file: Path, run_id: str, node: str) -> LaunchPlan:
    """Read the plan and put the rank's environment in place.

    Raises:
        LaunchError: this process is not the rank that the plan has in its place.
    """
    # A warning that the job is about to end: whoever looks out for it takes it up, for others it is not deadly.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    plan = LaunchPlan.from_json(plan_file.read_text(encoding="utf-8"))
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
    """Pass on what mimo_role logs; the script, which sets up logging, has not started yet."""
    logger, handler = logging.getLogger("mimo_role"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("mimo-launch: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(logging.NOTSET)
        logger.removeHandler(handler)


def _leave() -> None:
    """Leave the job, if the script or the launcher has joined it by mimo_role.

    Without an import: the exit functions have run by now, and torch's have taken away what its modules need.
    """
    if (context := sys.modules.get("mimo_role.context")) is not None:
        context.shutdown()


def _run_as_main(entry: Entry) -> None:
    """What `python script.py args` or `python -m module args` does, down to sys.argv and sys.path[0]."""
    try:
        if entry.script is not None:
            sys.argv = [entry.script, *entry.args]
            _set_command_line(sys.argv)
            _set_first_path(str(Path(entry.script).resolve().parent))
            runpy.run_path(entry.script, run_name="__main__")
        else:
            assert entry.module is not None
            sys.argv = [entry.module, *entry.args]
            _set_command_line(["-m", *sys.argv])
            _set_first_path(os.getcwd())  # noqa: PTH109
            runpy.run_module(entry.module, run_name="__main__", alter_sys=True)
    except SystemExit as ending:
        if isinstance(ending.code, int) and ending.code != 0:
            raise
        if ending.code not in (None, 0):
            _exit_with_message(ending)


def _set_command_line(words: list[str]) -> None:
    """What a script that starts itself again executes. The function for the options is what multiprocessing uses."""
    sys.orig_argv = [sys.executable, *subprocess._args_from_interpreter_flags(), *words]  # type: ignore[attr-defined]


def _set_first_path(folder: str) -> None:
    """Put the script's folder where Python would, in place of mimo-launch's own; Python's safe path has neither."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = folder


def _exit_with_message(ending: SystemExit) -> NoReturn:
    """`sys.exit("text")`: print the text while output still goes to the rank's file, and write it down as its error."""
    sys.stderr.write(f"{ending.code}\n")
    sys.stderr.flush()
    _write_down(ending, None, to_stderr=False)
    sys.exit(1)


def _report(error: BaseException) -> None:
    """Print the traceback from the script's first frame on."""
    with suppress(OSError):  # a full disk
        sys.stdout.flush()
    by_joining = isinstance(error, MimoError) and _is_from_joining(error.__traceback__)
    _write_down(error, None if by_joining else _script_frames(error.__traceback__), to_stderr=True)


def _write_down(error: BaseException, frames: TracebackType | None, *, to_stderr: bool) -> None:
    file, folder = environ.get("TORCHELASTIC_ERROR_FILE"), environ.node_dir()
    assert file is not None, "ranklogs.py sets it"
    beside = folder / Path(file).name if folder is not None else None
    crash.write_down(error, frames, Path(file), to_stderr=to_stderr, beside=beside)


def _is_from_joining(frames: TracebackType | None) -> bool:
    while frames is not None:
        if frames.tb_frame.f_code is _join.__code__:
            return True
        frames = frames.tb_next
    return False


def _script_frames(frames: TracebackType | None) -> TracebackType | None:
    """Leave out the frames of this file and of runpy that led to the script."""
    ours = (__file__, runpy.__file__, "<frozen runpy>")
    rest = frames
    while rest is not None and rest.tb_frame.f_code.co_filename in ours:
        rest = rest.tb_next
    return rest if rest is not None else frames


if __name__ == "__main__":
    exec_command(*sys.argv[1:4])
