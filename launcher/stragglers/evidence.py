"""Whether one rank computes longer than its peers, step by step: a cumulative sum that noise does not move. Pure.

What is added up is the logarithm of the ratio of a rank's computation to the median of its peers, less a drift of half of the
smallest slowdown that is reported (CUSUM; E. S. Page, "Continuous Inspection Schemes", Biometrika 41, 1954). The first step of
a sum above 0 is the maximum-likelihood estimate of the beginning.

Each step counts up to a limit only, so that a few steps, however slow, are no evidence. The noise of the steps before is
measured (`launcher.stragglers.noise`). Where it is larger than what the limits are made for, all of them grow with it, and the
sum that is needed with its square, as the number of steps that a mean of some accuracy takes does.
"""

import math
from collections import deque
from statistics import median

from launcher.stragglers.noise import noise_of

LEAST_RATIO = 1.15
"""A rank that is slower than its peers by less is not reported."""
LEAST_SHARE = 0.01
"""Nor is one whose computation beyond its peers' is less than this part of a step."""
_DRIFT = math.log(LEAST_RATIO) / 2
_LIMIT = 0.25
"""What a step counts for at most, as a logarithm: more than 1.28 times as slow is no more evidence."""
_ALARM = 12 * (_LIMIT - _DRIFT)
"""Reached after 12 steps at the least."""
_ALL_CLEAR = 12 * _DRIFT
_QUIET = 0.16
"""Noise up to which these numbers do not grow: the standard deviation of a logarithm."""
_RECENT_STEPS = 16
"""What is reported is a median over so many; over more if there is more noise, as many more as the sum needs."""
_SLOW_PART = 0.75
"""The part of them that has to be slower by more than the drift: not every second step with twice the work."""
_NOISE_STEPS = 256
_LEAST_NOISE_STEPS = 16
_ENOUGH_NOISE_STEPS = 64
"""Of fewer, those that the sum is of are measured instead where they are more."""
_MEASURED_EVERY = 8
"""Noise is measured again after an eighth of the steps that it is measured of, or so many."""
_START_STEPS = 8
"""Noise may take the sum of a rank that is slow from the beginning to 0 so late."""
_UNKNOWN_SCALE = 2.0
"""Before there are enough steps to measure noise."""


class Evidence:
    """What is known of one rank against its peers, in the order of steps."""

    def __init__(self) -> None:
        self.is_slow = False
        self.since_step = self.until_step = -1
        """The first step in which it was slow; the first in which it was as fast as its peers again, once it is not slow."""
        self._sum = self._against = 0.0
        self._scale = _UNKNOWN_SCALE
        self._noise: deque[float] = deque(maxlen=_NOISE_STEPS)
        """Logarithms of the steps before those that the sum is of."""
        self._pending: deque[tuple[float, float]] = deque(maxlen=_NOISE_STEPS)
        """Logarithms and shares of the steps that the sum is of."""
        self._unmeasured = 0
        """Steps since the noise was measured."""

    def add(self, step: int, log_ratio: float, share: float) -> bool:
        """Take a step; return whether the rank has become slow with it, or as fast as its peers again.

        Args:
            step: its number.
            log_ratio: the logarithm of the ratio to the median of the peers.
            share: what it computes beyond that median, as a part of the step.
        """
        if not self._pending:
            self.since_step = step
        self._pending.append((log_ratio, share))
        self._measure()
        counted = max(-_LIMIT, min(_LIMIT, log_ratio / self._scale)) - _DRIFT
        return self._has_ended(step, counted) if self.is_slow else self._has_begun(counted)

    @property
    def ratio(self) -> float:
        """To the median of the peers, over the last steps since it became slow."""
        return math.exp(median(log_ratio for log_ratio, _ in self._recent()))

    @property
    def share(self) -> float:
        """The part of a step that it computes beyond that median, over the same steps."""
        return median(share for _, share in self._recent())

    @property
    def is_from_start(self) -> bool:
        """Whether there is next to nothing before the sum: no time of its own that the rank was faster in."""
        return len(self._noise) <= _START_STEPS

    @property
    def may_be_over(self) -> bool:
        """Whether it is slow, but was not in the last steps."""
        return self._against > 0

    def _recent(self) -> list[tuple[float, float]]:
        return list(self._pending)[-round(_RECENT_STEPS * self._scale**2) :]

    def _is_slow_in_most(self) -> bool:
        recent = self._recent()
        return sum(log_ratio > _DRIFT for log_ratio, _ in recent) >= _SLOW_PART * len(recent)

    def _has_begun(self, counted: float) -> bool:
        # Not more than is needed: a rank that is slow in too few steps shall not seem so for long after them.
        self._sum = max(0.0, min(self._sum + counted, _ALARM * self._scale))
        if not self._sum:
            self._forget()
        elif self._sum >= _ALARM * self._scale and self._is_slow_in_most():
            self.is_slow = self.ratio >= LEAST_RATIO and self.share >= LEAST_SHARE
        return self.is_slow

    def _has_ended(self, step: int, counted: float) -> bool:
        if not self._against:
            self.until_step = step
        # Not more than without any difference: a few fast steps are no evidence either.
        self._against = max(0.0, self._against - max(-_DRIFT, counted))
        if self._against < _ALL_CLEAR:
            return False
        self.is_slow = False
        self._forget()
        return True

    def _forget(self) -> None:
        """From now on the steps so far are noise."""
        self._sum = self._against = 0.0
        self._noise.extend(log_ratio for log_ratio, _ in self._pending)
        self._pending.clear()

    def _measure(self) -> None:
        """Measure the noise now and then, not of what may be a slowdown; but of that if there is nothing else."""
        self._unmeasured += 1
        if self._unmeasured < max(_MEASURED_EVERY, len(self._noise) // _MEASURED_EVERY) or self.is_slow:
            return
        self._unmeasured = 0
        logs = list(self._noise)
        if len(logs) < _ENOUGH_NOISE_STEPS and len(self._pending) > len(logs):
            logs = [log_ratio for log_ratio, _ in self._pending]
        if len(logs) >= _LEAST_NOISE_STEPS:
            # Of few steps it is measured inexactly: twice as much is assumed of the least number.
            self._scale = max(1.0, noise_of(logs) * (1 + _LEAST_NOISE_STEPS / len(logs)) / _QUIET)
