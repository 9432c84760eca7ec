"""A program at a terminal of its own."""

import os
import pty
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.unchanged.launches import environment

_AT_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
INTERRUPT = b"\x03"
"""What Ctrl-C sends to a terminal."""


@contextmanager
def at_a_terminal(command: Sequence[str], folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """Start a command in the foreground of a new terminal; give its process and the other end of the terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _AT_TERMINAL, *command],
        cwd=folder,
        env=environment(TERM="dumb"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.terminate()
        process.wait(60)
        os.close(ours)


def read_to_end(terminal: int) -> str:
    """All that is printed until every process has closed the terminal."""
    found = b""
    try:
        while data := os.read(terminal, 4096):
            found += data
    except OSError:  # the terminal has no other end any more
        pass
    return found.decode(errors="replace").replace("\r\n", "\n")
