"""How a process of ours ends: what was registered to happen at exit happens, the interpreter's teardown does not.

Taking a process that has imported torch apart takes half a second, during which the user waits for the prompt.
`threading._shutdown` and `atexit._run_exitfuncs` have no documentation; `tests/launcher/test_pieces.py` fails if they change.
"""

import atexit
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn


def run_exit_functions() -> None:
    """Join the threads, then call what was registered with atexit, as the interpreter does before its teardown."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()


def exit_without_teardown(code: int) -> NoReturn:
    """End this process with an exit code."""
    run_exit_functions()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            stream.flush()
    os._exit(code)
