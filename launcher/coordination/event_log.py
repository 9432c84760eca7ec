"""Events of a job, which every node's agent applies in the same order, and the state that they change.

In the store of several nodes the events are `event/0`, `event/1`, ... in the order in which they happened.
"""

import json
import threading
from collections.abc import Callable
from enum import Enum
from typing import Any

from launcher.coordination.member import Member
from launcher.coordination.store import Store
from launcher.exit_code import ExitCode
from launcher.outcome import AbortReason


class Event(str, Enum):
    """The kinds of events."""

    MEET = "meet"
    """All nodes are there: the run id and the members."""
    ATTEMPT = "attempt"
    """A node starts an attempt, and so shall all: its number."""
    PORT = "port"
    """Node 0 has a store for the ranks of an attempt: its number, and the port."""
    VERDICT = "verdict"
    """Node 0 has compared the ranks of an attempt: its number, and whether they may go on."""
    PROBE = "probe"
    """No node makes progress, and all shall probe their ranks: how often this has happened."""
    DONE = "done"
    """The ranks of all nodes are done."""
    ABORT = "abort"
    """The job ends before its ranks are done: why."""


class JobState:
    """What one agent knows of the job. Changed by events only, in any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.run_id = ""
        self.members: tuple[Member, ...] = ()
        """All nodes, once they have met."""
        self.attempt = 0
        """The latest attempt that a node has started."""
        self.ports: dict[int, int] = {}
        """By attempt: the port of the store of its ranks, on node 0."""
        self.verdicts: dict[int, str] = {}
        """By attempt: the result of the preflight check."""
        self.probes = 0
        """How often all nodes were asked to probe their ranks."""
        self.all_done = False
        """Whether the ranks of all nodes are done."""
        self.abort_reason: AbortReason | None = None

    def apply(self, event: Event, value: Any) -> None:
        """Change the state by one event. `value` is JSON."""
        with self._changed:
            if event is Event.MEET:
                self.run_id = value["run_id"]
                self.members = tuple(Member(**member) for member in value["members"])
            elif event is Event.ATTEMPT:
                self.attempt = max(self.attempt, value)
            elif event is Event.PORT:
                self.ports |= dict([value])
            elif event is Event.VERDICT:
                self.verdicts |= dict([value])
            elif event is Event.PROBE:
                self.probes = value
            elif event is Event.DONE:
                self.all_done = True
            elif event is Event.ABORT:
                self._abort(AbortReason.from_dict(value))
            self._changed.notify_all()

    def _abort(self, reason: AbortReason) -> None:
        # Node 0 may leave once all is done.
        if self.abort_reason is None and not (self.all_done and reason.node is None):
            self.abort_reason = reason

    @property
    def is_over(self) -> bool:
        """Whether the job is done or aborted."""
        return self.all_done or self.abort_reason is not None

    def wait_until(self, condition: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait for events that make the condition true; return whether they came in time."""
        with self._changed:
            return self._changed.wait_for(condition, timeout_s)


class EventLog:
    """One agent's view of the events in the store."""

    def __init__(self, store: Store, state: JobState) -> None:
        self.store = store
        self.state = state
        self._next = 0

    def append(self, event: Event, value: Any) -> None:
        """Add an event, for all nodes."""
        self.store.ask(lambda: self.add(event, value))

    def add(self, event: Event, value: Any) -> None:
        """The same for a thread that may wait for node 0.

        Raises:
            DistError: node 0 is lost.
        """
        number = self.store.tcp.add("events", 1) - 1
        self.store.tcp.set(f"event/{number}", json.dumps([event.value, value]))

    def apply_next(self) -> bool:
        """Apply the next event to the state, if there is one.

        Raises:
            DistError: node 0 is lost.
        """
        # No wait: it would block the connection, and torch logs a warning whenever a wait times out.
        key = f"event/{self._next}"
        if not self.store.tcp.check([key]):
            return False
        event, value = json.loads(self.store.tcp.get(key))
        self._next += 1
        self.state.apply(Event(event), value)
        return True

    @property
    def is_empty(self) -> bool:
        """Whether no event has happened yet."""
        return not self.store.tcp.check(["event/0"])

    def abort(self, reason: AbortReason) -> AbortReason:
        """End the job on all nodes. Returns the reason that was given first, on whatever node."""
        mine = reason.as_dict()
        first = self.store.ask(lambda: self.set_first_abort(json.dumps(mine)))
        if first is not None:
            self.append(Event.ABORT, first)
        self.state.apply(Event.ABORT, first or mine)
        return self.state.abort_reason or reason

    def set_first_abort(self, reason: str) -> Any:
        """Keep a reason in JSON, unless there is one already. Returns the one that is kept.

        Raises:
            DistError: node 0 is lost.
        """
        return json.loads(self.store.tcp.compare_set("abort", "", reason))

    def lose_node_0(self, message: str) -> None:
        """Abort the job on this node, as node 0 is lost."""
        self.store.is_lost = True
        self.state.apply(Event.ABORT, AbortReason(node=None, message=message, code=ExitCode.FAILURE).as_dict())
