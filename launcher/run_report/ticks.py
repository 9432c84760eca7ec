"""Round numbers for axes, and numbers as they are written beside them. Pure."""

import math


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most about `most` numbers from `low` to `high`, which are multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = high / most - low / most  # the difference of two finite numbers may be infinite
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    if not math.isfinite(step):
        return [low]
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def number_text(value: float) -> str:
    """Four significant digits, and all those of whole numbers below ten million: `0.1235`, `12,345`, `1.235e+08`."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.4g}"


def duration_text(seconds: float) -> str:
    """As `250 us`, `12.5 ms`, `3.2 s`, `2 min 5 s`, `3 h 2 min`."""
    if seconds == 0:
        return "0"
    for unit, size in (("us", 1e-6), ("ms", 1e-3)):
        if abs(seconds) < 999.5 * size:
            return f"{seconds / size:.4g} {unit}"
    if seconds < 120:
        return f"{seconds:.4g} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
