"""Output streams of a run."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from launcher.terminal.bottom_lines import BottomLines
from mimo_role.host import environ

FOLD_S = 0.2
"""How long a line is held for other ranks to write it too."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Console:
    """Where the ranks' output and the messages of mimo-launch are printed."""

    out: TextIO
    err: TextIO
    say: Say
    fold_s: float = FOLD_S
    """A line that several ranks write within so many seconds is printed once; 0: once per rank."""
    bottom: BottomLines | None = None
    """Shows progress bars; `None`: their states are printed as lines, rarely."""
    has_status: bool = True
    """Whether a status line is shown below them."""

    @classmethod
    def of_process(
        cls, out: TextIO, err: TextIO, say: Say, fold_s: float, *, redraws: bool = True, has_status: bool = True
    ) -> "Console":
        """The console of a command. Progress bars are redrawn in place if all of its output is on a terminal.

        Args:
            out, err, say, fold_s, has_status: as the fields.
            redraws: `False` if another program uses the terminal, too.
        """
        is_terminal = redraws and out.isatty() and err.isatty() and environ.get("TERM") not in (None, "", "dumb")
        bottom = BottomLines(err) if is_terminal else None
        say = bottom.above(say) if bottom is not None else say
        return cls(out=out, err=err, say=say, fold_s=fold_s, bottom=bottom, has_status=has_status)


class LogsToMessages(logging.Handler):
    """Prints what is logged as messages, which appear above the last lines of a terminal and not over them."""

    def __init__(self, say: Say) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        try:
            self._say(self.format(record))
        except Exception:
            self.handleError(record)
