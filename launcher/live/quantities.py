"""Quantities of a run as a person reads them."""

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_UNITS = ((_DAY, "d", 10, _HOUR, "h"), (_HOUR, "h", 10, _MINUTE, "min"), (_MINUTE, "min", 3, 1, "s"))
"""Seconds and name of a unit; below how many of them the next smaller one is shown; that one."""
_THOUSANDS = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
UNKNOWN = "-"
"""In place of a quantity that is not known."""


def rate(value: float | None) -> str:
    """Something per second: `0.031`, `3.1`, `198`, `12.4k`."""
    if value is None:
        return UNKNOWN
    for unit, size in _THOUSANDS:
        if value >= 0.9995 * size:
            return f"{_three_digits(value / size)}{unit}"
    return _three_digits(value)


def share(value: float | None) -> str:
    """A part of a whole: `71 %`."""
    return UNKNOWN if value is None else f"{100 * value:.0f} %"


def scalar(value: float) -> str:
    """A value that the script has recorded, with four digits: `2.314`, `3e-05`, `1.235e+06`."""
    return f"{value:.4g}"


def seconds(value: float | None) -> str:
    """The duration of a step or a part of it: `85 ms`, `1.25 s`, `3 min 5 s`."""
    if value is None:
        return UNKNOWN
    if value < 0.9995:
        return f"{_three_digits(1000 * value)} ms"
    return f"{_three_digits(value)} s" if value < _MINUTE else duration(value)


def duration(value: float | None) -> str:
    """A longer time, rounded down to what matters: `45 s`, `2 min 20 s`, `8 min`, `2 h 5 min`, `3 d 4 h`."""
    if value is None:
        return UNKNOWN
    whole = max(0, round(value))
    for size, unit, few, smaller, smaller_unit in _UNITS:
        if whole >= size:
            count, rest = whole // size, whole % size // smaller
            return f"{count} {unit}" + (f" {rest} {smaller_unit}" if rest and count < few else "")
    return f"{whole} s"


def _three_digits(value: float) -> str:
    """`0.0312`, `3.12`, `31.2`, `312`; fewer where the last ones are zeros."""
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.3g}"
