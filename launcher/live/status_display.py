"""The status line of `mimo-launch run`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from launcher.console import Console
from launcher.live.status_line import status_line
from launcher.live.view import LiveView


@contextmanager
def status_display(console: Console) -> Iterator[Callable[[LiveView], None] | None]:
    """What shows a run in the last line of a terminal, from its first step on, until the end of the block.

    `None` where the console has no such line.
    """
    bottom = console.bottom if console.has_status else None
    if bottom is None:
        yield None
        return

    def show(view: LiveView) -> None:
        if view.step is not None:
            bottom.show_status(partial(status_line, view), time.monotonic())

    try:
        yield show
    finally:
        bottom.show_status(None, time.monotonic())
