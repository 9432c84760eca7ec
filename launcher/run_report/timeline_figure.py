"""A step's timeline as HTML: names of ranks, a picture, and the data that page.js needs for the keyboard and the mouse."""

from collections import defaultdict
from xml.etree.ElementTree import Element

from launcher.run_report.markup import data_block, element
from launcher.run_report.step_timeline import Category, Span, StepTimeline, TimelineRow
from launcher.run_report.ticks import duration_text, ticks

_ROW_HEIGHT, _AXIS_HEIGHT = 22, 24
_BARS = ((3, 16), (6, 10), (8, 6))
"""By depth: the upper end of a bar within its row, and its height, in pixels."""
_TITLES = {
    Category.FORWARD: "forward",
    Category.BACKWARD: "backward",
    Category.WAIT: "wait for a message",
    Category.SEND: "send",
    Category.COLLECTIVE: "wait for a collective",
    Category.SCRIPT: "span of the script",
}
_KEYS = (
    "Left and right: previous and next span. Up and down: another rank. Home and End: first and last span. + and -: zoom; "
    "0: all. Enter: the rank that the span waits for."
)
_NOTES = ("", "failed", "unfinished")


def timeline_figure(timeline: StepTimeline, title: str) -> Element:
    """The figure of one step; `title` names it for screen readers."""
    return element(
        "figure",
        {"class": "timeline"},
        _tools(timeline),
        element("div", {"class": "tracks"}, _labels(timeline), _scroller(timeline, title)),
        element("p", {"class": "details", "aria-live": "polite"}, "Select a span to see its times."),
        element("p", {"class": "quiet keys"}, _KEYS),
        *(element("p", {"class": "quiet"}, note) for note in timeline.notes),
        data_block("timeline-data", _data(timeline)),
    )


def _tools(timeline: StepTimeline) -> Element:
    used = {span.category for row in timeline.rows for span in row.spans}
    legend = [
        element("li", None, element("span", {"class": f"swatch {each.value}"}), _TITLES[each])
        for each in Category
        if each in used
    ]
    if any(span.note for row in timeline.rows for span in row.spans):
        legend.append(element("li", None, element("span", {"class": "swatch troubled"}), "failed or unfinished"))
    buttons = [
        element("button", {"type": "button", "data-zoom": zoom, "aria-label": name}, sign)
        for zoom, name, sign in (("out", "zoom out", "-"), ("in", "zoom in", "+"), ("all", "show the whole step", "all"))
    ]
    return element(
        "div", {"class": "tools"}, element("ul", {"class": "legend"}, *legend), element("div", {"class": "zoom"}, *buttons)
    )


def _labels(timeline: StepTimeline) -> Element:
    return element("ol", {"class": "labels"}, *map(_label, timeline.rows))


def _label(row: TimelineRow) -> Element:
    more = " · ".join(filter(None, [row.track if row.track != "host" else "", row.remark]))
    words = f"{row.rank} {row.label}"
    note = element("span", {"class": "quiet"}, f" {more}") if more else None
    return element("li", {"title": f"rank {words} {more}".strip()}, words, note)


def _scroller(timeline: StepTimeline, title: str) -> Element:
    height = _ROW_HEIGHT * len(timeline.rows)
    bars = element(
        "svg",
        {
            "class": "bars",
            "y": _AXIS_HEIGHT,
            "width": "100%",
            "height": height,
            "viewBox": f"0 0 {timeline.duration_us} {height}",
            "preserveAspectRatio": "none",
        },
        *_bars(timeline),
    )
    picture = element(
        "svg", {"class": "picture", "width": "100%", "height": height + _AXIS_HEIGHT}, _axis(timeline, height), bars
    )
    attributes = {"class": "scroller", "tabindex": 0, "role": "application", "aria-label": f"{title}. {_KEYS}"}
    return element("div", attributes, picture)


def _axis(timeline: StepTimeline, height: int) -> Element:
    """Lines at round times; page.js draws more of them where the picture is enlarged."""
    parts = []
    for at_us in ticks(0, timeline.duration_us, 6):
        x = f"{100 * at_us / timeline.duration_us:.3f}%"
        parts.append(element("line", {"x1": x, "x2": x, "y1": _AXIS_HEIGHT - 4, "y2": height + _AXIS_HEIGHT, "class": "grid"}))
        anchor = "start" if not at_us else "end" if at_us > 0.95 * timeline.duration_us else "middle"
        parts.append(element("text", {"x": x, "y": 14, "text-anchor": anchor}, duration_text(at_us / 1e6)))
    return element("g", {"class": "axis"}, *parts)


def _bars(timeline: StepTimeline) -> list[Element]:
    """A path for all bars of one color and depth: an element for each would make the page several times as large."""
    paths: dict[tuple[int, str], list[str]] = defaultdict(list)
    for number, row in enumerate(timeline.rows):
        for span in row.spans:
            depth = min(span.depth, len(_BARS) - 1)
            paths[depth, span.category.value].append(_bar(span, number, depth))
            if span.note:
                paths[len(_BARS), "troubled"].append(_bar(span, number, depth))
    return [element("path", {"class": color, "d": "".join(bars)}) for (_, color), bars in sorted(paths.items())]


def _bar(span: Span, row: int, depth: int) -> str:
    top, height = _BARS[depth]
    return f"M{span.begin_us} {row * _ROW_HEIGHT + top}h{span.duration_us}v{height}h-{span.duration_us}z"


def _data(timeline: StepTimeline) -> object:
    titles = {title: number for number, title in enumerate(dict.fromkeys(s.title for row in timeline.rows for s in row.spans))}
    rows = [
        {
            "rank": row.rank,
            "label": row.label,
            "track": row.track,
            "spans": [
                [
                    span.begin_us,
                    span.duration_us,
                    titles[span.title],
                    span.micro_batch,
                    span.peer,
                    _NOTES.index(span.note),
                    min(span.depth, len(_BARS) - 1),
                ]
                for span in row.spans
            ],
        }
        for row in timeline.rows
    ]
    shape = {"row": _ROW_HEIGHT, "axis": _AXIS_HEIGHT, "bars": _BARS}
    return {"duration": timeline.duration_us, "titles": list(titles), "notes": _NOTES, "shape": shape, "rows": rows}
