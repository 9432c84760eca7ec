"""Output streams of a run."""

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

    @classmethod
    def of_process(cls, out: TextIO, err: TextIO, say: Say, fold_s: float, *, redraws: bool = True) -> "Console":
        """The console of a command. Progress bars are redrawn in place if all of its output is on a terminal.

        Args:
            out, err, say, fold_s: as the fields.
            redraws: `False` if another program uses the terminal, too.
        """
        is_terminal = redraws and out.isatty() and err.isatty() and environ.get("TERM") not in (None, "", "dumb")
        bottom = BottomLines(err) if is_terminal else None
        return cls(out=out, err=err, say=bottom.above(say) if bottom is not None else say, fold_s=fold_s, bottom=bottom)
