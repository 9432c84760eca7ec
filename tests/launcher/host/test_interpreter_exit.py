"""Exit functions and output of a process that skips the interpreter's teardown."""

import subprocess
import sys

LEAVE = """
import atexit, sys
from launcher.host.interpreter_exit import exit_without_teardown
atexit.register(print, "first registered")
atexit.register(print, "last registered", end="; ")
sys.stdout.write("unflushed; ")
exit_without_teardown(7)
"""


def test_exit_without_teardown_calls_the_exit_functions_and_flushes():
    """Fails if the undocumented function behind it changes."""
    done = subprocess.run([sys.executable, "-c", LEAVE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (7, "unflushed; last registered; first registered\n")
