"""The order of the forwards and backwards of a step's micro-batches. Pure arithmetic.

One forward, one backward (1F1B with a flush; D. Narayanan et al., "Efficient Large-Scale Language Model Training on GPU
Clusters Using Megatron-LM", SC 2021) over the graph of modules: each stage waits for all that feed it, and its backward for
that of all that it feeds. The order results from a simulation of the step, in which a forward takes one unit of time and a
backward two, and a rank executes one at a time: backwards have priority, and no stage is further ahead of the loss than its
distance from it requires. All ranks compute the same order, and each action only waits for earlier ones, so there is no
deadlock.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from enum import Enum
from typing import NamedTuple

from mimo_role.errors import ScheduleError
from mimo_role.pipeline.stage_graph import StageGraph
from mimo_role.topology.stage_links import StageId


class Phase(Enum):
    """The direction of an action."""

    FORWARD = "forward"
    BACKWARD = "backward"


_DURATION = {Phase.FORWARD: 1, Phase.BACKWARD: 2}

SLACK = 1
"""Micro-batches that a stage may be ahead beyond its distance from the loss: one is transferred while another is computed."""


class Action(NamedTuple):
    """One run of a stage in one direction: of one micro-batch, or of several in a row."""

    phase: Phase
    at: StageId
    number: int
    """Of the run in the step, from 0; with one micro-batch per run, the micro-batch's."""


def timeline(
    graph: StageGraph,
    micro_batches: int,
    *,
    frozen: Collection[StageId] = (),
    backward: bool = True,
    slack: int = SLACK,
    per_run: Mapping[str, int] | None = None,
) -> list[Action]:
    """All actions of one step, in the order in which they begin.

    Args:
        graph: the stages of all modules.
        micro_batches: their number in the step.
        frozen: stages that have no backward; all that feed them are among them.
        backward: whether there are backwards.
        slack: micro-batches that a stage may be ahead beyond its distance from the loss.
        per_run: how many micro-batches a module's stages run at once, where it is not one; it divides `micro_batches`.

    Raises:
        ScheduleError: no micro-batches, or a negative slack.
    """
    if slack < 0:
        raise ScheduleError(f"slack={slack}: it is 0 or more")
    if micro_batches < 1:
        raise ScheduleError(f"{micro_batches} micro-batches; a step has at least one")
    sizes = {at: (per_run or {}).get(at.module, 1) for at in graph.after}
    return _Simulator(graph, micro_batches, frozen if backward else graph.after.keys(), slack, sizes).actions


class _Simulator:
    """A simulation of one step."""

    def __init__(
        self,
        graph: StageGraph,
        micro_batches: int,
        frozen: Collection[StageId],
        slack: int,
        per_run: Mapping[StageId, int],
    ) -> None:
        self._graph = graph
        self._count = micro_batches
        self._frozen = frozen
        self._limits = run_limits(graph, slack, per_run)
        self._per_run = per_run
        self._begun: defaultdict[tuple[Phase, StageId], int] = defaultdict(int)
        """Runs, as in the next."""
        self._done: defaultdict[tuple[Phase, StageId], int] = defaultdict(int)
        self._busy: defaultdict[StageId, int] = defaultdict(int)
        """The number of actions that run at a stage or at one that shares ranks with it."""
        self.actions: list[Action] = []
        running: list[tuple[int, int, Action]] = []
        now = 0
        total = sum(micro_batches // per_run[at] * (1 if at in frozen else 2) for at in graph.after)
        while len(self.actions) < total:
            while (action := self._next()) is not None:
                self._begun[action.phase, action.at] += 1
                self._occupy(action.at, 1)
                duration = _DURATION[action.phase] * per_run[action.at]
                heapq.heappush(running, (now + duration, len(self.actions), action))
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
            key=lambda action: (
                action.phase is Phase.FORWARD,
                action.number * self._per_run[action.at],
                self._graph.distance[action.at],
            ),
            default=None,
        )

    def _is_ready(self, phase: Phase, at: StageId) -> bool:
        number, after, per_run = self._begun[phase, at], self._graph.after[at], self._per_run[at]
        needed = (number + 1) * per_run
        if needed > self._count or (phase is Phase.BACKWARD and at in self._frozen):
            return False
        if phase is Phase.BACKWARD:
            is_forward_done = number < self._done[Phase.FORWARD, at]
            return is_forward_done and all(self._passed(Phase.BACKWARD, target) >= needed for target in after)
        if any(self._passed(Phase.FORWARD, before) < needed for before in self._graph.before[at]):
            return False
        return number - self._completed(at) < self._limits[at]

    def _passed(self, phase: Phase, at: StageId) -> int:
        """The number of micro-batches whose forward or backward a stage has done."""
        return self._done[phase, at] * self._per_run[at]

    def _completed(self, at: StageId) -> int:
        """The number of runs that a stage has completed: their backward, or without one, the next stages' forward."""
        after = self._graph.after[at]
        if at not in self._frozen:
            return self._done[Phase.BACKWARD, at]
        if not after:
            return self._begun[Phase.FORWARD, at]
        return min(self._passed(Phase.FORWARD, target) for target in after) // self._per_run[at]

    def _occupy(self, at: StageId, change: int) -> None:
        self._busy[at] += change
        for other in self._graph.sharing[at]:
            self._busy[other] += change


def run_limits(graph: StageGraph, slack: int, per_run: Mapping[StageId, int]) -> dict[StageId, int]:
    """The largest number of runs that each stage has begun and not completed.

    Enough for a later stage that runs more micro-batches at once.
    """
    limits = {}
    for at, after in graph.after.items():
        most_at_once = math.lcm(*(per_run[later] for later in graph.reached_from(after)))
        ahead = graph.distance[at] + (slack if after else 0) + most_at_once - 1
        limits[at] = 1 + -(-ahead // per_run[at])
    return limits
