"""Plays the steps of a layout: when each forward and backward begins and ends, given what each of them takes. Pure.

The order of a rank's actions, and what it receives before which of them, are those that `Schedule1F1B` executes:
`mimo_role.pipeline.timeline` and `mimo_role.pipeline.receive_order`. Ranks that run the same stages are played as one.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

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


class Played(NamedTuple):
    """One action of a rank; times in seconds from the beginning of the first step."""

    rank: Stages
    action: Action
    free_s: float
    """When the rank has nothing else to do: from then on it waits for the inputs."""
    begin_s: float
    """When they are there."""
    end_s: float
    """When it has sent its outputs."""


class Receives(NamedTuple):
    """What the ranks receive in a step."""

    posted: Mapping[tuple[Stages, Action], Sequence[Receive]]
    """By rank and action, the receives that are posted before it."""
    inputs: Mapping[tuple[Stages, Action], Sequence[Receive]]
    """By rank and action, what it gets."""
    receivers: Mapping[Action, Sequence[tuple[Stages, Receive]]]
    """Who gets what an action sends."""


class Program:
    """The actions of a step in one pipeline: their order, their inputs, and when receives are posted."""

    def __init__(self, graph: StageGraph, shape: StepShape) -> None:
        self.graph = graph
        self.shape = shape
        self.per_run = {at: shape.per_run.get(at.module, 1) for at in graph.after}
        self.runs = {at: shape.micro_batches // size for at, size in self.per_run.items()}
        self.trained = frozenset(at for at in graph.after if shape.backward and at not in shape.frozen)
        self.ranks = _ranks_with_equal_stages(graph)
        self.ranks_of = {at: [rank for rank in self.ranks if at in rank] for at in graph.after}

    @cached_property
    def actions(self) -> list[Action]:
        """All actions, in the order in which they begin by the schedule."""
        shape = self.shape
        return timeline(
            self.graph,
            shape.micro_batches,
            frozen=shape.frozen,
            backward=shape.backward,
            slack=shape.slack,
            per_run=shape.per_run,
        )

    @cached_property
    def limits(self) -> dict[StageId, int]:
        """The largest number of runs that each stage has begun and not completed."""
        return run_limits(self.graph, self.shape.slack, self.per_run)

    def own(self, rank: Stages) -> list[Action]:
        """The actions of one rank, in their order."""
        return [action for action in self.actions if action.at in rank]

    @cached_property
    def receives(self) -> Receives:
        """What the ranks receive."""
        posted: dict[tuple[Stages, Action], Sequence[Receive]] = {}
        inputs: dict[tuple[Stages, Action], Sequence[Receive]] = {}
        receivers: defaultdict[Action, list[tuple[Stages, Receive]]] = defaultdict(list)
        for rank in self.ranks:
            own = self.own(rank)
            found = {action: list(receives_of(action, self.graph, rank, self.trained, self.per_run)) for action in own}
            if self.shape.receives_are_kernels:
                before = receives_when_sent(found, own, self.actions)
            else:
                before = receives_ahead(found, own, ACTIONS_AHEAD)
            posted.update({(rank, action): receives for action, receives in zip(own, before, strict=True)})
            for action, receives in found.items():
                inputs[rank, action] = receives
                for receive in receives:
                    receivers[receive.sender].append((rank, receive))
        return Receives(posted, inputs, receivers)


def _ranks_with_equal_stages(graph: StageGraph) -> list[Stages]:
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
        player.play_step()
        return player.end_s + max(costs.rests.values(), default=0.0)
    ends = []
    for _ in range(_STEPS):
        player.play_step()
        ends.append(player.end_s)
    half = _STEPS // 2
    return (ends[-1] - ends[half - 1]) / half


def play(program: Program, costs: Costs, steps: int = 1) -> list[list[Played]]:
    """Play some steps; by step, what the ranks do."""
    player = _Player(program, costs)
    return [player.play_step() for _ in range(steps)]


class _Player:
    """The clocks of all ranks over several steps."""

    def __init__(self, program: Program, costs: Costs) -> None:
        self._program = program
        self._costs = costs
        self._free = dict.fromkeys(program.ranks, 0.0)
        """When each rank has ended what it has begun."""
        self.end_s = 0.0
        """When the schedule of the last step has ended on all ranks."""

    def play_step(self) -> list[Played]:
        """Play one more step."""
        step = _Step(self._program, self._costs, self._free)
        actions = self._program.actions
        played = [step.execute(rank, action) for action in actions for rank in self._program.ranks_of[action.at]]
        step.finish()
        self.end_s = max(self._free.values())
        for rank in self._free:
            rest = max(self._costs.rests.get(at.module, 0.0) for at in rank)
            self._free[rank] = (self.end_s if self._costs.meets else self._free[rank]) + rest
        return played


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

    def execute(self, rank: Stages, action: Action) -> Played:
        """Play one action of one rank, all of whose inputs have been played."""
        program, cost = self._program, self._costs.stages[action.at]
        for receive in program.receives.posted[rank, action]:
            self._posted[rank, receive] = self._free[rank]
        free = self._free[rank] + (cost.overhead_s if rank in self._begun else 0.0)
        self._begun.add(rank)
        begin = max([free, *(self._arrival(rank, receive) for receive in program.receives.inputs[rank, action])])
        sent = end = begin + cost.of(action, program.runs[action.at])
        self._sent[action] = max(self._sent[action], sent)
        if action.phase is Phase.FORWARD and action.at not in program.trained:
            earlier = action._replace(number=action.number - program.limits[action.at])
            end = max(end, self._received(earlier))
        self._free[rank] = end
        return Played(rank, action, free, begin, sent)

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
            (self._arrival(rank, receive) for rank, receive in self._program.receives.receivers.get(action, ())),
            default=0.0,
        )


def least_step_time(program: Program, costs: Costs) -> float:
    """A lower bound of `step_time`, without playing the step.

    A rank is busy with all runs of its stages. Where ranks meet between steps, it also waits at first for one forward of each
    stage before, and at the end for one backward of each of them: the fill and the flush of a pipeline.
    """
    busy = {at: _busy(program, at, cost) for at, cost in costs.stages.items()}
    ends = _fill_and_flush(program, costs) if costs.meets else {}
    times = []
    for rank in program.ranks:
        rest = max(costs.rests.get(at.module, 0.0) for at in rank)
        times.append(rest + sum(busy[at] for at in rank))
        times += [rest + busy[at] + ends.get(at, 0.0) for at in rank]
    return max(times)


def _fill_and_flush(program: Program, costs: Costs) -> dict[StageId, float]:
    """By stage, the least time before its first forward and after its last backward."""
    graph, found = program.graph, costs.stages
    fill: dict[StageId, float] = {}
    flush: dict[StageId, float] = {}
    for at in sorted(graph.after, key=lambda each: -graph.distance[each]):
        before = graph.before.get(at, ())
        trained = [each for each in before if each in program.trained and at in program.trained]
        fill[at] = max((fill[each] + found[each].forward_s for each in before), default=0.0)
        flush[at] = max(
            (flush[each] + min(found[each].backward_s, found[each].last_backward_s) for each in trained), default=0.0
        )
    return {at: fill[at] + flush[at] for at in graph.after}


def _busy(program: Program, at: StageId, cost: StageCost) -> float:
    runs, trains = program.runs[at], at in program.trained
    backwards = (runs - 1) * cost.backward_s + cost.last_backward_s if trains else 0.0
    return runs * cost.forward_s + backwards + (runs * (2 if trains else 1) - 1) * cost.overhead_s
