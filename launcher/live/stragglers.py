"""Finds ranks that compute longer than those that do the same. Pure.

In each step, the computation of a rank is compared with the median of its peers, as the logarithm of the ratio. What lasts is
found by a cumulative sum (CUSUM; E. S. Page, "Continuous Inspection Schemes", Biometrika 41, 1954): of these numbers, limited
so that no single step counts for much (a winsorized CUSUM), and less than half of the smallest slowdown that is reported. Their
noise is measured by the median absolute deviation (F. R. Hampel, "The Influence Curve and Its Role in Robust Estimation", JASA
69, 1974), and where there is more of it, more evidence is needed. The last step in which the sum was 0 is the one before the
beginning, the maximum-likelihood estimate for it.
"""

import math
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import replace
from statistics import median

from launcher.live.job_steps import JobStep
from launcher.live.roles import peer_group
from launcher.live.view import Straggler
from mimo_role import Topology

LEAST_RATIO = 1.15
"""A rank that is slower than its peers by less is not reported."""
LEAST_SHARE = 0.01
"""Nor is one whose computation beyond its peers' is less than this part of a step."""
_LEAST = math.log(LEAST_RATIO)
_DRIFT = _LEAST / 2
_LIMIT = 0.25
"""What one step counts for at most, as a logarithm: more than 1.28 times slower is no more evidence."""
_ALARM = 12 * (_LIMIT - _DRIFT)
"""At least 12 slow steps: bursts that are shorter are not found, however slow they are."""
_ALL_CLEAR = 12 * _DRIFT
_QUIET = 0.12
"""Noise, the standard deviation of a logarithm, up to which the numbers above hold. They grow with it beyond."""
_WARM_UP_STEPS = 3
"""The first ones of an attempt, in which kernels are loaded and memory is allocated."""
_RATIO_STEPS = 16
_NOISE_STEPS = 64
_NOISE_EVERY = 8
_NOISE_RANKS = 16
"""How many ranks of a group the noise is measured of."""
_MAD_TO_SIGMA = 1.4826
"""Of a normal distribution."""


class StragglerDetector:
    """Takes the steps of one attempt, in order."""

    def __init__(self, topology: Topology, places: Mapping[int, str]) -> None:
        """`places` has the node of each rank."""
        self._topology = topology
        self._places = places
        self._groups: dict[Hashable, _Group] = {}
        self._group_of: dict[int, Hashable] = {}
        self._steps = 0
        self.found: dict[tuple[int, int], Straggler] = {}
        """All of the attempt, by rank and first step, with what is known of them now."""

    @property
    def current(self) -> tuple[Straggler, ...]:
        """Those that are slow now, the slowest first."""
        return tuple(sorted((each for each in self.found.values() if each.until_step is None), key=lambda each: -each.share))

    def add(self, found: JobStep) -> list[Straggler]:
        """Take a step; return the ranks that are found to be slow, or as fast as their peers again, by now."""
        self._steps += 1
        if self._steps <= _WARM_UP_STEPS:
            return []
        changed: list[Straggler] = []
        for group, members in self._by_group(found).items():
            if len(members) > 1:
                changed += self._compare(self._groups.setdefault(group, _Group()), found, members)
        return changed

    def _by_group(self, found: JobStep) -> dict[Hashable, dict[int, float]]:
        """The seconds of computation by rank, of those that compute."""
        by_group: dict[Hashable, dict[int, float]] = {}
        for rank, each in found.ranks.items():
            if rank not in self._group_of:
                self._group_of[rank] = peer_group(self._topology, rank)
            if (compute_s := each.compute_s) > 0:
                by_group.setdefault(self._group_of[rank], {})[rank] = compute_s
        return by_group

    def _compare(self, group: "_Group", found: JobStep, members: Mapping[int, float]) -> list[Straggler]:
        changed = []
        logs = {rank: math.log(compute_s) for rank, compute_s in members.items()}
        scale = group.scale()
        for rank, expected in medians_of_others(logs).items():
            evidence = group.evidence.setdefault(rank, _Evidence(found.step))
            beyond_s = members[rank] - math.exp(expected)
            seconds = found.ranks[rank].seconds
            evidence.add(found.step, logs[rank] - expected, beyond_s / seconds if seconds > 0 else 0.0, scale)
            changed += self._judge(rank, evidence)
        return changed

    def _judge(self, rank: int, evidence: "_Evidence") -> list[Straggler]:
        key = rank, evidence.since_step
        if not evidence.is_slow:
            if not evidence.has_begun:
                return []
            evidence.is_slow = True
            self.found[key] = Straggler(
                rank=rank,
                label=self._topology.label_of(rank),
                node=self._places[rank],
                ratio=evidence.ratio,
                since_step=evidence.since_step,
                share=evidence.share,
            )
            return [self.found[key]]
        if evidence.has_ended:
            self.found[key] = replace(self.found[key], until_step=evidence.until_step)
            evidence.clear()
            return [self.found[key]]
        if not evidence.recovering:
            self.found[key] = replace(self.found[key], ratio=evidence.ratio, share=evidence.share)
        return []


