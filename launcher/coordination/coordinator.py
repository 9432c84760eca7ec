"""What the agents of several nodes tell each other: who is there, and how the job goes on or ends.

One TCPStore on node 0's host. In it stand `node/I` (who node I is), `beat/I` (a number that grows while it lives), and the
events `event/0`, `event/1`, ... in the order in which they happened; a thread in each agent looks for the next one. It looks
and does not wait: a wait blocks the connection, and torch writes a warning whenever one ends. No look ends while the network
to node 0 has failed, for which torch has no limit: a second thread looks after the first.
"""

import json
import logging
import socket
import threading
import time
from dataclasses import asdict
from typing import Any

from torch.distributed import DistError

from launcher.console import Say
from launcher.coordination.board import Board
from launcher.coordination.liveness import BEAT_S, LivenessTracker
from launcher.coordination.membership import AbortReason, Member, listed
from launcher.coordination.node_identity import Endpoint
from launcher.coordination.store import SAY_AFTER_S, connect, serve
from launcher.errors import LaunchError

logger = logging.getLogger(__name__)

LOST_AFTER_S = 30.0
"""A node whose beat stands still for so long is taken for dead."""
_FAREWELL_S = 10.0
_LOOK_S = 0.1
_LOOKS_PER_S = 2000
"""How often a second node 0 is asked, by all nodes together."""


