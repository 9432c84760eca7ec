"""Shows the states of lines without an end: progress bars, prompts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from launcher.logs.followed import Followed
from launcher.terminal.bottom_lines import BottomLines
from launcher.terminal.text import text_of

Prefix = Callable[[Sequence[int]], str]


class States(Protocol):
    """How states are shown."""

    def due(self, files: Iterable[Followed], now: float) -> Iterator[tuple[Followed, list[bytes]]]:
        """Show what has changed. Yields the states that are to be printed as lines."""

    def lifted(self) -> AbstractContextManager[None]:
        """While lines are printed."""

    def clear(self) -> None:
        """Remove what is shown."""


class StatesAsLines:
    """Each is a line of its own: in a file or a pipe, where nothing can be redrawn."""

    def due(self, files: Iterable[Followed], now: float) -> Iterator[tuple[Followed, list[bytes]]]:
        """See `Pace`."""
        for followed in files:
            if states := followed.pace.due(now):
                yield followed, states

    def lifted(self) -> AbstractContextManager[None]:
        """Nothing is shown that would be in the way."""
        return nullcontext()

    def clear(self) -> None:
        """Lines stay."""


class StatesInPlace:
    """At the bottom of the terminal; equal ones of several ranks in one line."""

    def __init__(self, bottom: BottomLines, prefix: Prefix) -> None:
        """
        Args:
            bottom: the terminal.
            prefix: the prefix of a line that these ranks wrote.
        """
        self._bottom = bottom
        self._prefix = prefix

    def due(self, files: Iterable[Followed], now: float) -> Iterator[tuple[Followed, list[bytes]]]:
        """Redraw them; no lines."""
        ranks_by_text: dict[str, list[int]] = {}
        for followed in files:
            for state in followed.tail.rows.states() if followed.pace.is_state(now) else ():
                ranks_by_text.setdefault(text_of(state), []).append(followed.rank)
        self._bottom.show([f"{self._prefix(sorted({*ranks}))} {text}" for text, ranks in ranks_by_text.items()], now)
        return iter(())

    def lifted(self) -> AbstractContextManager[None]:
        """They are redrawn below the lines."""
        return self._bottom.lifted()

    def clear(self) -> None:
        """For a message, or at the end."""
        self._bottom.show([], 0.0)
