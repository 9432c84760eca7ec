"""The ranks of a start as they arrive, counted per module, and the verdict on whether they fit together.

Each agent sees its own node's ranks come, in the node's folder. Where there are several, each posts their facts in the control
store (`facts/ATTEMPT/NODE`, and `arrived/ATTEMPT`, the number of ranks that have come on all nodes); node 0's agent names those
that are missing, compares all, and tells the others its verdict.
"""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.config.schema import Backend
from launcher.console import Say
from launcher.coordination.coordinator import Coordinator
from launcher.outcome import ExitCode, Problem
from launcher.plan.launch_plan import LaunchPlan
from launcher.preflight.compare import compare
from launcher.preflight.facts import GO, STOP, Facts, let_go, read_facts
from mimo_role import Topology

_LOOK_S = 0.005
_LOOK_FAR_S = 0.05
_SAY_AFTER_S = 5.0
_SHOWN = 8
_FAILED, _USER_ERROR = 1, 2


class PreflightCheck:
    """Looks out for the ranks of one start, in a thread, until the verdict is there or `stop()` is called."""

    def __init__(
        self,
        plan: LaunchPlan,
        node: int,
        attempt: int,
        folder: Path,
        hosts: Sequence[str],
        control: Coordinator | None,
        say: Say,
    ) -> None:
        """
        Args:
            plan: the job's.
            node: this one's index.
            attempt: which start of the ranks it is.
            folder: the one that this node's ranks share with their agent.
            hosts: those of the plan's nodes.
            control: the line to the other agents, if there are any.
            say: is told who is missing, after a while.
        """
        self._plan = plan
        self._node = node
        self._attempt = attempt
        self._folder = folder
        self._hosts = hosts
        self._control = control
        self._say = say
        self._here: dict[int, Facts] = {}
        """Of this node's ranks."""
        self._stopped = threading.Event()
        self.problem: Problem | None = None
        """Why the job cannot go on; node 0's agent finds out."""
        self._thread = threading.Thread(target=self._run, name="mimo-launch arrivals", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no longer."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            verdict = self._lead() if self._node == 0 else self._follow()
            if verdict is not None:
                let_go(self._folder, verdict)
        except (OSError, TypeError) as error:  # a full folder, or facts of another version's form
            self._fail(Problem(f"{self._hosts[self._node]}: the ranks cannot be compared: {error}", _FAILED))

    def _lead(self) -> str | None:
        """Node 0: wait for all, compare them, and tell the others."""
        world_size = self._plan.topology.world_size
        began, said = time.monotonic(), 0.0
        while self._count() < world_size:
            waited = time.monotonic() - began
            if waited > self._plan.runtime.timeout_s:
                named = self._named(self._missing())
                limit = f"{self._plan.runtime.timeout_s:g} s, runtime.timeout_s"
                self._fail(Problem(f"{named} did not come to join within {limit}", ExitCode.STALLED))
                return None
            if waited > max(_SAY_AFTER_S, 2 * said) and (missing := self._missing()):
                self._say(f"waiting for {len(missing)} of {world_size} ranks: {self._named(missing)}")
                said = waited
            if self._stopped.wait(_LOOK_S if self._control is None else _LOOK_FAR_S):
                return None
        verdict = self._judge() if self._plan.preflight else GO
        if self._control is not None:
            self._control.tell_verdict(self._attempt, verdict)
        return verdict

    def _follow(self) -> str | None:
        """Another node: post this one's ranks as they come, and wait for the verdict."""
        assert self._control is not None
        while (verdict := self._control.verdicts.get(self._attempt)) is None:
            if len(self._here) < len(self._own_ranks):
                self._look_here()
            if self._stopped.wait(_LOOK_S):
                return None
        return verdict

    @property
    def _own_ranks(self) -> range:
        return self._plan.nodes[self._node].ranks

    def _look_here(self) -> None:
        """See which of this node's ranks have come, and tell node 0."""
        new = {
            rank: facts
            for rank in self._own_ranks
            if rank not in self._here and (facts := read_facts(self._folder, rank)) is not None
        }
        self._here |= new
        if new and self._control is not None:
            texts = [facts.to_json() for facts in self._here.values()]
            self._control.board.put(f"facts/{self._attempt}/{self._node}", texts)
            self._control.board.count(f"arrived/{self._attempt}", len(new))

    def _count(self) -> int:
        """How many ranks have come."""
        self._look_here()
        return len(self._here) if self._control is None else self._control.board.count(f"arrived/{self._attempt}", 0)

    def _all(self) -> list[Facts]:
        """The facts of all ranks that have come."""
        if self._control is None:
            return list(self._here.values())
        found = [self._control.board.find(f"facts/{self._attempt}/{node}") or [] for node in range(len(self._plan.nodes))]
        return [Facts.from_json(text) for texts in found for text in texts]

    def _missing(self) -> list[int]:
        here = {facts.rank for facts in self._all()}
        return [rank for rank in range(self._plan.topology.world_size) if rank not in here]

    def _fail(self, problem: Problem) -> None:
        # The agent looks at it as soon as it hears that the job ends.
        self.problem = problem
        if self._control is not None:
            self._control.end(problem.headline, problem.code)

    def _named(self, missing: list[int]) -> str:
        topology = self._plan.topology
        named = [f"r{rank} {topology.label_of(rank)} on {self._place_of(rank)}" for rank in missing[:_SHOWN]]
        more = [f"and {len(missing) - _SHOWN} more"] if len(missing) > _SHOWN else []
        return f"{', '.join(named + more)} ({_counted(topology, set(missing))})"

    def _place_of(self, rank: int) -> str:
        number = next(number for number, node in enumerate(self._plan.nodes) if rank in node.ranks)
        return f"{self._plan.nodes[number].name} ({self._hosts[number]})"

    def _judge(self) -> str:
        facts = sorted(self._all(), key=lambda facts: facts.rank)
        verdict = compare(facts, needs_gpus=self._plan.runtime.backend is not Backend.GLOO and any(fact.gpus for fact in facts))
        if verdict.odd:
            text = verdict.text(self._plan.topology, facts)
            if verdict.stops:
                self._fail(Problem(text, _USER_ERROR))
            else:
                self._say(f"warning: {text}")
        return STOP if verdict.stops else GO


def _counted(topology: Topology, missing: set[int]) -> str:
    """How many are there of each module."""
    return ", ".join(
        f"{name}: {grid.size - len(missing & set(grid.ranks))} of {grid.size} are here" for name, grid in topology.grids.items()
    )
