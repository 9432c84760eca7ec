"""A moment of a run as lines of styled text: the head, which stays, and the body, which is scrolled."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from launcher.formatting import counted, listed, printable
from launcher.live.quantities import duration, scalar, seconds, share
from launcher.live.status_line import describe_step, main_scalar
from launcher.live.view import LiveView, ModuleView
from launcher.stragglers.text import describe
from launcher.top.columns import BAR_WIDTHS, GAP, Column, bands_of, groups_of, names_of, width_of
from launcher.top.moment import Moment, State
from launcher.top.shares import bar

Line = list[Segment]

_STATE_STYLES = {State.WAITING: "yellow", State.RUNNING: "green", State.STALE: "bold red", State.OVER: "bold"}
_SHOWN_STRAGGLERS = 3
_PROGRESS_WIDTH = 24
_WIDE = 100
"""Columns of a terminal with room for a bar beside the text."""


@dataclass(frozen=True)
class Page:
    """The lines of one moment, in a terminal's width."""

    head: list[Line]
    body: list[Line]


def page_of(moment: Moment, console: Console) -> Page:
    """Lay out a moment for the present width of a terminal."""
    ascii_only = console.options.ascii_only
    head = Group(*_head(moment, console))
    modules = moment.shown.modules if moment.shown is not None else {}
    groups = groups_of(modules, ascii_only=ascii_only)
    bands = bands_of(names_of(modules), groups, console.width) if modules else []
    tables = [_table(band, [*modules.values()], console.width, ascii_only=ascii_only) for band in bands]
    return Page(_lines(head, console), _lines(Group(*_spaced(tables)), console) if tables else [])


def _lines(renderable: RenderableType, console: Console) -> list[Line]:
    return console.render_lines(renderable, console.options.update(height=None), pad=False)


def _head(moment: Moment, console: Console) -> Iterator[RenderableType]:
    view = moment.shown
    state = Text(printable(moment.note), _STATE_STYLES[moment.state])
    if view is None:
        yield state
        return
    yield _listed_texts(Text(printable(view.run), "bold"), *_run_texts(view), state)
    yield _progress(view, has_room=console.width >= _WIDE and not console.options.ascii_only)
    if view.scalars:
        main = main_scalar(view)
        names = sorted(view.scalars, key=lambda name: name != main)
        yield Text("   ".join(f"{printable(name)} {scalar(view.scalars[name])}" for name in names))
    for straggler in view.stragglers[:_SHOWN_STRAGGLERS]:
        yield Text(f"straggler: {printable(describe(straggler))}", "bold red")
    if more := view.stragglers[_SHOWN_STRAGGLERS:]:
        ranks = listed([str(straggler.rank) for straggler in more])
        yield Text(f"and {counted(len(more), 'more straggler')}: {'rank' if len(more) == 1 else 'ranks'} {ranks}", "bold red")
    yield Text()


def _run_texts(view: LiveView) -> Iterator[Text]:
    if view.attempt:
        yield Text(f"attempt {view.attempt}")
    yield Text(counted(view.world_size, "rank"))
    if view.recording < view.world_size:
        yield Text(f"{view.world_size - view.recording:,} without a record", "yellow")
    yield Text(duration(view.time - view.began))


def _progress(view: LiveView, *, has_room: bool) -> RenderableType:
    texts = [Text(describe_step(view))]
    if view.step_s is not None:
        texts.append(Text(f"{seconds(view.step_s)} per step"))
    if view.eta_s is not None:
        texts.append(Text(f"ETA {duration(view.eta_s)}"))
    if view.step is None or not view.total_steps:
        return _listed_texts(*texts)
    texts[0].append(f" ({share(min(1.0, view.step / view.total_steps))})")
    if not has_room:
        return _listed_texts(*texts)
    row = Table.grid(padding=(0, 1))
    row.add_column()
    row.add_column()
    done = ProgressBar(total=view.total_steps, completed=min(view.step, view.total_steps), width=_PROGRESS_WIDTH)
    row.add_row(done, _listed_texts(*texts))
    return row


def _listed_texts(*texts: Text) -> Text:
    return Text(" | ").join(texts)


def _table(columns: list[Column], views: list[ModuleView], width: int, *, ascii_only: bool) -> Table:
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="", show_edge=False)
    bar_width = min(BAR_WIDTHS[1], BAR_WIDTHS[0] + max(0, width - width_of(columns)))
    for column in columns:
        title = Text(column.title, column.style or "dim")
        table.add_column(title, justify=column.align, no_wrap=True, overflow="ellipsis", style=_cell_style(column))
    for index, view in enumerate(views):
        cells = [
            bar(view, bar_width, ascii_only=ascii_only) if column.is_bar else Text(column.cells[index]) for column in columns
        ]
        table.add_row(*cells)
    return table


def _cell_style(column: Column) -> str:
    return column.style if column.title == "module" else ""


def _spaced(tables: list[Table]) -> Iterator[RenderableType]:
    for index, table in enumerate(tables):
        if index:
            yield Text()
        yield table
