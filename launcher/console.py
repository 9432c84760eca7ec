"""Output streams of a run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

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
