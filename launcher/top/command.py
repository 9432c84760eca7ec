"""`mimo-launch top` in its forms: the whole screen, lines for a pipe, JSON, and one page."""

from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.segment import Segment, Segments

from launcher import jobs
from launcher.coordination.node_identity import endpoint_from
from launcher.errors import LaunchError
from launcher.formatting import printable
from launcher.top.as_lines import JsonLines, as_line, moments
from launcher.top.keyboard import Keyboard
from launcher.top.moment import Moment, Source
from launcher.top.node_source import connect
from launcher.top.page import page_of
from launcher.top.run_source import RunSource
from launcher.top.screen import Screen
from mimo_role.host import environ

_WIDTH_OF_FILE = 120


def source_of(run: str) -> Source:
    """The run that the user has named: a job's id, a run directory, or the `HOST:PORT` at which its nodes meet.

    Raises:
        LaunchError: there is no such run.
    """
    endpoint = endpoint_from(run)
    if endpoint is not None and not Path(run).is_dir():
        return connect(endpoint)
    return RunSource(jobs.find(run))


def can_redraw(out: TextIO) -> bool:
    """Whether this is a terminal that moves its cursor."""
    return out.isatty() and environ.get("TERM") not in (None, "", "dumb")


def lines(source: Source, interval_s: float, *, as_json: bool) -> Iterator[str]:
    """A line at each interval until the run is over; with `as_json` each view once."""
    views = JsonLines()
    for moment in moments(source, interval_s):
        line = views.of(moment) if as_json else as_line(moment)
        if line is not None:
            yield line


def once(source: Source, out: TextIO, *, as_json: bool) -> str:
    """The present state: a page, or one line of JSON.

    Raises:
        LaunchError: JSON is asked for, and the run has no view.
    """
    moment = source.read()
    if not as_json:
        return _page(moment, _console(out))
    if moment.view is None:
        raise LaunchError(f"no rank has recorded a step ({printable(moment.note)})")
    return moment.view.to_json() + "\n"


def watch(source: Source, out: TextIO, keys: TextIO | None, interval_s: float) -> str:
    """Show the run on a terminal until it is over, and return its last page; empty if the user has left before.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    console = _console(out)
    last = Screen(console, source, Keyboard(keys), interval_s).run()
    return _page(last, console) if last is not None else ""


def _console(out: TextIO) -> Console:
    width = None if out.isatty() or environ.get("COLUMNS") else _WIDTH_OF_FILE
    return Console(file=out, width=width, highlight=False, markup=False, emoji=False)


def _page(moment: Moment, console: Console) -> str:
    page = page_of(moment, console)
    with console.capture() as captured:
        console.print(Segments([segment for line in (*page.head, *page.body) for segment in (*line, Segment.line())]), end="")
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
