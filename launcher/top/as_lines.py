"""The moments of a run as lines, for a pipe or a file."""

import time
from collections.abc import Callable, Iterator

from launcher.formatting import printable
from launcher.live.status_line import status_line
from launcher.top.moment import Moment, Source, State


def moments(source: Source, interval_s: float, sleep: Callable[[float], None] = time.sleep) -> Iterator[Moment]:
    """A run at each interval. The last one is that at which it is over."""
    while True:
        moment = source.read()
        yield moment
        if moment.state is State.OVER:
            return
        sleep(interval_s)


def as_line(moment: Moment) -> str:
    """`digits: step 412 of 2,000 | ...`, with the state where the run is not simply running."""
    note, view = printable(moment.note), moment.shown
    if view is None:
        return note
    state = [note] if moment.state is not State.RUNNING else []
    return f"{printable(view.run)}: {' | '.join([*state, status_line(view)])}"


class JsonLines:
    """Views as JSON, each once."""

    def __init__(self) -> None:
        self._written_at: float | None = None

    def of(self, moment: Moment) -> str | None:
        """The view of a moment; `None` where it was returned before, or there is none."""
        if moment.view is None or moment.view.time == self._written_at:
            return None
        self._written_at = moment.view.time
        return moment.view.to_json()
