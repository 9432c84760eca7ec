"""Keys that are pressed at a terminal, one by one and without echo."""

import os
import select
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

_KEYS = {
    b"q": "quit",
    b"Q": "quit",
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"k": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"j": "down",
    b"\x1b[5~": "page up",
    b"b": "page up",
    b"\x1b[6~": "page down",
    b" ": "page down",
    b"\x1b[H": "home",
    b"\x1bOH": "home",
    b"g": "home",
    b"\x1b[F": "end",
    b"\x1bOF": "end",
    b"G": "end",
}


class Keyboard:
    """The keys of a terminal; none where the standard input is something else."""

    def __init__(self, stream: TextIO | None) -> None:
        self._file = stream.fileno() if stream is not None and not stream.closed and stream.isatty() else None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Switch the terminal to single keys. Ctrl-C and Ctrl-Z still send their signals."""
        if self._file is None:
            yield
            return
        before = termios.tcgetattr(self._file)
        tty.setcbreak(self._file, termios.TCSANOW)
        try:
            yield
        finally:
            with suppress(termios.error):
                termios.tcsetattr(self._file, termios.TCSANOW, before)

    def pressed(self, timeout_s: float) -> list[str]:
        """The names of the keys that were pressed within so many seconds: `quit`, `up`, `page down`; others are left out."""
        if self._file is None:
            time.sleep(timeout_s)
            return []
        if not select.select([self._file], [], [], timeout_s)[0]:
            return []
        data = os.read(self._file, 1024)
        if not data:  # the terminal is gone
            return ["quit"]
        return [*keys_in(data)]


def keys_in(data: bytes) -> Iterator[str]:
    """The names of the keys in what a terminal has sent."""
    at = 0
    while at < len(data):
        code = next((code for code in _KEYS if data.startswith(code, at)), None)
        if code is not None:
            yield _KEYS[code]
        at += len(code or b"\0")
