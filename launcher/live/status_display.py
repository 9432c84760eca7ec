"""The status line of `mimo-launch run`."""

import time
from functools import partial

from launcher.live.status_line import status_line
from launcher.live.view import LiveView
from launcher.terminal.bottom_lines import BottomLines


class StatusDisplay:
    """Shows a run in the last line of a terminal, from its first step on."""

    def __init__(self, bottom: BottomLines) -> None:
        self._bottom = bottom

    def show(self, view: LiveView) -> None:
        """Show a view instead of the one before."""
        if view.step is not None:
            self._bottom.show_status(partial(status_line, view), time.monotonic())

    def close(self) -> None:
        """Remove the line."""
        self._bottom.show_status(None, time.monotonic())
