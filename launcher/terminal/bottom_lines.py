"""Lines at the bottom of a terminal, redrawn in place."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

_MOST_ROWS = 8
_FEW_ROWS = 2
"""A terminal with no more has no room for a status line."""
_USUAL_SIZE = os.terminal_size((80, 24))
_REDRAW_S = 0.5
_ERASE = "\x1b[J"
"""From the cursor to the end of the screen."""
_CUT_LINES, _WRAP_LINES = "\x1b[?7l", "\x1b[?7h"
_NO_COLOR = "\x1b[0m"
"""A line whose end is cut may not have set it back."""


class BottomLines:
    """The last lines of a terminal, which are redrawn in place: progress bars, and a status line below them.

    The cursor stays at the start of the first of them, so that what other programs print replaces them and is not appended.
    """

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._lock = threading.RLock()
        self._lines: list[str] = []
        self._status: Callable[[int], str] | None = None
        self._drawn: list[str] = []
        self._drawn_at = float("-inf")

    def show(self, lines: Sequence[str], now: float) -> None:
        """Show these lines instead of those before; they are drawn at most twice a second."""
        with self._lock:
            is_cleared = bool(self._lines) and not lines
            self._lines = list(lines)
            self._redraw(now, at_once=is_cleared)

    def show_status(self, status: Callable[[int], str] | None, now: float) -> None:
        """Show a status line below the others instead of the one before.

        Args:
            status: the line for a number of columns; `None`: there is none any more.
            now: seconds on a monotonic clock.
        """
        with self._lock:
            self._status = status
            self._redraw(now, at_once=status is None)

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
                if self._lines or self._status is not None:
                    self._draw()

    def above(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """The same function, for messages above the lines."""

        def say_above(text: str) -> None:
            with self.lifted():
                say(text)

        return say_above

    def _redraw(self, now: float, *, at_once: bool) -> None:
        if self._fitting() != self._drawn and (at_once or now - self._drawn_at >= _REDRAW_S):
            self._drawn_at = now
            self._draw()

    def _draw(self) -> None:
        fitting = self._fitting()
        lines = [f"{line}{_NO_COLOR}" for line in fitting]
        up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
        text = "\n".join(lines)
        self._write(f"{_ERASE}{_CUT_LINES}{text}{_WRAP_LINES}{up}\r" if lines else _ERASE)
        self._drawn = fitting

    def _fitting(self) -> list[str]:
        size = self._size()
        # One column less: some terminals move to the next row after a character in the last one.
        status = [self._status(size.columns - 1)] if self._status is not None and size.lines > _FEW_ROWS else []
        rows = max(1, min(_MOST_ROWS, size.lines - 1 - len(status)))
        if len(self._lines) <= rows:
            return [*self._lines, *status]
        shown = self._lines[: rows - 1]
        return [*shown, f"... and {len(self._lines) - len(shown)} more", *status]

    def _size(self) -> os.terminal_size:
        try:
            size = os.get_terminal_size(self._terminal.fileno())
        except OSError:
            size = _USUAL_SIZE
        return os.terminal_size((size.columns or _USUAL_SIZE.columns, size.lines or _USUAL_SIZE.lines))

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
