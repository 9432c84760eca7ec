"""Lines at the bottom of a terminal, redrawn in place."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

_MOST_ROWS = 8
_USUAL_HEIGHT = 24
_REDRAW_S = 0.5
_ERASE = "\x1b[J"
"""From the cursor to the end of the screen."""
_CUT_LINES, _WRAP_LINES = "\x1b[?7l", "\x1b[?7h"
_NO_COLOR = "\x1b[0m"
"""A line whose end is cut may not have set it back."""


class BottomLines:
    """The last lines of a terminal, which are redrawn in place: progress bars.

    The cursor stays at the start of the first of them, so that what other programs print replaces them and is not appended.
    """

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._lock = threading.RLock()
        self._lines: list[str] = []
        self._drawn: list[str] = []
        self._drawn_at = float("-inf")

    def show(self, lines: Sequence[str], now: float) -> None:
        """Show these lines instead of those before; they are drawn at most twice a second."""
        with self._lock:
            self._lines = list(lines)
            if self._lines != self._drawn and (not lines or now - self._drawn_at >= _REDRAW_S):
                self._drawn_at = now
                self._draw()

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Remove the lines while something is printed, and show them again below it."""
        with self._lock:
            if self._drawn:
                self._write(_ERASE)
            try:
                yield
            finally:
                self._drawn = []
                if self._lines:
                    self._draw()

    def above(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """The same function, for messages above the lines."""

        def say_above(text: str) -> None:
            with self.lifted():
                say(text)

        return say_above

    def _draw(self) -> None:
        lines = [f"{line}{_NO_COLOR}" for line in self._fitting()]
        up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
        text = "\n".join(lines)
        self._write(f"{_ERASE}{_CUT_LINES}{text}{_WRAP_LINES}{up}\r" if lines else _ERASE)
        self._drawn = self._lines

    def _fitting(self) -> list[str]:
        rows = max(1, min(_MOST_ROWS, self._height() - 1))
        if len(self._lines) <= rows:
            return self._lines
        shown = self._lines[: rows - 1]
        return [*shown, f"... and {len(self._lines) - len(shown)} more"]

    def _height(self) -> int:
        try:
            return os.get_terminal_size(self._terminal.fileno()).lines or _USUAL_HEIGHT
        except OSError:
            return _USUAL_HEIGHT

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            if _is_in_foreground(self._terminal):
                self._terminal.write(text)
                self._terminal.flush()


def _is_in_foreground(terminal: TextIO) -> bool:
    """Whether nobody else uses the terminal, such as the shell behind `mimo-launch run job.yaml &`."""
    try:
        return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:  # not the terminal of this session
        return True
