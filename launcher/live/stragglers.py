"""Finds ranks that compute longer than those that do the same. Pure."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import replace

from launcher.live.evidence import Evidence
from launcher.live.job_steps import JobStep
from launcher.live.roles import peer_group
from launcher.live.view import Straggler
from mimo_role import Topology

_WARM_UP_STEPS = 3
"""The first ones of an attempt, in which kernels are loaded and memory is allocated."""
_LEAST_COMPUTE_S = 1e-4
"""Who computes less in a step is not compared: that is the time of the records themselves."""


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
        """All of the attempt, by rank and first step, with what is known of them now."""

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
        logs = {rank: math.log(each) for rank, each in compute_s.items()}
        for rank, expected in medians_of_others(logs).items():
            evidence = self._evidence.setdefault(rank, Evidence())
            share = (compute_s[rank] - math.exp(expected)) / max(found.ranks[rank].seconds, compute_s[rank])
            if evidence.add(found.step, logs[rank] - expected, share):
                changed.append(self._begin_or_end(rank, evidence))
            elif evidence.is_slow and not evidence.may_be_over:
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
            )
        else:
            self.found[key] = replace(self.found[key], until_step=evidence.until_step)
        return self.found[key]


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
