"""Ends a process with its exit functions, but without the interpreter's teardown.

The teardown of a process that has imported torch takes half a second, during which the user waits for the prompt.
`threading._shutdown` and `atexit._run_exitfuncs` are not documented; `tests/launcher/host/test_interpreter_exit.py`
fails if they change.
"""

import atexit
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn


def run_exit_functions() -> None:
    """Join the threads, then call the functions registered with atexit, as the interpreter does before its teardown."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()


def exit_without_teardown(code: int) -> NoReturn:
    """End this process with an exit code."""
    run_exit_functions()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            stream.flush()
    os._exit(code)
