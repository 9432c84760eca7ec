"""Folds equal lines that several ranks write at about the same time into one, with the list of the ranks."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Folded:
    """One line, and the ranks that wrote it."""

    line: str
    number: int
    """Its place in the order of all lines."""
    since: float
    ranks: list[int] = field(default_factory=list)


class LineFolder:
    """Holds lines for a moment. Each rank's lines stay in order, and two lines of one rank are never folded."""

    def __init__(self, ranks: int, hold_s: float) -> None:
        """
        Args:
            ranks: the number of ranks that write; a line that all have written is released at once.
            hold_s: how long a line is held; 0: lines are not folded.
        """
        self._all = ranks
        self._hold_s = hold_s
        self._held: list[Folded] = []
        self._by_line: dict[str, list[Folded]] = {}
        self._last_of: dict[int, int] = {}
        """The number of the last line of each rank."""
        self._next = 0

    def add(self, rank: int, lines: Iterable[str], now: float) -> None:
        """Add lines that a rank has written."""
        for line in lines:
            equal = self._by_line.setdefault(line, [])
            # The first that is later than this rank's last line: it cannot be one of its own.
            at = bisect_right(equal, self._last_of.get(rank, -1), key=lambda folded: folded.number)
            if at == len(equal) or not self._hold_s:
                at = len(equal)
                equal.append(Folded(line, self._next, now))
                self._held.append(equal[at])
                self._next += 1
            equal[at].ranks.append(rank)
            self._last_of[rank] = equal[at].number

    def release(self, now: float | None = None) -> list[Folded]:
        """The lines that have been held long enough or are complete, in order; without a time, all."""
        count = 0
        for folded in self._held:
            is_recent = now is not None and now - folded.since < self._hold_s
            if is_recent and len(folded.ranks) < self._all:
                break
            count += 1
        released, self._held = self._held[:count], self._held[count:]
        for line, times in Counter(folded.line for folded in released).items():
            del self._by_line[line][:times]
            if not self._by_line[line]:
                del self._by_line[line]
        return released