def medians_of_others(values: Mapping[int, float]) -> dict[int, float]:
    """For each rank the median of the values of all others; of two middle ones their mean. There are at least two ranks."""
    order = sorted(values, key=lambda rank: values[rank])
    others = len(order) - 1
    low, high = (others - 1) // 2, others // 2
    found = {}
    for place, rank in enumerate(order):
        lower, upper = order[low + (low >= place)], order[high + (high >= place)]
        found[rank] = (values[lower] + values[upper]) / 2
    return found


class _Group:
    """Ranks that do the same."""

    def __init__(self) -> None:
        self.evidence: dict[int, _Evidence] = {}
        self._steps = 0
        self._scale = 1.0

    def scale(self) -> float:
        """How much more evidence is needed for the noise of the last steps. To be called once a step."""
        if self._steps % _NOISE_EVERY == 0 and self._steps:
            measured = [noise_of(each.logs) for _, each in zip(range(_NOISE_RANKS), self.evidence.values(), strict=False)]
            self._scale = max(1.0, median(measured) / _QUIET)
        self._steps += 1
        return self._scale


def noise_of(logs: "deque[float]") -> float:
    """The standard deviation of numbers, without the few that are far from the others."""
    middle = median(logs)
    return _MAD_TO_SIGMA * median(abs(each - middle) for each in logs)


class _Evidence:
    """What is known of one rank against its peers."""

    def __init__(self, step: int) -> None:
        self.logs: deque[float] = deque(maxlen=_NOISE_STEPS)
        self._shares: deque[float] = deque(maxlen=_RATIO_STEPS)
        self.is_slow = False
        self.since_step = self.until_step = step
        self._slow_steps = 0
        """Since then."""
        self._for_slow = self._against = 0.0
        self._scale = 1.0

    def add(self, step: int, log_ratio: float, share: float, scale: float) -> None:
        """Take a step: the logarithm of the ratio to the peers' median, the part of the step beyond it, and how noisy it is."""
        self.logs.append(log_ratio)
        self._shares.append(share)
        self._scale = scale
        counted = max(-_LIMIT, min(_LIMIT, log_ratio / scale))
        if self.is_slow:
            self._slow_steps += 1
            if self._against == 0.0:
                self.until_step = step
            self._against = max(0.0, self._against + min(_DRIFT, _DRIFT - counted))
            return
        if self._for_slow == 0.0:
            self.since_step, self._slow_steps = step, 0
        self._slow_steps += 1
        self._for_slow = max(0.0, self._for_slow + counted - _DRIFT)

    @property
    def has_begun(self) -> bool:
        """Whether it is slow beyond doubt."""
        return self._for_slow >= _ALARM and self.ratio >= LEAST_RATIO and self.share >= LEAST_SHARE

    @property
    def has_ended(self) -> bool:
        """Whether it is as fast as its peers beyond doubt, after it was slow."""
        return self._against >= _ALL_CLEAR

    @property
    def recovering(self) -> bool:
        """Whether it may be as fast as its peers again."""
        return self._against > 0

    @property
    def ratio(self) -> float:
        """To the peers' median, a median over the last steps since it became slow."""
        count = min(_RATIO_STEPS, self._slow_steps)
        return math.exp(median(list(self.logs)[-count:]))

    @property
    def share(self) -> float:
        """The part of a step that it computes beyond the peers' median, a median over the same steps."""
        return median(list(self._shares)[-self._slow_steps :])

    def clear(self) -> None:
        """Forget that it was slow."""
        self.is_slow, self._slow_steps = False, 0
        self._for_slow = self._against = 0.0
