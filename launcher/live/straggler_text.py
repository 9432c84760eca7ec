"""Stragglers of a report, and a straggler in one line."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from launcher.live.view import Straggler


def describe(found: Straggler) -> str:
    """Which rank is slow, by how much and since when; or that it is not any more."""
    who = f"rank {found.rank} ({found.label}, {found.node})"
    since = f"since step {found.since_step:,}"
    if found.until_step is not None:
        return f"{who} computes as fast as its peers again since step {found.until_step:,}; {found.ratio:.2f}x {since}"
    return (
        f"{who} computes {found.ratio:.2f}x its peers' median {since}; {100 * found.share:.0f} % of each step of the whole job"
    )


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
