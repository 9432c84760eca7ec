"""A user at a terminal: types, reads, presses Ctrl-C."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.launcher.jobs import Job

CTRL_C = "\x03"
CTRL_D = "\x04"
_TIMEOUT_S = 60


class User:
    """Has started one command at a terminal of its own."""

    def __init__(self, terminal: int, process: "subprocess.Popen[bytes]") -> None:
        self.seen = ""
        self.process = process
        self._terminal = terminal
        self._read_to = 0

    def wait_for(self, text: str, count: int = 1) -> None:
        """Read until a text has been printed, so many times since the last call."""
        deadline = time.monotonic() + _TIMEOUT_S
        for _ in range(count):
            while (found := self.seen.find(text, self._read_to)) < 0:
                assert self._read(deadline - time.monotonic()), f"no {text!r} in\n{self.seen}"
            self._read_to = found + len(text)

    def type(self, text: str) -> None:
        """Type a text; a line needs its end."""
        os.write(self._terminal, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of the terminal."""
        _resize(self._terminal, rows, columns)

    def finish(self) -> int:
        """Read to the end; return the exit code."""
        deadline = time.monotonic() + _TIMEOUT_S
        while self._read(deadline - time.monotonic()):
            pass
        return self.process.wait(max(0, deadline - time.monotonic()))

    def _read(self, timeout_s: float) -> bool:
        """Whether there was anything to read: not after the last process with this terminal has ended."""
        assert select.select([self._terminal], [], [], max(0, timeout_s))[0], f"nothing new after\n{self.seen}"
        data = b""
        with suppress(OSError):
            data = os.read(self._terminal, 1 << 16)
        self.seen += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)


@contextmanager
def at_terminal(job: Job, script: str, *words: str, term: str = "dumb") -> Iterator[User]:
    """Run a job at a terminal, and end it with the block."""
    job.write(script)
    with command_at_terminal(job.command(*words), job.folder, job.whole_environ() | {"TERM": term}) as user:
        yield user


@contextmanager
def command_at_terminal(command: list[str], folder: Path, environ: dict[str, str]) -> Iterator[User]:
    """Run a command at a terminal of 24 rows and 80 columns, and end it with the block."""
    own, terminal = pty.openpty()
    _resize(terminal, 24, 80)
    process = subprocess.Popen(
        # A shell starts what it puts into the background with SIGINT ignored, the test run itself perhaps.
        ["env", "--default-signal=INT,HUP,QUIT", "setsid", "--ctty", *command],
        cwd=folder,
        env=environ,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    try:
        yield User(own, process)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_TIMEOUT_S)
        process.kill()
        os.close(own)


def _resize(terminal: int, rows: int, columns: int) -> None:
    # termios.tcsetwinsize: from Python 3.11 on
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
