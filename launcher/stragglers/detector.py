"""Finds ranks that compute longer than those that do the same. Pure."""

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from statistics import median

from launcher.steps.job_steps import JobStep
from launcher.steps.rank_step import SAMPLES
from launcher.steps.roles import peer_group
from launcher.stragglers.evidence import LEAST_RATIO, Evidence
from launcher.stragglers.straggler import Straggler
from mimo_role import Topology

_WARM_UP_STEPS = 3
"""The first ones of an attempt, in which kernels are loaded and memory is allocated."""
_LEAST_COMPUTE_S = 1e-4
"""Who computes less in a step is not compared: that is the time of the records themselves."""
MOST_ENDED = 256
"""Stragglers of one attempt that are kept once they are as fast as their peers again."""


class StragglerDetector:
    """Compares the ranks of each module and stage, in each step of one attempt.

    A rank without peers is not compared: nothing distinguishes a slow one from one that has more to do.
    """

    def __init__(self, topology: Topology, places: Mapping[int, str]) -> None:
        """`places` has the node of each rank."""
        self._topology = topology
        self._places = places
        self._evidence: dict[int, Evidence] = {}
        """By rank."""
        self._group_of: dict[int, Hashable] = {}
        self._steps = 0
        self.found: dict[tuple[int, int], Straggler] = {}
        """Those of the attempt, by rank and first step, with what is known of them now."""
        self.left_out = 0
        """How many more have ended than are kept: those that cost least, and of these the oldest."""

    @property
    def current(self) -> tuple[Straggler, ...]:
        """Those that are slow now, the most costly first."""
        return tuple(sorted((each for each in self.found.values() if each.until_step is None), key=lambda each: -each.share))

    def add(self, found: JobStep) -> list[Straggler]:
        """Take a step; return the ranks that are found to be slow, or as fast as their peers again, by now."""
        self._steps += 1
        if self._steps <= _WARM_UP_STEPS:
            return []
        changed: list[Straggler] = []
        for seconds in self._by_group(found).values():
            if len(seconds) > 1:
                changed += self._compare(found, seconds)
        return changed

    def _by_group(self, found: JobStep) -> dict[Hashable, dict[int, float]]:
        """The seconds of computation by rank, of those that compute for long enough."""
        by_group: dict[Hashable, dict[int, float]] = {}
        for rank, each in found.ranks.items():
            if rank not in self._group_of:
                self._group_of[rank] = peer_group(self._topology, rank)
            if (compute_s := each.compute_s) > _LEAST_COMPUTE_S:
                by_group.setdefault(self._group_of[rank], {})[rank] = compute_s
        return by_group

    def _compare(self, found: JobStep, compute_s: Mapping[int, float]) -> list[Straggler]:
        changed = []
        for rank, log_ratio in log_ratios(compute_s, _samples_of(found, compute_s)).items():
            evidence = self._evidence.setdefault(rank, Evidence())
            share = compute_s[rank] * (1 - math.exp(-log_ratio)) / max(found.ranks[rank].seconds, compute_s[rank])
            if evidence.add(found.step, log_ratio, share):
                changed.append(self._begin_or_end(rank, evidence))
            elif evidence.is_slow and not evidence.may_be_over and evidence.ratio >= LEAST_RATIO:
                key = rank, evidence.since_step
                self.found[key] = replace(self.found[key], ratio=evidence.ratio, share=evidence.share)
        return changed

    def _begin_or_end(self, rank: int, evidence: Evidence) -> Straggler:
        key = rank, evidence.since_step
        if evidence.is_slow:
            self.found[key] = Straggler(
                rank=rank,
                label=self._topology.label_of(rank),
                node=self._places[rank],
                ratio=evidence.ratio,
                since_step=evidence.since_step,
                share=evidence.share,
                is_from_start=evidence.is_from_start,
            )
            return self.found[key]
        self.found[key] = ended = replace(self.found[key], until_step=evidence.until_step)
        self._leave_out()
        return ended

    def _leave_out(self) -> None:
        ended = [key for key, each in self.found.items() if each.until_step is not None]
        if len(ended) > MOST_ENDED:
            del self.found[min(ended, key=lambda key: (self.found[key].share, key[1]))]
            self.left_out += 1


def log_ratios(compute_s: Mapping[int, float], samples: Mapping[int, float]) -> dict[int, float]:
    """The logarithm of the ratio of each rank's computation to the median of all others. There are at least two ranks.

    Args:
        compute_s: seconds by rank.
        samples: by rank, what it has computed in them; empty where that is not known. Where ranks differ, the ratio is that of
            seconds or that of seconds per sample, whichever is nearer to 1, and 1 between them: a part of the time that is
            the same for any number of samples makes no rank slow, and no more does a larger number.
    """
    logs = {rank: math.log(each) for rank, each in compute_s.items()}
    of_seconds = {rank: logs[rank] - expected for rank, expected in medians_of_others(logs).items()}
    if len(set(samples.values())) < 2:
        return of_seconds
    logs = {rank: log - math.log(samples[rank]) for rank, log in logs.items()}
    return {rank: median((of_seconds[rank], 0.0, logs[rank] - each)) for rank, each in medians_of_others(logs).items()}


def _samples_of(found: JobStep, ranks: Iterable[int]) -> dict[int, float]:
    """What the ranks have recorded as `samples`; empty unless each of them has."""
    samples = {rank: found.ranks[rank].scalars.get(SAMPLES, 0.0) for rank in ranks}
    return samples if all(each > 0 for each in samples.values()) else {}


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
