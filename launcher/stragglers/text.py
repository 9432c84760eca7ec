"""Stragglers of a report, and a straggler in one line."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from launcher.formatting import counted
from launcher.stragglers.straggler import Straggler

_MOST_LINES = 8


def describe(found: Straggler) -> str:
    """Which rank is slow, by how much and since when; or that it is not any more."""
    who = f"rank {found.rank} ({found.label}, {found.node})"
    since = f"since step {found.since_step:,}"
    if found.until_step is not None:
        return f"{who} computes as fast as its peers again since step {found.until_step:,}; {found.ratio:.2f}x {since}"
    why = ", from the start of the attempt: slower, or more work" if found.is_from_start else ""
    cost = f"{100 * found.share:.0f} % of each step of the whole job"
    return f"{who} computes {found.ratio:.2f}x its peers' median {since}{why}; {cost}"


def describe_changes(changed: Sequence[Straggler]) -> Iterator[str]:
    """Stragglers of which something has changed, the most costly first, one line each; of many, how many more there are."""
    ordered = sorted(changed, key=lambda each: -each.share)
    yield from map(describe, ordered[:_MOST_LINES])
    if more := ordered[_MOST_LINES:]:
        yield f"and {counted(len(more), 'more rank')} slow, or as fast as before"


def describe_all(reported: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Those of a report, one line each; without those that another version has written."""
    for each in stragglers_in(reported):
        try:
            yield describe(each)
        except (TypeError, ValueError):
            continue


def stragglers_in(reported: Iterable[Mapping[str, Any]]) -> Iterator[Straggler]:
    """Those of a report, which has the attempt of each too; without those that another version has written."""
    for each in reported:
        try:
            yield Straggler(**{name: value for name, value in each.items() if name != "attempt"})
        except (TypeError, AttributeError):
            continue
