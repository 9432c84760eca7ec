"""The ranks of a start as they arrive, counted per module by node 0's agent, and its verdict on whether they fit together."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from torch.distributed import DistError, Store  # type: ignore[attr-defined]

from launcher.failures.problem import STALLED, Problem
from launcher.plan import LaunchPlan
from launcher.preflight.compare import compare
from launcher.preflight.facts import ARRIVED, GO, STOP, VERDICT, Facts, facts_key
from launcher.schema import Backend
from mimo_role import Topology

_LOOK_S = 0.01
_SAY_AFTER_S = 5.0
_SHOWN = 8
_USER_ERROR = 2

Say = Callable[[str], None]
End = Callable[[str, int], object]


class Arrivals:
    """Looks out for the ranks of one start, in a thread, until all are there or `stop()` is called."""

    def __init__(
        self, store: Store, plan: LaunchPlan, hosts: Sequence[str], *, compares: bool, say: Say, end: End | None = None
    ) -> None:
        """
        Args:
            store: the start's, in which the ranks arrive.
            plan: the job's.
            hosts: those of the plan's nodes.
            compares: whether the ranks wait for the verdict.
            say: is told who is missing, after a while.
            end: tells the other nodes why the job ends, before ranks do.
        """
        self._store = store
        self._plan = plan
        self._hosts = hosts
        self._compares = compares
        self._say = say
        self._end = end
        self._stopped = threading.Event()
        self.problem: Problem | None = None
        """Why the job cannot go on."""
        self._thread = threading.Thread(target=self._run, name="mimo-launch arrivals", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no longer."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        with suppress(DistError):  # the store goes with the start
            if self._wait_for_all() and self._compares:
                self._judge()

    def _fail(self, problem: Problem) -> None:
        self.problem = problem
        if self._end is not None:
            self._end(problem.headline, problem.code)

    def _wait_for_all(self) -> bool:
        world_size = self._plan.topology.world_size
        began, said = time.monotonic(), 0.0
        while self._store.add(ARRIVED, 0) < world_size:
            waited = time.monotonic() - began
            if waited > self._plan.timeout_s:
                told = (
                    f"{self._named(self._missing())} did not come to join within {self._plan.timeout_s:g} s, runtime.timeout_s"
                )
                self._fail(Problem(told, STALLED))
                return False
            if waited > max(_SAY_AFTER_S, 2 * said) and (missing := self._missing()):
                self._say(f"waiting for {len(missing)} of {world_size} ranks: {self._named(missing)}")
                said = waited
            if self._stopped.wait(_LOOK_S):
                return False
        return True

    def _missing(self) -> list[int]:
        return [rank for rank in range(self._plan.topology.world_size) if not self._store.check([facts_key(rank)])]

    def _named(self, missing: list[int]) -> str:
        topology = self._plan.topology
        named = [f"r{rank} {topology.label_of(rank)} on {self._place_of(rank)}" for rank in missing[:_SHOWN]]
        more = [f"and {len(missing) - _SHOWN} more"] if len(missing) > _SHOWN else []
        return f"{', '.join(named + more)} ({_counted(topology, set(missing))})"

    def _place_of(self, rank: int) -> str:
        number = next(number for number, node in enumerate(self._plan.nodes) if rank in node.ranks)
        return f"{self._plan.nodes[number].name} ({self._hosts[number]})"

    def _judge(self) -> None:
        texts = self._store.multi_get([facts_key(rank) for rank in range(self._plan.topology.world_size)])
        facts = [Facts.from_json(text) for text in texts]
        verdict = compare(facts, needs_gpus=self._plan.backend is not Backend.GLOO and any(fact.gpus for fact in facts))
        if verdict.odd:
            text = verdict.text(self._plan.topology, facts)
            if verdict.stops:
                self._fail(Problem(text, _USER_ERROR))
            else:
                self._say(f"warning: {text}")
        self._store.set(VERDICT, STOP if verdict.stops else GO)


def _counted(topology: Topology, missing: set[int]) -> str:
    """How many are there of each module."""
    return ", ".join(
        f"{name}: {grid.size - len(missing & set(grid.ranks))} of {grid.size} are here" for name, grid in topology.grids.items()
    )
