"""A run as `mimo-launch top` sees it at one moment."""

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Protocol

from launcher.live.view import LiveView

STALE_AFTER = 3
"""Intervals of a view."""


class State(Enum):
    """Whether a run is going on."""

    WAITING = auto()
    """It has not shown anything yet."""
    RUNNING = auto()
    STALE = auto()
    """Its view has not changed for several of its intervals."""
    OVER = auto()


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What is known of a run, and how far it can be relied upon."""

    state: State
    note: str
    """The state in words: `running`, `no news for 12 s`, `over, failed: ...`."""
    view: LiveView | None = None
    """The last one; `None` as long as there was none."""

    @property
    def shown(self) -> LiveView | None:
        """The view without what is true only while the run is going on: its ETA."""
        if self.view is None or self.state is State.RUNNING:
            return self.view
        return replace(self.view, eta_s=None)


class Source(Protocol):
    """Where the moments of a run come from."""

    def read(self) -> Moment:
        """The run as it is now.

        Raises:
            LaunchError: there is something that cannot be read, such as the view of another version.
        """


class Age:
    """How old a view is. The clock that wrote it may be another machine's."""

    def __init__(self) -> None:
        self._time: float | None = None
        self._since = 0.0

    def of(self, view: LiveView, wall: float, now: float) -> float:
        """Seconds since it was written. Once another one has been seen, this machine's clock alone counts.

        Args:
            view: the view that was read.
            wall: now, in seconds since the epoch.
            now: now, on a monotonic clock.
        """
        if view.time != self._time:
            self._since = now - max(0.0, wall - view.time) if self._time is None else now
            self._time = view.time
        return now - self._since
