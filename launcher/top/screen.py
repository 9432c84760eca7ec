"""`mimo-launch top` on a terminal: the whole screen, redrawn at each interval, at each key and when its size changes."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, ScreenContext
from rich.control import Control
from rich.segment import Segment, Segments
from rich.style import Style

from launcher.outcome import Terminated
from launcher.top.keyboard import Keyboard
from launcher.top.moment import Moment, Source, State
from launcher.top.page import Line, Page, page_of

_KEYS_S = 0.1
"""How often the size of the terminal is looked at, and whether Ctrl-Z was pressed."""
_HELP = "q: quit"


class View:
    """The part of a page that is on the screen."""

    def __init__(self) -> None:
        self._first = 0

    def turn(self, key: str, page: Page, height: int) -> None:
        """Scroll the body."""
        page = _scrolled(page, height)
        rows = _rows(page, height)
        steps = {"up": -1, "down": 1, "page up": -rows, "page down": rows, "home": -len(page.body), "end": len(page.body)}
        self._first += steps.get(key, 0)
        self._first = max(0, min(self._first, len(page.body) - rows))

    def lines(self, page: Page, height: int) -> list[Line]:
        """The lines for a screen of this height, the last of which has the keys."""
        page = _scrolled(page, height)
        rows = _rows(page, height)
        self._first = max(0, min(self._first, len(page.body) - rows))
        shown = page.body[self._first : self._first + rows]
        lines = [*page.head, *shown][: height - 1]
        is_cut = len(page.body) > rows
        where = f"   up, down: lines {self._first + 1}-{self._first + len(shown)} of {len(page.body)}" if is_cut else ""
        lines += [[]] * (height - 1 - len(lines))
        return [*lines, [Segment(_HELP + where, Style(dim=True))]]


def _scrolled(page: Page, height: int) -> Page:
    """The page with a head that leaves room for its body: one that does not is scrolled with it."""
    return page if len(page.head) <= height // 2 else Page([], [*page.head, *page.body])


def _rows(page: Page, height: int) -> int:
    return max(1, height - 1 - len(page.head))


class Screen:
    """Watches a run on a terminal."""

    def __init__(self, console: Console, source: Source, keyboard: Keyboard, interval_s: float) -> None:
        """
        Args:
            console: the terminal.
            source: the run.
            keyboard: the keys that are pressed there.
            interval_s: seconds from one look at the run to the next.
        """
        self._console = console
        self._source = source
        self._keyboard = keyboard
        self._interval_s = interval_s
        self._view = View()
        self._is_suspended = False

    def run(self) -> Moment | None:
        """Show the run until it is over; return that moment, or `None` if the user quits.

        Raises:
            KeyboardInterrupt: Ctrl-C. As after a signal that ends this process, the terminal is as it was before.
        """
        with _signals_handled(self._suspend):
            while True:
                try:
                    with self._keyboard.listening(), self._console.screen() as screen:
                        return self._watch(screen)
                except _Suspended:
                    self._is_suspended = False
                    os.kill(os.getpid(), signal.SIGSTOP)

    def _suspend(self, *_: object) -> None:
        self._is_suspended = True

    def _watch(self, screen: ScreenContext) -> Moment | None:
        while True:
            moment = self._source.read()
            if moment.state is State.OVER:
                return moment
            if not self._stay(screen, moment, time.monotonic() + self._interval_s):
                return None

    def _stay(self, screen: ScreenContext, moment: Moment, until: float) -> bool:
        """Show a moment for an interval. Whether the user has not quit meanwhile."""
        drawn_for = None
        while True:
            size = self._console.size
            if size != drawn_for:
                page = page_of(moment, self._console)
                self._draw(screen, page, size.height)
                drawn_for = size
            if self._is_suspended:
                raise _Suspended
            left = until - time.monotonic()
            if left <= 0:
                return True
            for key in self._keyboard.pressed(min(left, _KEYS_S)):
                if key == "quit":
                    return False
                self._view.turn(key, page, size.height)
                drawn_for = None

    def _draw(self, screen: ScreenContext, page: Page, height: int) -> None:
        lines = self._view.lines(page, height)
        with self._console:  # one write
            self._console.control(Control.home())
            screen.update(Segments([segment for line in lines for segment in (*line, Segment.line())]))


class _Suspended(KeyboardInterrupt):
    """Ctrl-Z."""


@contextmanager
def _signals_handled(suspend: Callable[..., None]) -> Iterator[None]:
    """Leave the screen before SIGTERM or SIGHUP ends this process, or Ctrl-Z stops it."""
    received: list[int] = []

    def end(number: int, _: object) -> None:
        received.append(number)
        raise Terminated

    handlers = {signal.SIGTERM: end, signal.SIGHUP: end, signal.SIGTSTP: suspend}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
