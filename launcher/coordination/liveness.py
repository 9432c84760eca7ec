"""Which nodes are alive, and whether their ranks make progress."""

import logging
import threading
import time
from collections.abc import Collection, Mapping
from enum import Enum

from torch.distributed import DistError

from launcher.coordination.event_log import Event, EventLog
from launcher.exit_code import ExitCode
from launcher.formatting import listed
from launcher.outcome import AbortReason

logger = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
"""Seconds between two heartbeats of a node."""
LOST_AFTER_S = 30.0
"""Seconds without a heartbeat before a node is considered lost."""
_POLL_S = 0.1
_POLLS_PER_S = 2000
"""How often a second node 0 is asked for events, by all nodes together."""


class Progress(str, Enum):
    """What the ranks of one node do."""

    MOVING = "moving"
    STALLED = "stalled"
    """No progress for too long."""
    UNKNOWN = "unknown"
    """No rank reports progress."""
    DONE = "done"


class ProbeTrigger:
    """Decides when the ranks of all nodes are probed: once when none makes progress, and again after some progress."""

    def __init__(self) -> None:
        self._has_fired = False

    def fires(self, found: Collection[Progress]) -> bool:
        """Whether it is time. `found` is the progress of all nodes."""
        if Progress.MOVING in found:
            self._has_fired = False
        elif Progress.STALLED in found and not self._has_fired:
            self._has_fired = True
            return True
        return False


class LivenessTracker:
    """How long each node's heartbeat counter has stood still.

    Counted in heartbeats of this node, as time goes on in a suspended job.
    """

    def __init__(self) -> None:
        self._still: Mapping[int, tuple[bytes, int]] = {}
        self._has_lost_one = False

    def find_lost(self, counters: Mapping[int, bytes], lost_after_s: float) -> list[int]:
        """The nodes, other than node 0, that are lost. To be called once a heartbeat.

        They are known one heartbeat after the first: those that are lost for one reason do not stop at the same heartbeat.
        """
        before = self._still
        self._still = {
            node: (counter, before[node][1] + 1 if (node in before and before[node][0] == counter) else 0)
            for node, counter in counters.items()
        }
        lost = [node for node, (_, still) in self._still.items() if node and still * HEARTBEAT_S > lost_after_s]
        found = lost if self._has_lost_one else []
        self._has_lost_one = bool(lost)
        return found


class Liveness:
    """Threads that write this node's heartbeat, apply events, and look for lost nodes.

    In the store, `heartbeat/I` is a counter of node I, and its progress. While the network to node 0 is down, torch's calls
    block without limit: a second thread watches the first.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._store = log.store
        self._state = log.state
        self.progress = Progress.MOVING
        """Of this node's ranks."""
        self._probe_trigger = ProbeTrigger()
        self._polls = 0
        """How often the store has answered."""
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mimo-launch events", daemon=True)

    def start(self) -> None:
        """Start the threads."""
        self._write_heartbeat(0)
        self._thread.start()
        threading.Thread(target=self._watch_thread, name="mimo-launch liveness", daemon=True).start()

    def stop(self) -> None:
        """Stop the threads; wait for a moment until they have."""
        self._is_closing.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=2 * HEARTBEAT_S)

    def _run(self) -> None:
        """Apply events, and write heartbeats."""
        heartbeats, written_at, tracker = 0, time.monotonic(), LivenessTracker()
        interval_s = max(_POLL_S, self._store.nodes / _POLLS_PER_S)
        while not self._is_closing.is_set():
            try:
                if self._log.apply_next():
                    self._polls += 1
                    continue
                if time.monotonic() - written_at > HEARTBEAT_S:
                    heartbeats, written_at = heartbeats + 1, time.monotonic()
                    self._write_heartbeat(heartbeats)
                    if self._store.node == 0:
                        self._check_all(tracker)
                self._polls += 1
            except DistError:
                self._log.lose_node_0(f"{self._store.owner} is lost: connection closed")
                return
            time.sleep(interval_s)

    def _write_heartbeat(self, counter: int) -> None:
        self._store.tcp.set(f"heartbeat/{self._store.node}", f"{counter} {self.progress.value}")

    def _watch_thread(self) -> None:
        # Counted, not timed: time goes on in a suspended job.
        polls, still = self._polls, 0
        while not self._is_closing.is_set() and not self._store.is_lost:
            time.sleep(HEARTBEAT_S)
            still = still + 1 if self._polls == polls else 0
            polls = self._polls
            if still * HEARTBEAT_S > LOST_AFTER_S:
                self._log.lose_node_0(f"{self._store.owner} is lost: no answer for {LOST_AFTER_S:g} s")

    def _check_all(self, tracker: LivenessTracker) -> None:
        """On node 0: look for a lost node, and for a job that makes no progress."""
        if not self._state.members or self._state.is_over:
            return
        found = self._store.tcp.multi_get([f"heartbeat/{node}" for node in range(self._store.nodes)])
        if lost := tracker.find_lost(dict(enumerate(found)), LOST_AFTER_S):
            names = listed([str(self._state.members[node]) for node in lost])
            message = f"{names} {'is' if len(lost) == 1 else 'are'} lost: no heartbeat for {LOST_AFTER_S:g} s"
            if 1 < len(lost) == self._store.nodes - 1:
                message += f"; these are all nodes but {self._state.members[0]}, which may be cut off from the network itself"
            self._log.abort(AbortReason(node=0, message=message, code=ExitCode.FAILURE))
        if self._probe_trigger.fires({Progress(value.decode().partition(" ")[2]) for value in found}):
            self._log.append(Event.PROBE, self._state.probes + 1)
