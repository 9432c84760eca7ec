"""The sections of a run's page. What is missing is said with its reason, and what to do."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from xml.etree.ElementTree import Element

from launcher.formatting import counted, ranges
from launcher.plan.launch_plan import LaunchPlan
from launcher.run_report.charts import charts, share_table
from launcher.run_report.curves import attempts_begin, curves_of
from launcher.run_report.layout import layout_of
from launcher.run_report.layout_svg import color_numbers, draw_layout
from launcher.run_report.markup import Child, element
from launcher.run_report.run_record import RunRecord
from launcher.run_report.shares import shares_of
from launcher.run_report.ticks import duration_text, number_text
from launcher.run_report.timeline_figure import timeline_figure
from launcher.stragglers.straggler import Straggler

_MOST_NODES = 2_000
_NO_METRICS = (
    "There is no metrics.jsonl in the run directory, or no step of mimo-launch in it. mimo-launch writes it while ranks record "
    "their steps with ctx.step()."
)
_NO_SPANS = (
    "No rank has recorded a span in a step. Ranks record what Schedule1F1B runs, and what a script passes to ctx.step() and "
    "ctx.span()."
)


def section(name: str, title: str, *children: Child, is_open: bool = True) -> Element:
    """A part of the page that can be folded away."""
    heading = element("summary", None, element("h2", {"id": f"{name}-title"}, title))
    more = {"open": ""} if is_open else {}
    return element("details", {"class": "section", "id": name, **more}, heading, *children)


def heading(record: RunRecord) -> Element:
    """The name of the run, how it ended, and the main numbers."""
    report = record.report or {}
    outcome = str(report.get("outcome") or ("running" if record.is_running else "no report"))
    kind = {"done": "good", "running": "neutral", "requeued": "neutral"}.get(outcome, "bad")
    facts = [*_times(report), *_sizes(record), ("run directory", record.path)]
    rows = [element("div", None, element("dt", None, name), element("dd", None, value)) for name, value in facts]
    return element(
        "header",
        None,
        element("h1", None, record.plan.name, " ", element("span", {"class": f"badge {kind}"}, outcome)),
        element("p", {"class": "state"}, record.state.replace("\n", ";")) if record.report is None else None,
        element("dl", {"class": "facts"}, *rows),
    )


def _times(report: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    began, ended = _time(report.get("began")), _time(report.get("ended"))
    if began is not None:
        yield "began", f"{began:%Y-%m-%d %H:%M:%S} UTC"
    if began is not None and ended is not None:
        yield "took", duration_text(max(0.0, (ended - began).total_seconds()))
    if report.get("exit_code") is not None:
        yield "exit code", str(report["exit_code"])
    if report.get("attempts") is not None:
        yield "attempts", str(report["attempts"])


def _time(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _sizes(record: RunRecord) -> Iterable[tuple[str, str]]:
    yield "ranks", f"{record.plan.topology.world_size:,}"
    yield "nodes", f"{len(record.plan.nodes):,}"
    if record.steps:
        yield "last step", f"{record.steps[-1].step:,}"


def failure_section(record: RunRecord) -> Element | None:
    """Why the run ended early; `None` after success and before the end."""
    report = record.report
    if report is None or report.get("headline") is None:
        return None
    first = _object(report.get("first"))
    return section(
        "failure",
        "Failure",
        element("pre", {"class": "message"}, str(report.get("message") or report["headline"])),
        _hint(report.get("hint")),
        _folded("Traceback of the rank that failed first", _object(first.get("crash")).get("traceback")),
        _folded("End of its output", _lines(first.get("tail"))),
        _others(report.get("others")),
    )


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _hint(text: object) -> Element | None:
    return element("p", {"class": "hint"}, element("strong", None, "Hint: "), str(text)) if text else None


def _folded(title: str, text: object) -> Element | None:
    if not isinstance(text, str) or not text:
        return None
    return element("details", None, element("summary", None, title), element("pre", None, text))


def _lines(value: object) -> str | None:
    return "\n".join(map(str, value)) if isinstance(value, list) else None


def _others(value: object) -> Element | None:
    groups = [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
    if not groups:
        return None
    rows = [[str(each.get("who", "")), str(each.get("ending", ""))] for each in groups]
    return element("details", None, element("summary", None, "How the other ranks ended"), table(["ranks", "ended by"], rows))


def restarts_section(record: RunRecord) -> Element | None:
    """Why ranks were restarted; `None` if they were not."""
    restarts = record.report.get("restarts") if record.report is not None else None
    if not isinstance(restarts, list) or not restarts:
        return None
    return section("restarts", "Restarts", element("ol", None, *(element("li", None, str(each)) for each in restarts)))


def layout_section(plan: LaunchPlan) -> Element:
    """The picture of the plan, and its warnings."""
    warnings = [element("li", None, f"{each.message} ({each.code})") for each in plan.warnings]
    return section(
        "layout",
        "Layout",
        _wide(draw_layout(layout_of(plan)), "layout"),
        element("h3", None, "Warnings") if warnings else None,
        element("ul", None, *warnings) if warnings else None,
    )


def shares_section(record: RunRecord) -> Element:
    """What the time of steps went to."""
    found = shares_of(record.steps)
    if not found:
        reason = "No step has times of modules: Schedule1F1B records them." if record.steps else _NO_METRICS
        return section("shares", "Time by module", _missing(reason))
    note = (
        f"Parts of the time of {len(record.steps):,} steps, means over the ranks of a module. "
        "Waits for collectives are those within forwards and backwards; others belong to the rest."
    )
    return section(
        "shares",
        "Time by module",
        element("p", {"class": "quiet"}, note),
        _wide(share_table(found), "time by module"),
    )


def curves_section(record: RunRecord) -> Element:
    """Scalars, times and rates by step."""
    found = curves_of(record.steps)
    if not found:
        return section("curves", "Curves", _missing(_NO_METRICS))
    attempts = attempts_begin(record.steps)
    notes = ["A line is the mean of several steps, the band around it reaches from their least to their largest value."]
    notes += [f"Dashed: attempt {number} begins at step {step}." for step, number in attempts[:8]]
    drawn = charts(found, attempts, color_numbers(record.plan.topology.grids))
    return section("curves", "Curves", drawn, element("p", {"class": "quiet"}, " ".join(notes)))


def timeline_section(record: RunRecord) -> Element:
    """What each rank did in a step."""
    if not record.timelines:
        reason = "node 0's machine has the recordings of a run that is going on." if record.is_running else _NO_SPANS
        return section("timeline", "Timeline", _missing(reason))
    parts: list[Element] = []
    for timeline in record.timelines:
        length = duration_text(timeline.duration_us / 1e6)
        title = f"Step {timeline.step}, attempt {timeline.attempt}: {length}"
        parts += [element("h3", None, title), timeline_figure(timeline, title)]
    return section("timeline", "Timeline", *parts)


def stragglers_section(record: RunRecord) -> Element:
    """Ranks that computed longer than their peers."""
    if record.report is None or "stragglers" not in record.report:
        reason = "The report has no list of stragglers: it is written when a run ends whose ranks record their steps."
        return section("stragglers", "Stragglers", _missing(reason))
    found = record.stragglers
    if not found:
        return section("stragglers", "Stragglers", element("p", None, "No rank computed longer than its peers."))
    heads = ["rank", "role", "node", "time beside its peers", "from step", "until step", "cost of a step"]
    rows = [_straggler_row(each) for each in found]
    left_out = record.stragglers_left_out
    text = f"{counted(left_out, 'further straggler')} cost less and did not last."
    note = element("p", {"class": "quiet"}, text) if left_out else None
    return section("stragglers", "Stragglers", _wide(table(heads, rows), "stragglers"), note)


def _straggler_row(each: Straggler) -> list[str]:
    until = "the end" if each.until_step is None else str(each.until_step)
    ratio = f"{number_text(each.ratio)} times"
    return [str(each.rank), each.label, each.node, ratio, str(each.since_step), until, f"{each.share:.1%}"]


def nodes_section(record: RunRecord) -> Element:
    """Which host was which node."""
    shown = record.plan.nodes[:_MOST_NODES]
    rows = [[each.name, each.pool, record.hosts.get(each.name, "unknown"), ranges(each.ranks)] for each in shown]
    left_out = len(record.plan.nodes) - len(shown)
    note = element("p", {"class": "quiet"}, f"{counted(left_out, 'further node')}: see nodes.json.") if left_out else None
    found = _wide(table(["node", "pool", "host", "ranks"], rows), "nodes")
    return section("nodes", f"Nodes ({len(record.plan.nodes):,})", found, note, is_open=len(rows) <= 16)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Element:
    """A table of texts."""
    head = element("tr", None, *(element("th", {"scope": "col"}, each) for each in heads))
    body = [element("tr", None, *(element("td", None, each) for each in row)) for row in rows]
    return element("table", None, element("thead", None, head), element("tbody", None, *body))


def _wide(content: Element, name: str) -> Element:
    """What may be wider than the window: a region that the keyboard can scroll."""
    return element("div", {"class": "wide", "tabindex": 0, "role": "region", "aria-label": name}, content)


def _missing(reason: str) -> Element:
    return element("p", {"class": "missing"}, reason[0].upper() + reason[1:])
