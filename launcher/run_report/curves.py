"""Curves over the steps of a run, each with few points however many steps there are. Pure."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from launcher.steps.metrics import StepMetrics

MOST_BUCKETS = 240
"""Points of a curve. One has the least, the mean and the largest value of several steps: no outlier disappears."""
MOST_SCALARS = 12


class Bucket(NamedTuple):
    """Some steps in a row."""

    first: int
    last: int
    low: float
    mean: float
    high: float


@dataclass(frozen=True)
class Series:
    """One curve."""

    name: str
    """Empty where a chart has one."""
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True)
class Curves:
    """The curves of one chart."""

    title: str
    series: tuple[Series, ...]
    from_zero: bool
    """Whether the axis begins at 0, as of durations and rates."""

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest value of the axis."""
        values = [value for each in self.series for bucket in each.buckets for value in (bucket.low, bucket.high)]
        low, high = min(values), max(values)
        if self.from_zero:
            low = min(low, 0.0)
        # Halves first: the difference of two finite numbers may be infinite.
        room = (high / 2 - low / 2) / 10 or max(abs(high) / 10, 0.5)
        return (low if self.from_zero and low == 0 else low - room), high + room


def buckets_of(points: Sequence[tuple[int, float]], most: int = MOST_BUCKETS) -> tuple[Bucket, ...]:
    """At most `most` buckets of neighbouring points (step, value), each with equally many of them but the last."""
    size = max(1, -(-len(points) // most))
    found = []
    for at in range(0, len(points), size):
        part = points[at : at + size]
        values = [value for _, value in part]
        low, high = min(values), max(values)
        mean = math.fsum(value / len(values) for value in values)
        found.append(Bucket(part[0][0], part[-1][0], low, min(max(mean, low), high), high))
    return tuple(found)


def curves_of(steps: Sequence[StepMetrics]) -> list[Curves]:
    """The curves of a run: scalars, the loss first; the time of a step; samples and tokens per second by module."""
    names = dict.fromkeys(name for each in steps for name in each.scalars)
    in_order = sorted(names, key=lambda name: "loss" not in name.lower())
    found = [_curves(name, [("", _scalar(steps, name))], from_zero=False) for name in in_order[:MOST_SCALARS]]
    seconds = [(each.step, each.seconds) for each in steps if each.seconds is not None]
    found.append(_curves("seconds per step", [("", seconds)], from_zero=True))
    for what in ("samples", "tokens"):
        modules = dict.fromkeys(name for each in steps for name in each.modules)
        rates = [(name, list(_rate(steps, name, what))) for name in modules]
        found.append(_curves(f"{what} per second", rates, from_zero=True))
    return [each for each in found if each.series]


def attempts_begin(steps: Sequence[StepMetrics]) -> list[tuple[int, int]]:
    """Where a later attempt begins: its first step that counts, and its number."""
    return [(after.step, after.attempt) for before, after in pairwise(steps) if after.attempt != before.attempt]


def _curves(title: str, named: Sequence[tuple[str, Sequence[tuple[int, float]]]], *, from_zero: bool) -> Curves:
    finite = [(name, [point for point in points if math.isfinite(point[1])]) for name, points in named]
    series = tuple(Series(name, buckets_of(points)) for name, points in finite if points)
    return Curves(title, series, from_zero)


def _scalar(steps: Sequence[StepMetrics], name: str) -> list[tuple[int, float]]:
    return [(each.step, each.scalars[name]) for each in steps if name in each.scalars]


def _rate(steps: Sequence[StepMetrics], module: str, what: str) -> Iterator[tuple[int, float]]:
    for each in steps:
        amount = getattr(each.modules[module], what) if module in each.modules else None
        if amount is not None and each.seconds:
            yield each.step, amount / each.seconds
