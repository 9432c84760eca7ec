"""Plays the steps of a layout: when each forward and backward begins and ends, given what each of them takes. Pure.

The order of a rank's actions, and what it receives before which of them, are those that `Schedule1F1B` executes:
`mimo_role.pipeline.timeline` and `mimo_role.pipeline.receive_order`. Ranks that run the same stages are played as one.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from mimo_role.pipeline.receive_order import (
    ACTIONS_AHEAD,
    Receive,
    receives_ahead,
    receives_of,
    receives_when_sent,
)
from mimo_role.pipeline.stage_graph import StageGraph
from mimo_role.pipeline.timeline import SLACK, Action, Phase, run_limits, timeline
from mimo_role.topology.stage_links import StageId, StageLink

Stages = frozenset[StageId]
"""The stages of one rank."""

_STEPS = 8
"""Played where steps overlap; the second half is taken for the steady state."""


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """What a step of the schedule consists of, beside its stages."""

    micro_batches: int
    backward: bool = True
    frozen: frozenset[StageId] = frozenset()
    """Stages without a backward."""
    per_run: Mapping[str, int] = field(default_factory=dict)
    """Micro-batches that a module's stages run at once, where it is not one."""
    slack: int = SLACK
    receives_are_kernels: bool = False
    """As on a CUDA device: a receive is posted when its message has been sent, instead of some actions ahead."""


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What the runs of one stage take, in seconds: computation, and handing over what they send."""

    forward_s: float
    backward_s: float
    last_backward_s: float
    """Of the last run of a step, in which data-parallel wrappers may reduce."""
    overhead_s: float = 0.0
    """Between two actions of a rank."""

    def of(self, action: Action, runs: int) -> float:
        """What one action takes, of so many in a step."""
        if action.phase is Phase.FORWARD:
            return self.forward_s
        return self.last_backward_s if action.number == runs - 1 else self.backward_s


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What the parts of a step take in one layout, in seconds."""

    stages: Mapping[StageId, StageCost]
    messages: Mapping[tuple[StageLink, Phase], float]
    """From when one side has sent and the other has posted its receive, until the message is there."""
    rests: Mapping[str, float]
    """By module: from the end of the schedule to the next step. Where all ranks meet there, the same for all."""
    meets: bool
    """Whether all ranks wait for each other between steps."""


