"""A run that is watched through node 0, from where its run directory is not visible."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from launcher.coordination.node_identity import Endpoint
from launcher.live.quantities import duration
from launcher.live.view import STORE_KEY, LiveView
from launcher.top.moment import STALE_AFTER, Age, Moment, State
from mimo_role.host import environ

if TYPE_CHECKING:
    from launcher.coordination.store import Store

_CONNECT_S = 10.0
_TORCH_LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"


class NodeSource:
    """A run by the view in node 0's store, which is there as long as mimo-launch runs on node 0."""

    def __init__(
        self,
        store: "Store",
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._wall = wall
        self._monotonic = monotonic
        self._age = Age()
        self._view: LiveView | None = None

    def read(self) -> Moment:
        """See `Source`."""
        has_view = self._store.has(STORE_KEY)
        if has_view is None:
            note = "over" if self._view is not None and self._view.is_last else "node 0 does not answer any more"
            return Moment(state=State.OVER, note=note, view=self._view)
        if has_view and (text := self._store.find(STORE_KEY)) is not None:
            self._view = LiveView.from_json(text)
        if self._view is None:
            return Moment(state=State.WAITING, note="starting")
        age_s = self._age.of(self._view, self._wall(), self._monotonic())
        if self._view.is_last:
            return Moment(state=State.WAITING, note=f"attempt {self._view.attempt} has ended", view=self._view)
        if age_s > STALE_AFTER * self._view.interval_s:
            return Moment(state=State.STALE, note=f"no news for {duration(age_s)}", view=self._view)
        return Moment(state=State.RUNNING, note="running", view=self._view)


def connect(endpoint: Endpoint) -> NodeSource:
    """Connect to node 0.

    Raises:
        LaunchError: it does not answer, or another program does.
    """
    if environ.get(_TORCH_LOG_LEVEL) is None:
        # torch warns on stderr of hosts without a name, and of a node 0 that has ended.
        environ.export({_TORCH_LOG_LEVEL: "ERROR"})
    from launcher.coordination import store

    # The index of no node: this is none, and only reads.
    return NodeSource(store.connect(endpoint, "node 0", _CONNECT_S, node=-1, nodes=0))
