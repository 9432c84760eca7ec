"""Curves and shares as HTML with SVG."""

from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element

from launcher.run_report.curves import Bucket, Curves, Series
from launcher.run_report.markup import data_block, element
from launcher.run_report.shares import PARTS, ModuleShares
from launcher.run_report.ticks import number_text, ticks

_WIDTH, _HEIGHT = 400, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 18, 10, 26
"""Room for the axes' numbers, in pixels."""


def charts(found: Sequence[Curves], attempts: Sequence[tuple[int, int]], colors: Mapping[str, int]) -> Element:
    """All charts over one axis of steps, with one slider that reads their values.

    Args:
        found: a chart each.
        attempts: the first step and the number of each later attempt.
        colors: by module.
    """
    buckets = [bucket for each in found for series in each.series for bucket in series.buckets]
    first, last = min(each.first for each in buckets), max(each.last for each in buckets)
    slider = element(
        "input",
        {"type": "range", "min": first, "max": last, "step": 1, "value": last, "id": "step-slider", "class": "slider"},
    )
    data = {
        "first": first,
        "last": last,
        "left": _LEFT / _WIDTH,
        "right": 1 - _RIGHT / _WIDTH,
        "charts": [{"title": each.title, "series": [_data(series) for series in each.series]} for each in found],
    }
    return element(
        "div",
        {"class": "curves"},
        element(
            "p",
            {"class": "reader"},
            element("label", {"for": "step-slider"}, "Values at step"),
            slider,
            element("output", {"for": "step-slider", "class": "at-step", "aria-live": "polite"}, str(last)),
        ),
        element("div", {"class": "charts"}, *(_chart(each, (first, last), attempts, colors) for each in found)),
        data_block("curves-data", data),
    )


def _data(series: Series) -> object:
    """Rounded, since nobody reads more digits: a page of 10,000 steps is half as large."""
    rows = [
        [each.first, each.last, *(float(f"{value:.5g}") for value in (each.low, each.mean, each.high))]
        for each in series.buckets
    ]
    return {"name": series.name, "buckets": rows}


def _chart(curves: Curves, steps: tuple[int, int], attempts: Sequence[tuple[int, int]], colors: Mapping[str, int]) -> Element:
    low, high = curves.bounds
    values = [bucket for series in curves.series for bucket in series.buckets]
    ends = f"{number_text(values[0].mean)} at step {values[0].first}, {number_text(values[-1].mean)} at step {values[-1].last}"
    title = (
        f"{curves.title} by step, from {number_text(min(b.low for b in values))} to {number_text(max(b.high for b in values))}"
    )
    picture = element(
        "svg",
        {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "role": "img", "aria-label": f"{title}; {ends}"},
        *_axes(steps, (low, high)),
        *(_mark(step, number, steps) for step, number in attempts),
        *(part for series in curves.series for part in _curve(series, steps, (low, high), colors)),
        element("line", {"class": "cursor", "y1": _TOP, "y2": _HEIGHT - _BOTTOM, "x1": -9, "x2": -9}),
    )
    readings = [
        element("li", None, _swatch(series, colors), element("span", {"class": "reading"}, _last(series)))
        for series in curves.series
    ]
    return element(
        "figure",
        {"class": "chart"},
        element("figcaption", None, curves.title),
        picture,
        element("ul", {"class": "legend readings"}, *readings),
    )


def _swatch(series: Series, colors: Mapping[str, int]) -> Element | None:
    if not series.name:
        return None
    swatch = element("span", {"class": f"swatch s{colors.get(series.name, 0)}"})
    return element("span", None, swatch, f"{series.name}: ")


def _last(series: Series) -> str:
    return number_text(series.buckets[-1].mean)


def _axes(steps: tuple[int, int], bounds: tuple[float, float]) -> list[Element]:
    parts = []
    for value in ticks(*bounds, 4):
        y = _y(value, bounds)
        parts.append(element("line", {"x1": _LEFT, "x2": _WIDTH - _RIGHT, "y1": y, "y2": y, "class": "grid"}))
        parts.append(element("text", {"x": _LEFT - 6, "y": y + 4, "text-anchor": "end"}, number_text(value)))
    for step in ticks(*steps, 5):
        if step == int(step):
            text = {"x": _x(step, steps), "y": _HEIGHT - 8, "text-anchor": "middle"}
            parts.append(element("text", text, f"{step:,.0f}"))
    return parts


def _mark(step: int, attempt: int, steps: tuple[int, int]) -> Element:
    x = _x(step, steps)
    line = element("line", {"x1": x, "x2": x, "y1": _TOP, "y2": _HEIGHT - _BOTTOM, "class": "restart"})
    return element("g", None, element("title", None, f"attempt {attempt} begins at step {step}"), line)


def _curve(series: Series, steps: tuple[int, int], bounds: tuple[float, float], colors: Mapping[str, int]) -> list[Element]:
    color = f"l{colors.get(series.name, 0)}"
    middle = [(_x((each.first + each.last) / 2, steps), each) for each in series.buckets]
    if len(middle) == 1:
        x, only = middle[0]
        return [element("circle", {"cx": x, "cy": _y(only.mean, bounds), "r": 3, "class": f"line {color}"})]
    line = "M" + "L".join(f"{x:.1f} {_y(each.mean, bounds):.1f}" for x, each in middle)
    parts = [element("path", {"d": line, "class": f"line {color}"})]
    if any(each.low < each.high for each in series.buckets):
        parts.insert(0, element("path", {"d": _band(middle, bounds), "class": f"band {color}"}))
    return parts


def _band(middle: Sequence[tuple[float, Bucket]], bounds: tuple[float, float]) -> str:
    upper = [f"{x:.1f} {_y(each.high, bounds):.1f}" for x, each in middle]
    lower = [f"{x:.1f} {_y(each.low, bounds):.1f}" for x, each in reversed(middle)]
    return f"M{'L'.join([*upper, *lower])}z"


def _x(step: float, steps: tuple[int, int]) -> float:
    share = (step - steps[0]) / (steps[1] - steps[0]) if steps[1] > steps[0] else 0.5
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, bounds: tuple[float, float]) -> float:
    low, high = bounds
    share = (value / 2 - low / 2) / (high / 2 - low / 2)
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def share_table(found: Sequence[ModuleShares]) -> Element:
    """A row for each module: a bar of its shares, and their numbers."""
    heads = ["module", "", *PARTS.values(), "rest"]
    return element(
        "table",
        {"class": "shares"},
        element("thead", None, element("tr", None, *(element("th", {"scope": "col"}, head) for head in heads))),
        element("tbody", None, *map(_share_row, found)),
    )


def _share_row(shares: ModuleShares) -> Element:
    values = [*shares.parts.values(), shares.rest]
    kinds = [*PARTS, "rest_s"]
    cells = [
        element("td", {"class": "number"}, element("span", {"class": f"swatch {kind}"}), f"{value:.0%}")
        for kind, value in zip(kinds, values, strict=True)
    ]
    bar = element("svg", {"class": "share", "viewBox": "0 0 100 10", "preserveAspectRatio": "none", "aria-hidden": "true"})
    x = 0.0
    for kind, value in zip(kinds, values, strict=True):
        bar.append(element("rect", {"x": x, "y": 0, "width": 100 * value, "height": 10, "class": kind}))
        x += 100 * value
    return element("tr", None, element("th", {"scope": "row"}, shares.module), element("td", None, bar), *cells)