class Coordinator:
    """This agent's line to the others. `meet()` first, `leave()` last."""

    def __init__(self, endpoint: Endpoint, names: list[str], node: int, digest: str, timeout_s: float) -> None:
        """Reach node 0's store, or start it.

        Args:
            endpoint: where it is.
            names: the plan's names of all nodes.
            node: this one's index among them.
            digest: the plan's digest.
            timeout_s: how long the nodes wait for each other.

        Raises:
            LaunchError: the port is taken, or node 0 does not answer.
        """
        self._endpoint = endpoint
        self._names = names
        self._node = node
        self._deadline = time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        found = serve(endpoint) if node == 0 else connect(endpoint, names[0], timeout_s)
        self._store = found.store
        self.board = Board(found.store, node, len(names))
        """What the agents put up for each other, beside the events."""
        self.address = found.address
        """Node 0's, as this node reaches it."""
        self.member = Member(node=node, name=names[node], host=socket.gethostname(), digest=digest)
        self.members: list[Member] = []
        """All nodes, once they have met."""
        self.run_id = ""
        self._changed = threading.Condition()
        self._ending: AbortReason | None = None
        self._attempt = 0
        self.progress = "moves"
        """What this node's ranks do: `moves`, `still` for too long, `done`, or `silent`: none says how far it is."""
        self.looks = 0
        """How often all nodes have been called on to look at their ranks, since none makes progress."""
        self._called_to_look = False
        self.verdicts: dict[int, str] = {}
        """By the start of the ranks, whether they may go on."""
        self._ports: dict[int, int] = {}
        self._looks = 0
        """How often the watcher has had an answer."""
        self._over = False
        self._came = False
        self._closing = False
        self._watcher: threading.Thread | None = None

    @property
    def ending(self) -> AbortReason | None:
        """Why the job ends, if it does before it is done."""
        return self._ending

    @property
    def attempt(self) -> int:
        """The latest start of the ranks that a node has called for."""
        return self._attempt

    @property
    def is_lost(self) -> bool:
        """Whether node 0 is taken for dead."""
        return self.board.is_lost

    @property
    def has_place(self) -> bool:
        """Whether this agent is one of the job's, and not a second one with another's node rank."""
        return self._came

    @property
    def is_over(self) -> bool:
        """Whether the ranks of all nodes are done."""
        return self._over

    def meet(self, run_id: str, say: Say) -> None:
        """Wait until all nodes are there with the same plan. `run_id` holds for all if it comes from node 0.

        Raises:
            LaunchError: a node is missing, came twice, or holds another plan.
        """
        self._present()
        self._watcher = threading.Thread(target=self._watch, name="mimo-launch control", daemon=True)
        self._watcher.start()
        threading.Thread(target=self._watch_the_watcher, name="mimo-launch lost", daemon=True).start()
        if self._node == 0:
            self._gather(run_id, say)
        else:
            self._await_go()

    def end(self, message: str, code: int, *, rank: int | None = None) -> AbortReason:
        """Tell all nodes that the job ends here, perhaps because of a rank; return the ending that was told first."""
        ending = AbortReason(node=self._node, message=message, code=code, rank=rank)
        mine = json.dumps(asdict(ending))
        found = self.board.ask(lambda: self._store.compare_set("ending", "", mine))
        if found is not None:
            ending = AbortReason(**json.loads(found))
            self._tell("ending", asdict(ending))
        with self._changed:
            self._ending = self._ending or ending
            self._changed.notify_all()
        return self._ending

    def start_again(self, attempt: int) -> None:
        """Call for the ranks of all nodes to be started again, for the time with this number."""
        with self._changed:
            if attempt <= self._attempt:
                return
            self._attempt = attempt
        self._tell("restart", attempt)

    def offer_port(self, attempt: int, port: int) -> None:
        """Node 0: say at which of its ports the ranks of a start join."""
        self._tell("port", [attempt, port])

    def port_of(self, attempt: int) -> int:
        """At which of node 0's ports the ranks of a start join.

        Raises:
            LaunchError: the job ends before node 0 says so.
        """
        with self._changed:
            while attempt not in self._ports:
                if self._ending is not None:
                    raise LaunchError(self._ending.message)
                self._changed.wait()
            return self._ports[attempt]

    def stamp(self, attempt: int) -> int:
        """A rank of a start has ended here: the number of those that have by now, on all nodes."""
        return self.board.count(f"ended/{attempt}", 1)

    def tell_verdict(self, attempt: int, verdict: str) -> None:
        """Node 0: say whether the ranks of a start may go on."""
        self._tell("verdict", [attempt, verdict])

    def wait_for_ending(self, timeout_s: float) -> None:
        """Give other nodes time to say why the job ends, or that it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._ending is not None or self._over, timeout_s)

    def done(self, attempt: int, *, requeue: AbortReason | None = None) -> None:
        """Say that this node's ranks are done, those of a start. Until those of all nodes are, it may be called for again.

        Where the ranks of a node have ended in order to be started again, that ends the job, once all nodes are done.
        """

        def count() -> None:
            if requeue is not None:
                self._store.compare_set(f"requeue/{attempt}", "", json.dumps(asdict(requeue)))
            if self._store.add(f"done/{attempt}", 1) < len(self._names):
                return
            if self._store.check([f"requeue/{attempt}"]):
                found = self._store.get(f"requeue/{attempt}")
                self._add_event("ending", json.loads(self._store.compare_set("ending", "", found.decode())))
            else:
                self._add_event("over", None)

        self.board.ask(count)

    def leave(self, patience_s: float) -> None:
        """Say farewell. Node 0 waits for the others', for a limited time, since it keeps the store: they hear the end from it.

        Args:
            patience_s: how long the others may take to stop their ranks.
        """
        self._closing = True
        if self._watcher is not None:
            self._watcher.join(timeout=2 * BEAT_S)
        if not self._came:
            return
        left = self.board.ask(lambda: self._store.add("left", 1))
        deadline = time.monotonic() + patience_s + _FAREWELL_S
        while self._node == 0 and left is not None and left < self._store.add("came", 0) and time.monotonic() < deadline:
            time.sleep(0.02)
            left = self._store.add("left", 0)

    def _present(self) -> None:
        """Take this node's place.

        Raises:
            LaunchError: another agent has it.
        """
        mine = json.dumps(asdict(self.member))
        found = self._store.compare_set(f"node/{self._node}", "", mine).decode()
        if found != mine:
            other = Member(**json.loads(found))
            message = (
                f"two nodes have node rank {self._node}: process {other.pid} on {other.host}, and process {self.member.pid} on "
                f"{self.member.host}"
            )
            if not self._store.check(["event/0"]):
                self.end(message, 2)
            raise LaunchError(message)
        self._store.add("came", 1)
        self._came = True
        self._store.set(f"beat/{self._node}", "0")

    def _gather(self, run_id: str, say: Say) -> None:
        """Node 0: wait for all, compare their plans, and let them go."""
        found: dict[int, Member] = {0: self.member}
        said = 0.0
        began = time.monotonic()
        while len(found) < len(self._names):
            for node in range(len(self._names)):
                if node not in found and self._store.check([f"node/{node}"]):
                    found[node] = Member(**json.loads(self._store.get(f"node/{node}")))
                    self._compare(found[node], say)
            if self._ending is not None:
                raise LaunchError(self._ending.message)
            missing = [name for node, name in enumerate(self._names) if node not in found]
            waited = time.monotonic() - began
            if missing and time.monotonic() > self._deadline:
                message = (
                    f"{listed(missing)} did not come within {self._timeout_s:g} s "
                    f"({len(found)} of {len(self._names)} nodes are here)"
                )
                self.end(message, 2)
                raise LaunchError(message)
            if missing and waited > max(SAY_AFTER_S, 2 * said):
                say(f"waiting for {len(missing)} of {len(self._names)} nodes: {listed(missing)}")
                said = waited
            if missing:
                time.sleep(max(0.05, len(self._names) / _LOOKS_PER_S / 10))
        members = [asdict(found[node]) for node in range(len(self._names))]
        self._tell("go", {"run_id": run_id, "members": members})
        self._await_go()

    def _compare(self, member: Member, say: Say) -> None:
        if (difference := member.difference_from(self.member)) is not None:
            self.end(difference, 2)
            raise LaunchError(difference)
        # It has presented itself a moment ago.
        if (difference := member.clock_difference(self.member, time.time())) is not None:
            say(f"warning (clocks): {difference}")

    def _await_go(self) -> None:
        # Node 0 has the same limit and names who is missing; it gets time to.
        patience = self._deadline + _FAREWELL_S
        with self._changed:
            while not self.members:
                if self._ending is not None:
                    raise LaunchError(self._ending.message)
                if not self._changed.wait(max(0.0, min(1.0, patience - time.monotonic()))) and time.monotonic() > patience:
                    raise LaunchError(f"{self._names[0]} at {self._endpoint} did not let the job start")

    def _tell(self, kind: str, value: Any) -> None:
        self.board.ask(lambda: self._add_event(kind, value))

    def _add_event(self, kind: str, value: Any) -> None:
        number = self._store.add("events", 1) - 1
        self._store.set(f"event/{number}", json.dumps([kind, value]))

    def _watch(self) -> None:
        """Hear events, and beat."""
        next_event, beat, beaten, pulses = 0, 0, time.monotonic(), LivenessTracker()
        interval = max(_LOOK_S, len(self._names) / _LOOKS_PER_S)
        while not self._closing:
            try:
                if self._store.check([f"event/{next_event}"]):
                    self._hear(*json.loads(self._store.get(f"event/{next_event}")))
                    next_event += 1
                    self._looks += 1
                    continue
                if time.monotonic() - beaten > BEAT_S:
                    beat, beaten = beat + 1, time.monotonic()
                    self._store.set(f"beat/{self._node}", f"{beat} {self.progress}")
                    self._feel(pulses)
                self._looks += 1
            except DistError:
                self._lose(f"{self._names[0]} at {self._endpoint} does not answer any more")
                return
            time.sleep(interval)

    def _watch_the_watcher(self) -> None:
        # Counted and not timed: time goes on in a suspended job.
        looks, still = self._looks, 0
        while not self._closing and not self.board.is_lost:
            time.sleep(BEAT_S)
            still = still + 1 if self._looks == looks else 0
            looks = self._looks
            if still * BEAT_S > LOST_AFTER_S:
                self._lose(f"{self._names[0]} at {self._endpoint} has not been heard of for {LOST_AFTER_S:g} s")

    def _feel(self, pulses: LivenessTracker) -> None:
        if self._node != 0 or not self.members or self._ending is not None or self._over:
            return
        beats = self._store.multi_get([f"beat/{node}" for node in range(len(self._names))])
        if (silent := pulses.silent(dict(enumerate(beats)), LOST_AFTER_S)) is not None:
            self.end(f"{self.members[silent]} has not been heard of for {LOST_AFTER_S:g} s", 1)
        doing = {beat.decode().partition(" ")[2] for beat in beats}
        if "moves" in doing:
            self._called_to_look = False
        elif "still" in doing and doing <= {"still", "done", "silent"} and not self._called_to_look:
            self._called_to_look = True
            self._tell("look", self.looks + 1)

    def _hear(self, kind: str, value: Any) -> None:
        with self._changed:
            if kind == "go":
                self.run_id = value["run_id"]
                self.members = [Member(**member) for member in value["members"]]
            elif kind == "port":
                self._ports[value[0]] = value[1]
            elif kind == "restart":
                self._attempt = max(self._attempt, value)
            elif kind == "ending":
                self._ending = self._ending or AbortReason(**value)
            elif kind == "verdict":
                self.verdicts[value[0]] = value[1]
            elif kind == "look":
                self.looks = value
            elif kind == "over":
                self._over = True
            self._changed.notify_all()

    def _lose(self, message: str) -> None:
        with self._changed:
            self.board.is_lost = True
            if not self._over:
                self._ending = self._ending or AbortReason(node=None, message=message, code=1)
            self._changed.notify_all()
