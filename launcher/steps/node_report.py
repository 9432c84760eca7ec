"""What one node reports of its ranks' steps: a compact JSON value."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.steps.rank_step import PEAK_GIB, SAMPLES, TOKENS, ModuleTimes, RankStep

_MOST_ROWS = 20_000
"""Steps of one rank in the reports of all nodes together, within one interval."""
_ROWS_OF_A_NODE = range(16, 1000)
"""The least and the most of one node's, where there are several."""
_MOST_SCALARS = 32
"""Of one rank in a step. Further ones are left out."""
_FIRST_SCALARS = (SAMPLES, TOKENS, PEAK_GIB)
"""These are not left out."""


@dataclass(frozen=True)
class NodeReport:
    """The steps that the ranks of a node have ended since its last report."""

    node: int
    attempt: int
    recording: Sequence[int]
    """The ranks that have recorded anything so far."""
    steps: Sequence[RankStep]
    is_last: bool = False
    """Whether the ranks have ended."""

    def to_value(self) -> Any:
        """The JSON form: names once, times in microseconds."""
        names: dict[str, int] = {}
        rows = [_row(step, names) for step in self.steps]
        return [self.node, self.attempt, list(self.recording), self.is_last, list(names), rows]

    @classmethod
    def from_value(cls, value: Any) -> "NodeReport":
        """The inverse of `to_value`, after JSON too."""
        node, attempt, recording, is_last, names, rows = value
        return cls(node, attempt, recording, [_from_row(row, names) for row in rows], is_last)


def thinned(steps: Sequence[RankStep], nodes: int) -> list[RankStep]:
    """The steps of one rank that a report has room for in a job of so many nodes: all, or those that some power of two divides.

    So ranks that leave out different numbers of steps have steps in common. Of steps with one number, the last is left.
    """
    rows = _ROWS_OF_A_NODE
    most = min(max(_MOST_ROWS // nodes, rows.start), rows.stop) if nodes > 1 else _MOST_ROWS
    stride = 1
    found = list({each.step: each for each in steps}.values())
    while len(found) > most:
        stride *= 2
        found = [each for each in found if each.step % stride == 0]
    return found


def _row(step: RankStep, names: dict[str, int]) -> list[Any]:
    modules = [[_number(names, name), *(round(1e6 * each) for each in times)] for name, times in step.modules.items()]
    scalars = [[_number(names, name), value] for name, value in _reported(step.scalars)]
    return [step.rank, step.step, round(step.ended, 3), round(1e6 * step.seconds), step.last_step, modules, scalars]


def _reported(scalars: Mapping[str, float]) -> Sequence[tuple[str, float]]:
    if len(scalars) <= _MOST_SCALARS:
        return list(scalars.items())
    first = {name: scalars[name] for name in _FIRST_SCALARS if name in scalars}
    return list({**first, **scalars}.items())[:_MOST_SCALARS]


def _number(names: dict[str, int], name: str) -> int:
    return names.setdefault(name, len(names))


def _from_row(row: Sequence[Any], names: Sequence[str]) -> RankStep:
    rank, step, ended, microseconds, last_step, modules, scalars = row
    return RankStep(
        rank=rank,
        step=step,
        ended=ended,
        seconds=microseconds / 1e6,
        last_step=last_step,
        modules={names[number]: ModuleTimes(*(each / 1e6 for each in times)) for number, *times in modules},
        scalars=dict(_pairs(scalars, names)),
    )


def _pairs(scalars: Iterable[Sequence[Any]], names: Sequence[str]) -> Iterable[tuple[str, float]]:
    return ((names[number], value) for number, value in scalars)
