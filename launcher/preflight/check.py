"""The preflight check of an attempt: all ranks are there, and fit together.

Each agent finds its own node's ranks in the node directory, and posts their facts: `facts/ATTEMPT/NODE` in the store, and in
`arrived/ATTEMPT` the number of ranks that are there, on all nodes. Node 0's agent names those that are missing, compares all,
and sends the verdict to the others.
"""

import threading
import time
from pathlib import Path

from launcher.config.schema import Backend
from launcher.console import Say
from launcher.coordination.nodes import Nodes
from launcher.exit_code import ExitCode
from launcher.formatting import listed
from launcher.outcome import AbortReason
from launcher.plan.launch_plan import LaunchPlan
from launcher.preflight.compare import compare
from launcher.preflight.facts import GO, STOP, Facts, read_facts, write_verdict
from mimo_role import Topology

_POLL_S = 0.005
_WAITING_MESSAGE_AFTER_S = 5.0


class PreflightCheck:
    """Waits for the ranks of one attempt, in a thread, until there is a verdict or `stop()` is called."""

    def __init__(self, plan: LaunchPlan, attempt: int, node_dir: Path, nodes: Nodes, say: Say) -> None:
        """
        Args:
            plan: the job's.
            attempt: its number.
            node_dir: of this node.
            nodes: all nodes.
            say: prints which ranks are missing, after a while.
        """
        self._plan = plan
        self._attempt = attempt
        self._node_dir = node_dir
        self._nodes = nodes
        self._say = say
        self._facts: dict[int, Facts] = {}
        """Of this node's ranks."""
        self._is_stopped = threading.Event()
        self.failure: AbortReason | None = None
        """Why the job is aborted; found by node 0's agent."""
        self._thread = threading.Thread(target=self._run, name="mimo-launch preflight", daemon=True)

    def start(self) -> None:
        """Start waiting."""
        self._thread.start()

    def stop(self) -> None:
        """Stop waiting."""
        self._is_stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            verdict = self._lead() if self._nodes.node_rank == 0 else self._follow()
            if verdict is not None:
                write_verdict(self._node_dir, verdict)
        except (OSError, TypeError) as error:  # a full directory, or facts of another version's form
            self._fail(f"{self._nodes.member.host}: the ranks cannot be compared: {error}", ExitCode.FAILURE)

    def _lead(self) -> str | None:
        """On node 0: wait for all ranks, compare them, and send the verdict."""
        world_size = self._plan.topology.world_size
        began, printed_after_s = time.monotonic(), 0.0
        while self._count() < world_size:
            waited = time.monotonic() - began
            if waited > self._plan.runtime.timeout_s:
                limit = f"{self._plan.runtime.timeout_s:g} s, runtime.timeout_s"
                self._fail(f"{self._describe(self._missing())} did not come to join within {limit}", ExitCode.STALLED)
                return None
            if waited > max(_WAITING_MESSAGE_AFTER_S, 2 * printed_after_s) and (missing := self._missing()):
                self._say(f"waiting for {len(missing)} of {world_size} ranks: {self._describe(missing)}")
                printed_after_s = waited
            if self._is_stopped.wait(self._nodes.poll_s):
                return None
        verdict = self._compare() if self._plan.preflight else GO
        self._nodes.send_verdict(self._attempt, verdict)
        return verdict

    def _follow(self) -> str | None:
        """On other nodes: post the facts of this node's ranks as they arrive, and wait for the verdict."""
        while (verdict := self._nodes.state.verdicts.get(self._attempt)) is None:
            if len(self._facts) < len(self._own_ranks):
                self._post_new()
            if self._is_stopped.wait(_POLL_S):
                return None
        return verdict

    @property
    def _own_ranks(self) -> range:
        return self._plan.nodes[self._nodes.node_rank].ranks

    def _post_new(self) -> None:
        """Find ranks of this node that have arrived, and post their facts for node 0."""
        new = {
            rank: facts
            for rank in self._own_ranks
            if rank not in self._facts and (facts := read_facts(self._node_dir, rank)) is not None
        }
        self._facts |= new
        if new:
            texts = [facts.to_json() for facts in self._facts.values()]
            self._nodes.store.put(f"facts/{self._attempt}/{self._nodes.node_rank}", texts)
            self._nodes.store.count(f"arrived/{self._attempt}", len(new))

    def _count(self) -> int:
        """How many ranks are there, on all nodes."""
        self._post_new()
        return self._nodes.store.count(f"arrived/{self._attempt}", 0)

    def _all(self) -> list[Facts]:
        """The facts of all ranks that are there."""
        found = [self._nodes.store.find(f"facts/{self._attempt}/{node}") or [] for node in range(len(self._plan.nodes))]
        return [Facts.from_json(text) for texts in found for text in texts]

    def _missing(self) -> list[int]:
        here = {facts.rank for facts in self._all()}
        return [rank for rank in range(self._plan.topology.world_size) if rank not in here]

    def _fail(self, message: str, code: int) -> None:
        reason = AbortReason(node=self._nodes.node_rank, message=message, code=code)
        # First, as the agent reads it as soon as the job is aborted.
        self.failure = reason
        self._nodes.abort(reason)

    def _describe(self, missing: list[int]) -> str:
        topology = self._plan.topology
        names = [f"r{rank} {topology.label_of(rank)} on {self._node_of(rank)}" for rank in missing]
        return f"{listed(names)} ({_count_by_module(topology, set(missing))})"

    def _node_of(self, rank: int) -> str:
        number = next(number for number, node in enumerate(self._plan.nodes) if rank in node.ranks)
        return str(self._nodes.state.members[number])

    def _compare(self) -> str:
        facts = sorted(self._all(), key=lambda facts: facts.rank)
        verdict = compare(facts, needs_gpus=self._plan.runtime.backend is not Backend.GLOO and any(fact.gpus for fact in facts))
        if verdict.mismatches:
            text = verdict.text(self._plan.topology, facts)
            if verdict.stops:
                self._fail(text, ExitCode.USER_ERROR)
            else:
                self._say(f"warning: {text}")
        return STOP if verdict.stops else GO


def _count_by_module(topology: Topology, missing: set[int]) -> str:
    """How many ranks of each module are there."""
    return ", ".join(
        f"{name}: {grid.size - len(missing & set(grid.ranks))} of {grid.size} are here" for name, grid in topology.grids.items()
    )
