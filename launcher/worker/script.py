"""Running the user's script or module as `__main__`, and recording the exception that ends it."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from launcher.failures import crash
from launcher.plan.launch_plan import Entry
from mimo_role.host import environ, node_dir

_WORKER = os.path.join(os.path.dirname(__file__), "")  # noqa: PTH118, PTH120
_RUNPY = (runpy.__file__, "<frozen runpy>")


def run_as_main(entry: Entry) -> None:
    """Run the entry as `python script.py args` or `python -m module args` would, down to `sys.argv` and `sys.path[0]`.

    Raises:
        SystemExit: the script exits with another code than 0.
    """
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
    except SystemExit as error:
        if isinstance(error.code, int) and error.code != 0:
            raise
        if error.code not in (None, 0):
            _exit_with_message(error)


def record_error(error: BaseException, frames: TracebackType | None, *, to_stderr: bool) -> None:
    """Write an exception to the rank's error files, for the agent's report.

    Args:
        error: the exception.
        frames: the part of its traceback that is shown.
        to_stderr: whether to print the traceback too.
    """
    file, folder, rank = environ.get("TORCHELASTIC_ERROR_FILE"), environ.node_dir(), environ.rank()
    assert file is not None, "log_specs.py sets it"
    fallback = node_dir.error_file(folder, rank) if folder is not None and rank is not None else None
    crash.write_crash(error, frames, Path(file), to_stderr=to_stderr, fallback=fallback)


def script_frames(frames: TracebackType | None) -> TracebackType | None:
    """A traceback without its first frames, those of this package and of runpy."""
    rest = frames
    while rest is not None and _is_ours(rest.tb_frame.f_code.co_filename):
        rest = rest.tb_next
    return rest if rest is not None else frames


def _is_ours(file: str) -> bool:
    return file.startswith(_WORKER) or file in _RUNPY


def _set_command_line(words: list[str]) -> None:
    """Set what a script that restarts itself executes. multiprocessing uses the same function for the options."""
    sys.orig_argv = [sys.executable, *subprocess._args_from_interpreter_flags(), *words]  # type: ignore[attr-defined]


def _set_first_path(folder: str) -> None:
    """Replace mimo-launch's own entry by the script's folder, as Python does unless its safe path is on."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = folder


def _exit_with_message(error: SystemExit) -> NoReturn:
    """`sys.exit("text")`: print the text while stderr is still the rank's log file, and record it as the error."""
    sys.stderr.write(f"{error.code}\n")
    sys.stderr.flush()
    record_error(error, None, to_stderr=False)
    sys.exit(1)
