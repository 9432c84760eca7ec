"""Ctrl-C, pressed once or several times."""

import signal
from types import FrameType


class Interrupts:
    """Counts SIGINT. The first one raises `KeyboardInterrupt`; each further one shortens the wait for the ranks' end."""

    def __init__(self) -> None:
        self.count = 0

    def listen(self) -> None:
        """Handle SIGINT, unless this process was started with it ignored, as by `nohup` or in the background of a script."""
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._handle)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            raise KeyboardInterrupt
