"""Folds a line that several ranks write at about the same time into one, with the list of the ranks."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Folded:
    """One line, and who wrote it."""

    line: str
    number: int
    """Its place in the order of all lines."""
    since: float
    ranks: list[int] = field(default_factory=list)


class LineFolder:
    """Holds lines back for a moment. Each rank's lines stay in their order, and two of one rank are never folded."""

    def __init__(self, ranks: int, moment_s: float) -> None:
        """
        Args:
            ranks: how many write; a line that all have written is let go at once.
            moment_s: how long a line is held back; 0: lines are not folded.
        """
        self._all = ranks
        self._moment_s = moment_s
        self._held: list[Folded] = []
        self._by_line: dict[str, list[Folded]] = {}
        self._last_of: dict[int, int] = {}
        """The number of the line to which each rank has come."""
        self._next = 0

    def add(self, rank: int, lines: Iterable[str], now: float) -> None:
        """Take what a rank has written."""
        for line in lines:
            alike = self._by_line.setdefault(line, [])
            # The first that this rank has not passed yet: it cannot be one of its own.
            at = bisect_right(alike, self._last_of.get(rank, -1), key=lambda folded: folded.number)
            if at == len(alike) or not self._moment_s:
                at = len(alike)
                alike.append(Folded(line, self._next, now))
                self._held.append(alike[at])
                self._next += 1
            alike[at].ranks.append(rank)
            self._last_of[rank] = alike[at].number

    def let_go(self, now: float | None = None) -> list[Folded]:
        """The lines that have been held back for long enough, in order; without a time, all."""
        count = 0
        for folded in self._held:
            young = now is not None and now - folded.since < self._moment_s
            if young and len(folded.ranks) < self._all:
                break
            count += 1
        gone, self._held = self._held[:count], self._held[count:]
        for line, times in Counter(folded.line for folded in gone).items():
            del self._by_line[line][:times]
            if not self._by_line[line]:
                del self._by_line[line]
        return gone
