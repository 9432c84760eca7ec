"""The order of the forwards and backwards of a step's micro-batches. Pure arithmetic.

One forward, one backward (1F1B with a flush; D. Narayanan et al., "Efficient Large-Scale Language Model Training on GPU
Clusters Using Megatron-LM", SC 2021) over the graph of modules: every encoder's stages lead to the language module's. The
order results from a simulation of the step, in which a forward takes one unit of time and a backward two, and a rank executes
one at a time: backwards have priority, and no stage is further ahead of the loss than its distance from it requires. All ranks
compute the same order, and each action only waits for earlier ones, so there is no deadlock.
"""

import heapq
from collections import defaultdict
from collections.abc import Collection
from enum import Enum
from typing import NamedTuple

from mimo_role.errors import ScheduleError
from mimo_role.pipeline.stage_graph import StageGraph, StageId
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY


class Phase(Enum):
    """The direction of an action."""

    FORWARD = "forward"
    BACKWARD = "backward"


_DURATION = {Phase.FORWARD: 1, Phase.BACKWARD: 2}

SLACK = 1
"""Micro-batches that a stage may be ahead beyond its distance from the loss: one is transferred while another is computed."""


class Action(NamedTuple):
    """One micro-batch at one stage, in one direction."""

    phase: Phase
    at: StageId
    micro_batch: int


def timeline(
    graph: StageGraph,
    micro_batches: int,
    *,
    frozen: Collection[str] = (),
    backward: bool = True,
    slack: int = SLACK,
) -> list[Action]:
    """All actions of one step, in the order in which they begin.

    Args:
        graph: the stages of all modules.
        micro_batches: their number in the step.
        frozen: modality modules that have no backward.
        backward: whether there are backwards.
        slack: micro-batches that a stage may be ahead beyond its distance from the loss.

    Raises:
        ScheduleError: no micro-batches, a negative slack, or a frozen module that is not a modality module.
    """
    if slack < 0:
        raise ScheduleError(f"slack={slack}: it is 0 or more")
    if micro_batches < 1:
        raise ScheduleError(f"{micro_batches} micro-batches; a step has at least one")
    modules = {at.module for at in graph.after} - {MIMO_LANGUAGE_MODULE_KEY}
    for name in frozen:
        if name not in modules:
            raise ScheduleError(f"frozen: {name!r} is not a modality module; there are {', '.join(sorted(modules)) or 'none'}")
    return _Simulator(graph, micro_batches, frozen if backward else {*modules, MIMO_LANGUAGE_MODULE_KEY}, slack).actions


class _Simulator:
    """A simulation of one step."""

    def __init__(self, graph: StageGraph, micro_batches: int, frozen: Collection[str], slack: int) -> None:
        self._graph = graph
        self._count = micro_batches
        self._frozen = frozen
        self._slack = slack
        self._begun: defaultdict[tuple[Phase, StageId], int] = defaultdict(int)
        self._done: defaultdict[tuple[Phase, StageId], int] = defaultdict(int)
        self._busy: defaultdict[StageId, int] = defaultdict(int)
        """The number of actions that run at a stage or at one that shares ranks with it."""
        self.actions: list[Action] = []
        running: list[tuple[int, int, Action]] = []
        now = 0
        total = sum(micro_batches * (1 if at.module in frozen else 2) for at in graph.after)
        while len(self.actions) < total:
            while (action := self._next()) is not None:
                self._begun[action.phase, action.at] += 1
                self._occupy(action.at, 1)
                heapq.heappush(running, (now + _DURATION[action.phase], len(self.actions), action))
                self.actions.append(action)
            now = running[0][0]
            while running and running[0][0] == now:
                ended = heapq.heappop(running)[2]
                self._done[ended.phase, ended.at] += 1
                self._occupy(ended.at, -1)

    def _next(self) -> Action | None:
        """The action that begins now: a backward before a forward, the oldest micro-batch, the stage nearest to the loss."""
        ready = [
            Action(phase, at, self._begun[phase, at])
            for at in self._graph.after
            if not self._busy[at]
            for phase in Phase
            if self._is_ready(phase, at)
        ]
        return min(
            ready,
            key=lambda action: (action.phase is Phase.FORWARD, action.micro_batch, self._graph.distance[action.at]),
            default=None,
        )

    def _is_ready(self, phase: Phase, at: StageId) -> bool:
        number, after = self._begun[phase, at], self._graph.after[at]
        if number == self._count or (phase is Phase.BACKWARD and at.module in self._frozen):
            return False
        if phase is Phase.BACKWARD:
            return number < self._done[Phase.FORWARD, at] and (after is None or number < self._done[Phase.BACKWARD, after])
        if any(self._done[Phase.FORWARD, before] <= number for before in self._graph.before[at]):
            return False
        return number - self._completed(at) <= self._graph.distance[at] + (self._slack if after is not None else 0)

    def _completed(self, at: StageId) -> int:
        """The number of micro-batches that a stage has completed: their backward, or without one, the next stage's forward."""
        after = self._graph.after[at]
        if at.module not in self._frozen:
            return self._done[Phase.BACKWARD, at]
        return self._begun[Phase.FORWARD, at] if after is None else self._done[Phase.FORWARD, after]

    def _occupy(self, at: StageId, change: int) -> None:
        self._busy[at] += change
        for other in self._graph.sharing[at]:
            self._busy[other] += change
