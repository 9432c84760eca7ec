"""Sets of times, as sorted intervals that do not touch. Pure arithmetic on integers."""

from collections.abc import Iterable, Sequence

Interval = tuple[int, int]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The times that are in any of the intervals."""
    found: list[Interval] = []
    for begin, end in sorted(intervals):
        if found and begin <= found[-1][1]:
            if end > found[-1][1]:
                found[-1] = found[-1][0], end
        elif end > begin:
            found.append((begin, end))
    return found


def overlap(begin: int, end: int, times: Sequence[Interval]) -> int:
    """How much of the time from `begin` to `end` is in a union."""
    return sum(max(0, min(end, last) - max(begin, first)) for first, last in times if first < end and last > begin)
