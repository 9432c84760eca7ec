"""Where goes what a run tells."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

FOLD_S = 0.2
"""For how long a line waits for other ranks to write it too."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Console:
    """Where goes what the ranks write, and what is told to a user who waits."""

    out: TextIO
    err: TextIO
    say: Say
    fold_s: float = FOLD_S
    """A line that several ranks write within so many seconds is passed on once; 0: once for each."""