class Program:
    """The actions of a step in one pipeline: their order, their inputs, and when receives are posted."""

    def __init__(self, graph: StageGraph, shape: StepShape) -> None:
        self.graph = graph
        self.shape = shape
        self.per_run = {at: shape.per_run.get(at.module, 1) for at in graph.after}
        self.runs = {at: shape.micro_batches // size for at, size in self.per_run.items()}
        self.limits = run_limits(graph, shape.slack, self.per_run)
        self.trained = frozenset(at for at in graph.after if shape.backward and at not in shape.frozen)
        self.actions = timeline(
            graph,
            shape.micro_batches,
            frozen=shape.frozen,
            backward=shape.backward,
            slack=shape.slack,
            per_run=shape.per_run,
        )
        self.ranks = ranks_with_equal_stages(graph)
        self.posted: dict[Stages, dict[Action, list[Receive]]] = {}
        """By rank and action, the receives that are posted before it."""
        self.inputs: dict[tuple[Stages, Action], list[Receive]] = {}
        self.receivers: defaultdict[Action, list[tuple[Stages, Action]]] = defaultdict(list)
        """Of what an action sends."""
        for rank in self.ranks:
            self._add_receives(rank)

    @cached_property
    def ranks_of(self) -> dict[StageId, list[Stages]]:
        """The ranks that run each stage."""
        return {at: [rank for rank in self.ranks if at in rank] for at in self.graph.after}

    def own(self, rank: Collection[StageId]) -> list[Action]:
        """The actions of one rank, in their order."""
        return [action for action in self.actions if action.at in rank]

    def _add_receives(self, rank: Stages) -> None:
        own = self.own(rank)
        receives = {action: list(receives_of(action, self.graph, rank, self.trained, self.per_run)) for action in own}
        if self.shape.receives_are_kernels:
            posted = receives_when_sent(receives, own, self.actions)
        else:
            posted = receives_ahead(receives, own, ACTIONS_AHEAD)
        self.posted[rank] = dict(zip(own, posted, strict=True))
        for action, found in receives.items():
            self.inputs[rank, action] = found
            for receive in found:
                self.receivers[receive.sender].append((rank, action))


def ranks_with_equal_stages(graph: StageGraph) -> list[Stages]:
    """The different sets of stages that ranks run."""
    by_rank: defaultdict[int, set[StageId]] = defaultdict(set)
    for at, ranks in graph.ranks.items():
        for rank in ranks:
            by_rank[rank].add(at)
    return list(dict.fromkeys(frozenset(stages) for stages in by_rank.values()))


def step_time(program: Program, costs: Costs) -> float:
    """The time of one of many steps, in seconds."""
    player = _Player(program, costs)
    if costs.meets:
        return player.play_step() + max(costs.rests.values(), default=0.0)
    ends = [player.play_step() for _ in range(_STEPS)]
    half = _STEPS // 2
    return (ends[-1] - ends[half - 1]) / half


class _Player:
    """The clocks of all ranks over several steps."""

    def __init__(self, program: Program, costs: Costs) -> None:
        self._program = program
        self._costs = costs
        self._free = dict.fromkeys(program.ranks, 0.0)
        """When each rank has ended what it has begun."""

    def play_step(self) -> float:
        """Play one more step.

        Returns:
            When its schedule has ended on all ranks.
        """
        step = _Step(self._program, self._costs, self._free)
        for action in self._program.actions:
            for rank in self._program.ranks_of[action.at]:
                step.execute(rank, action)
        step.finish()
        end = max(self._free.values())
        for rank in self._free:
            rest = max(self._costs.rests.get(at.module, 0.0) for at in rank)
            self._free[rank] = (end if self._costs.meets else self._free[rank]) + rest
        return end


class _Step:
    """The clocks within one step."""

    def __init__(self, program: Program, costs: Costs, free: dict[Stages, float]) -> None:
        self._program = program
        self._costs = costs
        self._free = free
        self._begun: set[Stages] = set()
        self._posted: dict[tuple[Stages, Receive], float] = {}
        self._sent: defaultdict[Action, float] = defaultdict(float)
        """When the last rank has sent what an action sends."""

    def execute(self, rank: Stages, action: Action) -> None:
        """Play one action of one rank, all of whose inputs have been played."""
        program, cost = self._program, self._costs.stages[action.at]
        for receive in program.posted[rank][action]:
            self._posted[rank, receive] = self._free[rank]
        begin = self._free[rank] + (cost.overhead_s if rank in self._begun else 0.0)
        self._begun.add(rank)
        begin = max([begin, *(self._arrival(rank, receive) for receive in program.inputs[rank, action])])
        end = begin + cost.of(action, program.runs[action.at])
        self._sent[action] = max(self._sent[action], end)
        if action.phase is Phase.FORWARD and action.at not in program.trained:
            earlier = action._replace(number=action.number - program.limits[action.at])
            end = max(end, self._received(earlier))
        self._free[rank] = end

    def finish(self) -> None:
        """Let each rank wait until all that it has sent is received."""
        for action in self._program.actions:
            received = self._received(action)
            for rank in self._program.ranks_of[action.at]:
                self._free[rank] = max(self._free[rank], received)

    def _arrival(self, rank: Stages, receive: Receive) -> float:
        sender, receiver = receive.sender.at, receive.receiver.at
        phase = receive.receiver.phase
        link = StageLink(sender, receiver) if phase is Phase.FORWARD else StageLink(receiver, sender)
        there = max(self._sent[receive.sender], self._posted.get((rank, receive), 0.0))
        return there + self._costs.messages.get((link, phase), 0.0)

    def _received(self, action: Action) -> float:
        """When all that an action sends has been received; 0 for one that has sent nothing."""
        if action.number < 0:
            return 0.0
        return max(
            (self._arrival(rank, Receive(receiver, action)) for rank, receiver in self._program.receivers.get(action, ())),
            default=0.0,
        )


def least_step_time(graph: StageGraph, shape: StepShape, costs: Costs) -> float:
    """A lower bound of `step_time`, without playing the step.

    A rank is busy with all runs of its stages. Where ranks meet between steps, it also waits at first for one forward of each
    stage before, and at the end for one backward of each of them: the fill and the flush of a pipeline.
    """
    found = 0.0
    trains = {at: shape.backward and at not in shape.frozen for at in graph.after}
    fill: dict[StageId, float] = {}
    flush: dict[StageId, float] = {}
    for at in sorted(graph.after, key=lambda each: -graph.distance[each]):
        before = graph.before.get(at, ())
        fill[at] = max((fill[each] + costs.stages[each].forward_s for each in before), default=0.0)
        flush[at] = max((flush[each] + costs.stages[each].backward_s for each in before if trains[each]), default=0.0)
    for rank in ranks_with_equal_stages(graph):
        rest = max(costs.rests.get(at.module, 0.0) for at in rank)
        found = max(found, rest + sum(_busy(costs.stages[at], shape, at, trains=trains[at]) for at in rank))
        if costs.meets and len(rank) == 1:
            (at,) = rank
            busy = _busy(costs.stages[at], shape, at, trains=trains[at])
            found = max(found, rest + fill[at] + busy + (flush[at] if trains[at] else 0.0))
    return found


def _busy(cost: StageCost, shape: StepShape, at: StageId, *, trains: bool) -> float:
    runs = shape.micro_batches // shape.per_run.get(at.module, 1)
    backwards = (runs - 1) * cost.backward_s + cost.last_backward_s if trains else 0.0
    actions = runs * (2 if trains else 1)
    return runs * cost.forward_s + backwards + (actions - 1) * cost.overhead_s
