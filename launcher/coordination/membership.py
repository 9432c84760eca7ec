"""How the nodes of a job come together: all are there, each once, and all with the same plan."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict

from launcher.console import Say
from launcher.coordination.event_log import Event, EventLog
from launcher.coordination.member import Member
from launcher.coordination.store import WAITING_MESSAGE_AFTER_S
from launcher.errors import LaunchError
from launcher.exit_code import ExitCode
from launcher.formatting import listed
from launcher.outcome import AbortReason

FAREWELL_S = 10.0
"""How long node 0 waits for the others: until they have read why the job ends, and until they have left."""
_POLL_S = 0.05
_LEFT_POLL_S = 0.02
_POLLS_PER_S = 20_000
"""How often a second node 0 looks for nodes, all of them together."""


class Membership:
    """One agent's membership in a job of several nodes.

    In the store, `node/I` is the member with this index; `came` and `left` are the numbers of those that have.
    """

    def __init__(self, log: EventLog, me: Member, names: Sequence[str], timeout_s: float, deadline: float) -> None:
        """
        Args:
            log: the job's events.
            me: this node.
            names: the plan's names of all nodes.
            timeout_s: how long the nodes wait for each other.
            deadline: until when, by `time.monotonic()`.
        """
        self._log = log
        self._store = log.store
        self._state = log.state
        self._names = names
        self._timeout_s = timeout_s
        self._deadline = deadline
        self.me = me
        self.is_member = False
        """Whether this agent has joined, and is not a second one with another's node rank."""

    def join(self) -> None:
        """Take this node's place.

        Raises:
            LaunchError: another agent has it.
        """
        mine = json.dumps(asdict(self.me))
        found = self._store.tcp.compare_set(f"node/{self.me.node}", "", mine).decode()
        if found != mine:
            other = Member(**json.loads(found))
            message = (
                f"two nodes have node rank {self.me.node}: process {other.pid} on {other.host}, and process {self.me.pid} on "
                f"{self.me.host}"
            )
            if self._log.is_empty:
                self._abort(message)
            raise LaunchError(message)
        self._store.tcp.add("came", 1)
        self.is_member = True

    def wait_for_all(self, run_id: str, say: Say) -> None:
        """Wait until all nodes are there with the same plan. Node 0 compares them; its `run_id` holds for all.

        Raises:
            LaunchError: a node is missing, or has another plan.
        """
        if self.me.node == 0:
            members = self._gather(say)
            self._log.append(Event.MEET, {"run_id": run_id, "members": [asdict(member) for member in members]})
        # Node 0 has the same deadline, and needs some time to name those that are missing.
        left_s = self._deadline + FAREWELL_S - time.monotonic()
        self._state.wait_until(lambda: bool(self._state.members) or self._state.is_over, left_s)
        if not self._state.members:
            self._raise_if_aborted()
            raise LaunchError(f"{self._store.owner} did not start the job within {self._timeout_s + FAREWELL_S:g} s")

    def leave(self, timeout_s: float) -> None:
        """Leave the job. Node 0 keeps the store until the others have left, for a limited time."""
        if not self.is_member:
            return
        left = self._store.ask(lambda: self._store.tcp.add("left", 1))
        deadline = time.monotonic() + timeout_s + FAREWELL_S
        while self.me.node == 0 and left is not None and left < self._store.tcp.add("came", 0) and time.monotonic() < deadline:
            time.sleep(_LEFT_POLL_S)
            left = self._store.tcp.add("left", 0)

    def _gather(self, say: Say) -> list[Member]:
        """On node 0: all members, once they are there."""
        found: dict[int, Member] = {0: self.me}
        began, printed_after_s = time.monotonic(), 0.0
        while missing := [node for node in range(len(self._names)) if node not in found]:
            for node in missing:
                if self._store.tcp.check([f"node/{node}"]):
                    found[node] = Member(**json.loads(self._store.tcp.get(f"node/{node}")))
                    self._compare(found[node], say)
            self._raise_if_aborted()
            names = listed([self._names[node] for node in missing if node not in found])
            waited = time.monotonic() - began
            if names and time.monotonic() > self._deadline:
                here = f"{len(found)} of {len(self._names)} nodes are here"
                raise LaunchError(self._abort(f"{names} did not come within {self._timeout_s:g} s ({here})"))
            if names and waited > max(WAITING_MESSAGE_AFTER_S, 2 * printed_after_s):
                say(f"waiting for {len(self._names) - len(found)} of {len(self._names)} nodes: {names}")
                printed_after_s = waited
            if names:
                time.sleep(max(_POLL_S, len(self._names) / _POLLS_PER_S))
        return [found[node] for node in range(len(self._names))]

    def _compare(self, member: Member, say: Say) -> None:
        if (difference := member.plan_difference(self.me)) is not None:
            raise LaunchError(self._abort(difference))
        # It has introduced itself a moment ago.
        if (difference := member.clock_difference(self.me, time.time())) is not None:
            say(f"warning (clocks): {difference}")

    def _abort(self, message: str) -> str:
        self._log.abort(AbortReason(node=self.me.node, message=message, code=ExitCode.USER_ERROR))
        return message

    def _raise_if_aborted(self) -> None:
        if self._state.abort_reason is not None:
            raise LaunchError(self._state.abort_reason.message)
