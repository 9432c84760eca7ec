"""How a process of ours ends: what was registered to happen at exit happens, the interpreter's teardown does not.

Taking a process that has imported torch apart takes half a second, during which the user waits for the prompt.
`atexit._run_exitfuncs` has no documentation; `tests/launcher/test_pieces.py` fails if it changes.
"""

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn


def run_exit_functions() -> None:
    """Call what was registered with atexit, multiprocessing's clean-up included, last registered first."""
    atexit._run_exitfuncs()


def leave(code: int) -> NoReturn:
    """End this process with an exit code."""
    run_exit_functions()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            stream.flush()
    os._exit(code)
