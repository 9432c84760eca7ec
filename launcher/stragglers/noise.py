"""How much numbers vary from step to step, robustly, and with the correlation of those that follow each other. Pure.

Sizes are measured by the median absolute deviation (F. R. Hampel, "The Influence Curve and Its Role in Robust Estimation", JASA
69, 1974) and by the 90th percentile, which heavy tails move. A mean of n correlated numbers varies as one of n / t independent
numbers, where t is their integrated autocorrelation time. It is estimated as that of a first-order autoregression by the
autocorrelation at lag 1, corrected for its bias (F. H. C. Marriott and J. A. Pope, "Bias in the Estimation of
Autocorrelations", Biometrika 41, 1954), and by the means of longer and longer batches.
"""

import math
from collections.abc import Iterator, Sequence
from operator import mul

_MAD_TO_SIGMA, _P90_TO_SIGMA = 1.4826, 1 / 1.645
"""Of a normal distribution."""
_CLIP = 3.0
"""Deviations beyond so many standard deviations count as that many for correlation."""
_MOST_CORRELATED = 0.98
_SIGNIFICANT = 2.0
"""Standard errors of a lag-1 autocorrelation of independent numbers."""
_SHORTEST_BATCH, _LEAST_BATCHES = 8, 6
_MOST_TAKEN_OFF = 0.75
"""The part of the variance that a short sample of correlated numbers may lack at most."""


def noise_of(logs: Sequence[float]) -> float:
    """The standard deviation of independent normally distributed numbers whose means vary as those of these numbers.

    More where a tenth of them is further from the middle, and where numbers that follow each other are alike.
    """
    ordered = sorted(logs)
    middle = _middle(ordered)
    sizes = sorted([abs(each - middle) for each in logs])
    sigma = max(_MAD_TO_SIGMA * sizes[len(sizes) // 2], _P90_TO_SIGMA * sizes[9 * (len(sizes) - 1) // 10])
    limit = _CLIP * sigma
    deviations = [max(-limit, min(limit, each - middle)) for each in logs]
    time = max(1.0, _time_by_lag(deviations))
    lacking = min(_MOST_TAKEN_OFF, time / len(logs))
    return max(sigma * math.sqrt(time / (1 - lacking)), *_by_batches(deviations), 0.0)


def _time_by_lag(deviations: Sequence[float]) -> float:
    """The integrated autocorrelation time, in steps; 1 where no correlation is significant."""
    count = len(deviations)
    power = float(sum(map(mul, deviations, deviations)))
    if not power:
        return 1.0
    found = float(sum(map(mul, deviations, deviations[1:]))) / power
    if found < _SIGNIFICANT / math.sqrt(count):
        return 1.0
    correlation = min(_MOST_CORRELATED, found + (1 + 3 * found) / count)
    return (1 + correlation) / (1 - correlation)


def _by_batches(deviations: Sequence[float]) -> Iterator[float]:
    size = _SHORTEST_BATCH
    sums = [sum(deviations[at : at + size]) for at in range(0, len(deviations) - size + 1, size)]
    while len(sums) >= _LEAST_BATCHES:
        mean = sum(sums) / len(sums)
        yield math.sqrt(sum([(each - mean) ** 2 for each in sums]) / (len(sums) - 1) / size)
        sums = [a + b for a, b in zip(sums[::2], sums[1::2], strict=False)]
        size *= 2


def _middle(ordered: Sequence[float]) -> float:
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
