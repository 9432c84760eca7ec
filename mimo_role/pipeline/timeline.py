"""In which order each rank takes the micro-batches of a step forward and back. Pure arithmetic.

One forward, one backward (1F1B with a flush; D. Narayanan et al., "Efficient Large-Scale Language Model Training on GPU
Clusters Using Megatron-LM", SC 2021) over the graph of modules: every encoder's stages lead to the language module's. The
order comes from playing the step through once, each forward taking one unit of time and each backward two, no rank doing
two things at once: a backward goes first, and no stage is further ahead of the loss than its distance from it asks for.
All ranks compute the same order, and what waits for something waits for what begins earlier in it, so no set of ranks can
wait for each other for ever.
"""

import heapq
from collections import defaultdict
from collections.abc import Collection
from enum import Enum
from itertools import combinations
from typing import NamedTuple

from mimo_role.errors import ScheduleError
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY
from mimo_role.topology.topology import Topology


class Phase(Enum):
    """The direction in which a micro-batch passes a stage."""

    FORWARD = "forward"
    BACKWARD = "backward"


_DURATION = {Phase.FORWARD: 1, Phase.BACKWARD: 2}

SLACK = 1
"""Micro-batches that a stage may be ahead beyond its distance from the loss: one is on its way while another is computed."""


class StageId(NamedTuple):
    """One stage of one module."""

    module: str
    stage: int

    def __str__(self) -> str:
        return f"{self.module} stage {self.stage}"


class Action(NamedTuple):
    """One micro-batch at one stage, in one direction."""

    phase: Phase
    at: StageId
    micro_batch: int


class Graph:
    """The stages of all modules, who feeds whom, and who shares ranks."""

    def __init__(self, topology: Topology) -> None:
        self.after: dict[StageId, StageId | None] = {}
        """The stage that each one feeds; `None` for the one that computes the loss."""
        self.before: defaultdict[StageId, list[StageId]] = defaultdict(list)
        self.ranks: dict[StageId, frozenset[int]] = {}
        for module, grid in topology.grids.items():
            last = grid.axis_size("pp") - 1
            for stage in range(last + 1):
                at = StageId(module, stage)
                if stage < last:
                    self.after[at] = StageId(module, stage + 1)
                else:
                    self.after[at] = None if module == MIMO_LANGUAGE_MODULE_KEY else StageId(MIMO_LANGUAGE_MODULE_KEY, 0)
                self.ranks[at] = frozenset(rank for rank in grid.ranks if grid.coords(rank)["pp"] == stage)
        for at, after in self.after.items():
            if after is not None:
                self.before[after].append(at)
        self.distance = {at: self._distance(at) for at in self.after}
        self.sharing: defaultdict[StageId, set[StageId]] = defaultdict(set)
        for one, other in combinations(self.ranks, 2):
            if self.ranks[one] & self.ranks[other]:
                self.sharing[one].add(other)
                self.sharing[other].add(one)

    def of_rank(self, rank: int) -> list[StageId]:
        """The stages that a rank runs."""
        return [at for at, ranks in self.ranks.items() if rank in ranks]

    def _distance(self, at: StageId) -> int:
        after = self.after[at]
        return 0 if after is None else 1 + self._distance(after)


def timeline(
    graph: Graph,
    micro_batches: int,
    *,
    frozen: Collection[str] = (),
    backward: bool = True,
    slack: int = SLACK,
) -> list[Action]:
    """All actions of one step, in the order in which they begin.

    Args:
        graph: of the world's stages.
        micro_batches: how many the step has.
        frozen: modality modules that go forward only.
        backward: whether there is a way back at all.
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
            raise ScheduleError(f"frozen: {name!r} is no modality module; there are {', '.join(sorted(modules)) or 'none'}")
    return _Play(graph, micro_batches, frozen if backward else {*modules, MIMO_LANGUAGE_MODULE_KEY}, slack).actions


class _Play:
    """The step played through."""

    def __init__(self, graph: Graph, micro_batches: int, frozen: Collection[str], slack: int) -> None:
        self._graph = graph
        self._count = micro_batches
        self._frozen = frozen
        self._slack = slack
        self._begun: defaultdict[tuple[Phase, StageId], int] = defaultdict(int)
        self._done: defaultdict[tuple[Phase, StageId], int] = defaultdict(int)
        self._busy: defaultdict[StageId, int] = defaultdict(int)
        """How many actions run at a stage or at one that shares ranks with it."""
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
        """What should begin now: a backward before a forward, the oldest micro-batch, the stage nearest to the loss."""
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
        return number - self._left(at) <= self._graph.distance[at] + (self._slack if after is not None else 0)

    def _left(self, at: StageId) -> int:
        """How many micro-batches this stage is rid of: taken back, or where nothing comes back, passed on."""
        after = self._graph.after[at]
        if at.module not in self._frozen:
            return self._done[Phase.BACKWARD, at]
        return self._begun[Phase.FORWARD, at] if after is None else self._done[Phase.FORWARD, after]

    def _occupy(self, at: StageId, change: int) -> None:
        self._busy[at] += change
        for other in self._graph.sharing[at]:
            self._busy[other] += change
