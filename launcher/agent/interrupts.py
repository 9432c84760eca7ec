"""Signals that end a job: Ctrl-C, pressed once or several times, and signals that come at a bad time."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def held_back(*numbers: signal.Signals) -> Iterator[None]:
    """Handle signals after a block instead of in it: C++ code that torch runs at its import drops exceptions of handlers."""
    arrived: list[int] = []
    handled = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    handlers = {number: signal.signal(number, lambda number, _: arrived.append(number)) for number in handled}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for late in arrived:
        signal.raise_signal(late)
